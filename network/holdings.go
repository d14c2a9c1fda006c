package network

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// Holding is one operation that has been carried out, and what it made stands.
type Holding struct {
	Op drover.EdgeOp `json:"op"`
	// Since is when it was carried out last.
	Since time.Time `json:"since"`
}

// Holdings is what an edge's kernel has to hold: the operations that it has
// carried out and that none since has taken back, each by what it is about.
// Carried out again in the order of their keys they make the same out of nothing.
//
// What name servers, DHCP services and load balancers hold is not among it: those
// are servers of their own, and keep it.
type Holdings map[string]Holding

// The keys begin with what has to be there first: a tunnel before its stations,
// a way before its announcement.
const (
	keyExtend  = "1extend/"
	keyStation = "2station/"
	keyPlace   = "3place/"
	keyRest    = "3rest/"
	keyWatch   = "3watch/"
	keyMeter   = "3meter/"
	keyOld     = "3old/"
	keyRoute   = "4route/"
	// keyAddresses begins all that is forgotten as an owner's addresses.
	keyAddresses = "3"
)

// Apply takes in an operation that has been carried out, and returns the keys
// that have changed: those that it has set, and those that are not there any more.
func (s Holdings) Apply(op drover.EdgeOp, now time.Time) []string {
	switch op.Do {
	case drover.ExtendSegment:
		return s.set(op, now, keyExtend+op.Segment+"/"+op.Owner)
	case drover.SetStation:
		return s.set(op, now, keyStation+op.Segment+"/"+strings.ToLower(op.MAC))
	case drover.ProxyRest:
		return s.set(op, now, keyRest+op.Owner+"/"+op.Segment)
	case drover.DeliverHere, drover.Elsewhere:
		return s.each(op, now, keyPlace)
	case drover.WatchSessions:
		return s.each(op, now, keyWatch)
	case drover.MeterTraffic:
		return s.each(op, now, keyMeter)
	case drover.ForwardOld, drover.AcceptOld:
		return s.each(op, now, keyOld)
	case drover.AnnounceRoutes:
		return s.each(op, now, keyRoute)
	}
	return s.end(op)
}

// end takes in an operation that takes others back.
func (s Holdings) end(op drover.EdgeOp) []string {
	switch op.Do {
	case drover.RetractSegment:
		return s.Remove(func(key string, is drover.EdgeOp) bool {
			return strings.HasPrefix(key, keyExtend) && is.Owner == op.Owner && is.Segment == op.Segment
		})
	case drover.DropStation:
		return s.Remove(func(key string, is drover.EdgeOp) bool {
			return strings.HasPrefix(key, keyStation) && is.Segment == op.Segment && strings.EqualFold(is.MAC, op.MAC)
		})
	case drover.ForgetAddresses:
		return s.Remove(func(key string, is drover.EdgeOp) bool {
			return strings.HasPrefix(key, keyAddresses) && is.Owner == op.Owner
		})
	case drover.WithdrawRoutes:
		return s.Remove(func(key string, is drover.EdgeOp) bool {
			return strings.HasPrefix(key, keyRoute) && is.Owner == op.Owner && slices.Contains(op.Addresses, is.Addresses[0])
		})
	case drover.ForgetOwner:
		return s.Remove(func(key string, is drover.EdgeOp) bool {
			return is.Owner == op.Owner && !strings.HasPrefix(key, keyStation)
		})
	}
	return nil
}

// Remove takes out what matches, and the stations of segments that are extended
// for nobody any more, which go with the extension.
func (s Holdings) Remove(match func(key string, op drover.EdgeOp) bool) []string {
	var gone []string
	extended := map[string]bool{}
	for key, is := range s {
		switch {
		case match(key, is.Op):
			gone = append(gone, key)
		case strings.HasPrefix(key, keyExtend):
			extended[is.Op.Segment] = true
		}
	}
	for key, is := range s {
		if strings.HasPrefix(key, keyStation) && !extended[is.Op.Segment] && !slices.Contains(gone, key) {
			gone = append(gone, key)
		}
	}
	for _, key := range gone {
		delete(s, key)
	}
	slices.Sort(gone)
	return gone
}

func (s Holdings) set(op drover.EdgeOp, now time.Time, key string) []string {
	if was, ok := s[key]; ok && op.Limit == 0 && reflect.DeepEqual(was.Op, op) {
		return nil
	}
	s[key] = Holding{op, now}
	return []string{key}
}

// each sets one for each of the operation's addresses: another operation may take
// back or replace some of them.
func (s Holdings) each(op drover.EdgeOp, now time.Time, prefix string) []string {
	var changed []string
	for _, a := range op.Addresses {
		one := op
		one.Addresses, one.Neighbors = []netip.Addr{a}, nil // those were told once
		changed = append(changed, s.set(one, now, prefix+op.Owner+"/"+a.String())...)
	}
	return changed
}

// Again returns the operations that make it, in their order. What had a limit
// gets what is left of it, and is left out where nothing is.
func (s Holdings) Again(now time.Time) []drover.EdgeOp {
	var ops []drover.EdgeOp
	for _, key := range slices.SortedFunc(maps.Keys(s), cmp.Compare[string]) {
		op := s[key].Op
		if op.Limit > 0 {
			if op.Limit -= now.Sub(s[key].Since); op.Limit <= 0 {
				continue
			}
		}
		ops = append(ops, op)
	}
	return ops
}
