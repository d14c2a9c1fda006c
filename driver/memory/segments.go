package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var _ driver.Segments = (*Segments)(nil)

// SegmentsKernel is what of an edge outlives its driver: bridges and extensions.
type SegmentsKernel struct {
	mu      sync.Mutex
	bridges map[string]map[netip.Addr]bool // and what each reaches by another way
	foreign map[uint32]bool                // VNIs that somebody else uses
	all     map[uint32]*extended
}

type extended struct {
	driver.Extension
	remotes  map[driver.Owner][]netip.Addr
	stations []driver.Station
	counters driver.SegmentCounters
	broken   bool
}

// NewSegmentsKernel returns an edge with these bridges.
func NewSegmentsKernel(bridges ...string) *SegmentsKernel {
	k := &SegmentsKernel{bridges: map[string]map[netip.Addr]bool{}, foreign: map[uint32]bool{}, all: map[uint32]*extended{}}
	for _, b := range bridges {
		k.bridges[b] = map[netip.Addr]bool{}
	}
	return k
}

// Join makes a bridge reach an edge's address by another way.
func (k *SegmentsKernel) Join(bridge string, to netip.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.bridges[bridge][to] = true
}

// Occupy lets somebody else use the VNI.
func (k *SegmentsKernel) Occupy(vni uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.foreign[vni] = true
}

// Break takes an extension's tunnel away.
func (k *SegmentsKernel) Break(vni uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all[vni].broken = true
}

// Lose takes all extensions away, as a reboot does.
func (k *SegmentsKernel) Lose() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.all)
}

// Count adds to the counters of an extension and of one of its stations, as
// if that much had crossed.
func (k *SegmentsKernel) Count(vni uint32, mac string, sent, received driver.TrafficCount) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.all[vni]
	if e == nil {
		return
	}
	add := func(to *driver.TrafficCount, n driver.TrafficCount) { to.Frames += n.Frames; to.Bytes += n.Bytes }
	add(&e.counters.Sent, sent)
	add(&e.counters.Received, received)
	if st, known := e.counters.Stations[mac]; known {
		add(&st.Sent, sent)
		add(&st.Received, received)
		e.counters.Stations[mac] = st
	}
}

// String is everything there is, for comparisons.
func (k *SegmentsKernel) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	text := fmt.Sprintln(k.bridges, k.foreign)
	for _, vni := range slices.Sorted(maps.Keys(k.all)) {
		text += fmt.Sprintf("%d %+v\n", vni, *k.all[vni])
	}
	return text
}

// Segments is a driver on an edge in memory.
type Segments struct {
	kernel *SegmentsKernel
	fault  func(op, segment string) error
	closed bool
}

// OpenSegments returns a driver on the edge. Fault, if not nil, is asked
// before each operation, with the method's name in lower case and the segment;
// an error that it returns is the operation's.
func OpenSegments(kernel *SegmentsKernel, fault func(op, segment string) error) *Segments {
	return &Segments{kernel: kernel, fault: fault}
}

// begin takes the edge's lock unless the operation cannot begin. On success
// the caller unlocks.
func (s *Segments) begin(ctx context.Context, name, segment string) error {
	op := name + " segment " + segment
	if s.fault != nil {
		if err := s.fault(name, segment); err != nil {
			return wrap(op, err)
		}
	}
	s.kernel.mu.Lock()
	var err error
	switch {
	case s.closed:
		err = drover.Errorf(drover.Canceled, op, "the driver is closed")
	case ctx.Err() != nil:
		err = drover.E(drover.Canceled, op, ctx.Err())
	}
	if err != nil {
		s.kernel.mu.Unlock()
	}
	return err
}

// Extend joins the bridge to the remotes for the owner.
func (s *Segments) Extend(ctx context.Context, owner driver.Owner, ext driver.Extension) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	if err := ext.Validate(); err != nil {
		return err
	}
	if err := s.begin(ctx, "extend", ext.Segment); err != nil {
		return err
	}
	defer s.kernel.mu.Unlock()
	if err := s.admit(ext); err != nil {
		return wrap("extend segment "+ext.Segment, err)
	}
	e := s.kernel.all[ext.VNI]
	if e == nil {
		e = &extended{remotes: map[driver.Owner][]netip.Addr{}}
		e.counters.Stations = map[string]driver.StationCount{}
		s.kernel.all[ext.VNI] = e
	}
	var remotes []netip.Addr
	for _, r := range ext.Remotes {
		remotes = append(remotes, r.Address)
	}
	ext.MTU = cmp.Or(ext.MTU, driver.DefaultSegmentMTU)
	if !ext.LocalEgress {
		ext.Gateway = driver.SegmentGateway{}
	}
	ext.Gateway.Addresses = slices.Clone(ext.Gateway.Addresses)
	e.Extension, e.broken, e.remotes[owner] = ext, false, remotes
	e.trim()
	return nil
}

