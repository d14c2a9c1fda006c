package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// tcpStates are conntrack's own words for the states of TCP; those that are
// live would be missed. After LAST_ACK both ends have closed.
var tcpStates = []struct {
	name    string
	live    bool
	timeout string // the sysctl with how long it lasts without a packet
}{
	{"none", false, ""},
	{"syn-sent", false, "syn_sent"},
	{"syn-recv", true, "syn_recv"},
	{"established", true, "established"},
	{"fin-wait", true, "fin_wait"},
	{"close-wait", true, "close_wait"},
	{"last-ack", false, "last_ack"},
	{"time-wait", false, "time_wait"},
	{"close", false, "close"},
	{"syn-sent2", false, ""},
}

// flows dumps the tracked connections with one of the addresses at an end.
func flows(addresses []netip.Addr) (found []conntrack.Flow, err error) {
	c, err := conntrack.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	all, err := c.Dump(nil)
	if err != nil {
		return nil, fmt.Errorf("read conntrack: %w", err)
	}
	for _, f := range all {
		if _, ok := endOf(f, addresses); ok {
			found = append(found, f)
		}
	}
	return found, nil
}

// endOf returns whether the address is where the flow goes (false: it began
// it), and whether one of the addresses is an end at all.
func endOf(f conntrack.Flow, addresses []netip.Addr) (outgoing, ok bool) {
	if slices.Contains(addresses, f.TupleOrig.IP.SourceAddress.Unmap()) {
		return true, true
	}
	return false, slices.Contains(addresses, f.TupleOrig.IP.DestinationAddress.Unmap())
}

// Sessions implements driver.Addresses.
func (a *Addresses) Sessions(ctx context.Context, addresses []netip.Addr) ([]driver.AddressSession, error) {
	const op = "list sessions"
	if err := driver.CheckHostAddresses(addresses); err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	var all []driver.AddressSession
	// A dump of a full table takes a while: it does not wait for a change.
	err := a.look(ctx, op, func() error {
		found, err := flows(addresses)
		if err != nil {
			return err
		}
		timeouts := map[string]time.Duration{}
		for _, f := range found {
			all = append(all, session(f, addresses, timeouts))
		}
		return nil
	})
	slices.SortFunc(all, func(x, y driver.AddressSession) int {
		if c := x.Address.Compare(y.Address); c != 0 {
			return c
		}
		return x.Peer.Compare(y.Peer)
	})
	return all, err
}

func session(f conntrack.Flow, addresses []netip.Addr, timeouts map[string]time.Duration) driver.AddressSession {
	src := netip.AddrPortFrom(f.TupleOrig.IP.SourceAddress.Unmap(), f.TupleOrig.Proto.SourcePort)
	dst := netip.AddrPortFrom(f.TupleOrig.IP.DestinationAddress.Unmap(), f.TupleOrig.Proto.DestinationPort)
	s := driver.AddressSession{
		Address: dst, Peer: src, Protocol: protocolName(f.TupleOrig.Proto.Protocol),
		Received: drover.Bytes(f.CountersOrig.Bytes), Sent: drover.Bytes(f.CountersReply.Bytes),
		Expires: time.Duration(f.Timeout) * time.Second,
	}
	if out, _ := endOf(f, addresses); out {
		s.Outgoing = true
		s.Address, s.Peer, s.Received, s.Sent = src, dst, s.Sent, s.Received
	}
	if !f.Timestamp.Start.IsZero() && f.Timestamp.Start.Unix() > 0 {
		s.Age = time.Since(f.Timestamp.Start)
	}
	var timeout string
	switch {
	case f.ProtoInfo.TCP != nil && int(f.ProtoInfo.TCP.State) < len(tcpStates):
		t := tcpStates[f.ProtoInfo.TCP.State]
		// One whose peer has said nothing since it was first seen was picked up from
		// its last words, or from those of a stranger.
		s.State, s.Live = t.name, t.live && f.Status.SeenReply()
		if t.timeout != "" {
			timeout = "tcp_timeout_" + t.timeout
		}
	case f.Status.SeenReply():
		s.State = "replied"
		// An answered ping is no session.
		s.Live = f.TupleOrig.Proto.Protocol != unix.IPPROTO_ICMP && f.TupleOrig.Proto.Protocol != unix.IPPROTO_ICMPV6
		if f.TupleOrig.Proto.Protocol == unix.IPPROTO_UDP && f.Status.Assured() {
			timeout = "udp_timeout_stream"
		}
	default:
		s.State = "unreplied"
	}
	if timeout != "" {
		s.Idle = max(0, lasting(timeout, timeouts)-s.Expires)
	}
	return s
}

// lasting reads one of conntrack's timeouts; zero if there is none of the name.
func lasting(name string, cache map[string]time.Duration) time.Duration {
	d, ok := cache[name]
	if !ok {
		text, err := readSysctl("net/netfilter/nf_conntrack_" + name)
		if seconds, bad := strconv.Atoi(text); err == nil && bad == nil {
			d = time.Duration(seconds) * time.Second
		}
		cache[name] = d
	}
	return d
}

func protocolName(number uint8) string {
	switch number {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(number))
}

// Forget implements driver.Addresses.
func (a *Addresses) Forget(ctx context.Context, addresses []netip.Addr) (int, error) {
	const op = "forget sessions"
	if err := driver.CheckHostAddresses(addresses); err != nil {
		return 0, drover.E(drover.Invalid, op, err)
	}
	n := 0
	err := a.run(ctx, op, func() error {
		found, err := flows(addresses)
		if err != nil || len(found) == 0 {
			return err
		}
		c, err := conntrack.Dial(nil)
		if err != nil {
			return fmt.Errorf("open conntrack: %w", err)
		}
		var errs []error
		for _, f := range found {
			switch err := c.Delete(f); {
			case err == nil:
				n++
			case !errors.Is(err, unix.ENOENT): // it may have ended by itself
				errs = append(errs, fmt.Errorf("delete from conntrack: %w", err))
			}
		}
		return errors.Join(errors.Join(errs...), c.Close())
	})
	return n, err
}