// admit says what speaks against an extension.
func (s *Segments) admit(ext driver.Extension) error {
	ways, there := s.kernel.bridges[ext.Bridge]
	switch {
	case !there:
		return drover.Errorf(drover.NotFound, "bridge "+ext.Bridge, "there is no such interface")
	case s.kernel.foreign[ext.VNI]:
		return drover.Errorf(drover.Exists, "VNI", "somebody else uses %d", ext.VNI)
	}
	for _, e := range s.kernel.all {
		if e.Segment == ext.Segment != (e.VNI == ext.VNI) ||
			e.VNI == ext.VNI && (e.Bridge != ext.Bridge || e.Local != ext.Local) {
			return drover.Errorf(drover.Refused, "extension", "segment %s is extended with VNI %d in %s from %v", e.Segment, e.VNI, e.Bridge, e.Local)
		}
	}
	for _, r := range ext.Remotes {
		for _, a := range append([]netip.Addr{r.Address}, r.Others...) {
			if ways[a] {
				return drover.Errorf(drover.Refused, "loop", "%s reaches %v by another way", ext.Bridge, a)
			}
		}
	}
	return nil
}

// all returns the remotes of all owners.
func (e *extended) all() []netip.Addr {
	var all []netip.Addr
	for _, r := range e.remotes {
		all = append(all, r...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// trim forgets stations behind remotes that are none any more.
func (e *extended) trim() {
	remotes := e.all()
	out := func(a netip.Addr) bool { return a.IsValid() && !slices.Contains(remotes, a) }
	e.set(slices.DeleteFunc(slices.Clone(e.stations), func(st driver.Station) bool { return out(st.At) }))
	for i, st := range e.stations {
		if out(st.Next) {
			e.stations[i].Next = netip.Addr{}
		}
	}
}

// set replaces the stations; counters of those that stay go on.
func (e *extended) set(stations []driver.Station) {
	counters := map[string]driver.StationCount{}
	for _, st := range stations {
		counters[st.MAC] = e.counters.Stations[st.MAC]
	}
	e.stations, e.counters.Stations = stations, counters
}

// Retract ends the owner's need.
func (s *Segments) Retract(ctx context.Context, owner driver.Owner, segment string) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	if err := drover.CheckName("segment", segment); err != nil {
		return err
	}
	if err := s.begin(ctx, "retract", segment); err != nil {
		return err
	}
	defer s.kernel.mu.Unlock()
	e := s.find(segment)
	if e == nil {
		return nil
	}
	delete(e.remotes, owner)
	if len(e.remotes) == 0 {
		delete(s.kernel.all, e.VNI)
		return nil
	}
	e.trim()
	return nil
}

func (s *Segments) find(segment string) *extended {
	for _, e := range s.kernel.all {
		if e.Segment == segment {
			return e
		}
	}
	return nil
}

// SetStations makes these the known stations.
func (s *Segments) SetStations(ctx context.Context, segment string, stations []driver.Station) error {
	op := "stations of segment " + segment
	if err := s.begin(ctx, "set stations", segment); err != nil {
		return err
	}
	defer s.kernel.mu.Unlock()
	e := s.find(segment)
	if e == nil || e.broken {
		return drover.Errorf(drover.NotFound, op, "it is not extended")
	}
	if err := driver.CheckStations(e.Local, e.all(), stations); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	all := slices.Clone(stations)
	for i, st := range all {
		mac, _ := net.ParseMAC(st.MAC) // was checked
		all[i].MAC = mac.String()
		all[i].Addresses = slices.SortedFunc(slices.Values(st.Addresses), netip.Addr.Compare)
	}
	slices.SortFunc(all, func(a, b driver.Station) int { return cmp.Compare(a.MAC, b.MAC) })
	e.set(all)
	return nil
}

// Counters returns what Count has added.
func (s *Segments) Counters(ctx context.Context, segment string) (driver.SegmentCounters, error) {
	if err := s.begin(ctx, "counters", segment); err != nil {
		return driver.SegmentCounters{}, err
	}
	defer s.kernel.mu.Unlock()
	e := s.find(segment)
	if e == nil || e.broken {
		return driver.SegmentCounters{}, drover.Errorf(drover.NotFound, "counters of segment "+segment, "it is not extended")
	}
	c := e.counters
	c.Stations = maps.Clone(c.Stations)
	return c, nil
}

// List returns every extension with its owners.
func (s *Segments) List(ctx context.Context) ([]driver.ExtendedSegment, error) {
	if err := s.begin(ctx, "list", ""); err != nil {
		return nil, err
	}
	defer s.kernel.mu.Unlock()
	var list []driver.ExtendedSegment
	for _, e := range s.kernel.all {
		d := driver.ExtendedSegment{
			Extension: e.Extension, Owners: slices.Sorted(maps.Keys(e.remotes)),
			Stations: slices.Clone(e.stations), Interface: fmt.Sprintf("dvx%d", e.VNI),
		}
		d.Remotes = nil
		for _, a := range e.all() {
			d.Remotes = append(d.Remotes, driver.Remote{Address: a})
		}
		if e.broken {
			d.Fault, d.Missing = "the tunnel's interface is missing", true
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b driver.ExtendedSegment) int { return cmp.Compare(a.Segment, b.Segment) })
	return list, nil
}

// Close ends the driver; extensions stay.
func (s *Segments) Close() error {
	s.kernel.mu.Lock()
	defer s.kernel.mu.Unlock()
	s.closed = true
	return nil
}
