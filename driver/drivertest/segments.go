package drivertest

import (
	"context"
	"net/netip"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// SegmentsSetup is what the conformance suite of driver.Segments needs to know
// of an implementation.
type SegmentsSetup struct {
	// New returns an edge that nobody has changed yet. It is removed by the
	// test's cleanup.
	New func(t *testing.T) SegmentsEdge
}

// SegmentsEdge is an edge under test with the mesh address 10.99.0.1 and the
// bridges br-blue and br-green; no other edge answers.
type SegmentsEdge struct {
	// Open starts a driver there; several may follow each other.
	Open func() (driver.Segments, error)
	// Snapshot is everything there that an extension could touch, as text.
	Snapshot func() string
	// Occupy makes what the extension with the VNI would need, as somebody
	// else would.
	Occupy func(vni uint32)
	// Break takes a part of the extension with the VNI away, its marks aside.
	Break func(vni uint32)
}

// What the suite extends.
var (
	segmentLocal   = netip.MustParseAddr("10.99.0.1")
	segmentRemotes = []driver.Remote{
		{Address: netip.MustParseAddr("10.99.0.2")}, {Address: netip.MustParseAddr("10.99.0.3")},
	}
	segmentOwners = []driver.Owner{
		driver.VMOwner("6f9619ff-8b86-d011-b42d-00c04fc964ff"), driver.MoveOwner("move-2"),
		driver.VMOwner("7f9619ff-8b86-d011-b42d-00c04fc964ff"),
	}
)

func blue(remotes ...driver.Remote) driver.Extension {
	return driver.Extension{Segment: "blue", Bridge: "br-blue", VNI: 4711, Local: segmentLocal, Remotes: remotes}
}

// Segments runs the conformance suite of driver.Segments.
func Segments(t *testing.T, setup SegmentsSetup) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *segmentsEdge)
	}{
		{"Lifecycle", segmentsLifecycle},
		{"Owners", segmentsOwners},
		{"Remotes", segmentsRemotes},
		{"Stations", segmentsStations},
		{"Missing", segmentsMissing},
		{"Conflicts", segmentsConflicts},
		{"BadInput", segmentsBadInput},
		{"Taken", segmentsTaken},
		{"Restart", segmentsRestart},
		{"Broken", segmentsBroken},
		{"Canceled", segmentsCanceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &segmentsEdge{SegmentsEdge: setup.New(t), t: t}
			e.open()
			c.run(t, e)
		})
	}
}

type segmentsEdge struct {
	SegmentsEdge
	driver.Segments
	t *testing.T
}

func (e *segmentsEdge) open() {
	e.t.Helper()
	s, err := e.Open()
	noError(e.t, err)
	e.Segments = s
	e.t.Cleanup(func() { noError(e.t, s.Close()) })
}

func (e *segmentsEdge) extend(owner driver.Owner, ext driver.Extension) {
	e.t.Helper()
	noError(e.t, e.Extend(e.t.Context(), owner, ext))
}

func (e *segmentsEdge) retract(owner driver.Owner, segment string) {
	e.t.Helper()
	noError(e.t, e.Retract(e.t.Context(), owner, segment))
}

// wants fails unless these are the extensions, but for interfaces' names.
func (e *segmentsEdge) wants(want ...driver.ExtendedSegment) {
	e.t.Helper()
	got, err := e.List(e.t.Context())
	noError(e.t, err)
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(equal[netip.Addr]),
		cmpopts.IgnoreFields(driver.ExtendedSegment{}, "Interface")); d != "" {
		e.t.Errorf("extensions (-want +got):\n%s", d)
	}
}

// extendedAs is how an extension is listed.
func extendedAs(ext driver.Extension, owners ...driver.Owner) driver.ExtendedSegment {
	if ext.MTU == 0 {
		ext.MTU = driver.DefaultSegmentMTU
	}
	return driver.ExtendedSegment{Extension: ext, Owners: owners}
}

func segmentsLifecycle(t *testing.T, e *segmentsEdge) {
	before := e.Snapshot()
	e.wants()
	ext := blue(segmentRemotes...)
	ext.MTU = 1400
	e.extend(segmentOwners[0], ext)
	once := e.Snapshot()
	e.extend(segmentOwners[0], ext)
	if d := cmp.Diff(once, e.Snapshot()); d != "" {
		t.Errorf("extending again changed something (-once +twice):\n%s", d)
	}
	e.wants(extendedAs(ext, segmentOwners[0]))
	green := driver.Extension{Segment: "green", Bridge: "br-green", VNI: 4712, Local: segmentLocal, Remotes: segmentRemotes[:1]}
	e.extend(segmentOwners[0], green)
	e.wants(extendedAs(ext, segmentOwners[0]), extendedAs(green, segmentOwners[0]))
	c, err := e.Counters(t.Context(), "blue")
	noError(t, err)
	if len(c.Stations) != 0 || c.Received.Bytes != 0 {
		t.Errorf("counters of a new extension: %+v", c)
	}
	// What is common to all owners: the last call's.
	ext.MTU, ext.LocalEgress = 0, true
	ext.Gateway = driver.SegmentGateway{MAC: "02:00:00:00:00:fe", Addresses: []netip.Addr{netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("fd07::1")}}
	e.extend(segmentOwners[0], ext)
	e.wants(extendedAs(ext, segmentOwners[0]), extendedAs(green, segmentOwners[0]))
	e.retract(segmentOwners[0], "blue")
	e.retract(segmentOwners[0], "blue")
	e.wants(extendedAs(green, segmentOwners[0]))
	e.retract(segmentOwners[0], "green")
	e.wants()
	if d := cmp.Diff(before, e.Snapshot()); d != "" {
		t.Errorf("left or taken (-before +after):\n%s", d)
	}
}

func segmentsOwners(t *testing.T, e *segmentsEdge) {
	before := e.Snapshot()
	ext := blue(segmentRemotes[:1]...)
	for _, o := range segmentOwners {
		e.extend(o, ext)
	}
	e.wants(extendedAs(ext, segmentOwners[1], segmentOwners[0], segmentOwners[2]))
	e.retract(driver.MoveOwner("another"), "blue")
	e.wants(extendedAs(ext, segmentOwners[1], segmentOwners[0], segmentOwners[2]))
	e.retract(segmentOwners[0], "blue")
	e.retract(segmentOwners[1], "blue")
	e.wants(extendedAs(ext, segmentOwners[2]))
	e.retract(segmentOwners[2], "blue")
	e.wants()
	if d := cmp.Diff(before, e.Snapshot()); d != "" {
		t.Errorf("left or taken (-before +after):\n%s", d)
	}
}

// segmentsRemotes: each owner has its own, all of them are reached.
func segmentsRemotes(t *testing.T, e *segmentsEdge) {
	e.extend(segmentOwners[0], blue(segmentRemotes[0]))
	e.extend(segmentOwners[1], blue(segmentRemotes[1]))
	e.wants(extendedAs(blue(segmentRemotes...), segmentOwners[1], segmentOwners[0]))
	there := driver.Station{MAC: "52:54:00:00:00:02", At: segmentRemotes[0].Address}
	going := driver.Station{MAC: "52:54:00:00:00:03", Next: segmentRemotes[0].Address}
	noError(t, e.SetStations(t.Context(), "blue", []driver.Station{there, going}))
	// The first goes over to the other one's: what was there is not reached any more.
	e.extend(segmentOwners[0], blue(segmentRemotes[1]))
	want := extendedAs(blue(segmentRemotes[1]), segmentOwners[1], segmentOwners[0])
	want.Stations = []driver.Station{{MAC: going.MAC}}
	e.wants(want)
	e.retract(segmentOwners[1], "blue")
	want.Owners = segmentOwners[:1]
	e.wants(want)
}

func segmentsStations(t *testing.T, e *segmentsEdge) {
	before := e.Snapshot()
	e.extend(segmentOwners[0], blue(segmentRemotes...))
	bare := e.Snapshot()
	stations := []driver.Station{
		{MAC: "52:54:00:00:00:01", Addresses: []netip.Addr{netip.MustParseAddr("192.168.7.11"), netip.MustParseAddr("fd07::11")}},
		{MAC: "52:54:00:00:00:02", Addresses: []netip.Addr{netip.MustParseAddr("192.168.7.12"), netip.MustParseAddr("fd07::12")}, At: segmentRemotes[0].Address},
		{MAC: "52:54:00:00:00:03", Next: segmentRemotes[1].Address},
	}
	shout := append([]driver.Station{{MAC: "52:54:00:00:00:0A"}}, stations...)
	noError(t, e.SetStations(t.Context(), "blue", shout))
	want := extendedAs(blue(segmentRemotes...), segmentOwners[0])
	want.Stations = append(append(want.Stations, stations...), driver.Station{MAC: "52:54:00:00:00:0a"})
	e.wants(want)
	c, err := e.Counters(t.Context(), "blue")
	noError(t, err)
	if _, there := c.Stations["52:54:00:00:00:0a"]; !there || len(c.Stations) != 4 {
		t.Errorf("counters of stations: %+v", c)
	}
	once := e.Snapshot()
	noError(t, e.SetStations(t.Context(), "blue", shout))
	if d := cmp.Diff(once, e.Snapshot()); d != "" {
		t.Errorf("setting again changed something (-once +twice):\n%s", d)
	}
	// Moved: one comes, one goes, one to another edge.
	stations[0].At, stations[1].At, stations[2].Next = segmentRemotes[1].Address, netip.Addr{}, netip.Addr{}
	noError(t, e.SetStations(t.Context(), "blue", stations))
	want.Stations = stations
	e.wants(want)
	noError(t, e.SetStations(t.Context(), "blue", nil))
	want.Stations = nil
	e.wants(want)
	if d := cmp.Diff(bare, e.Snapshot()); d != "" {
		t.Errorf("stations left something (-without +after):\n%s", d)
	}
	noError(t, e.SetStations(t.Context(), "blue", stations))
	e.retract(segmentOwners[0], "blue")
	if d := cmp.Diff(before, e.Snapshot()); d != "" {
		t.Errorf("left or taken (-before +after):\n%s", d)
	}
}

func segmentsMissing(t *testing.T, e *segmentsEdge) {
	ext := blue(segmentRemotes...)
	ext.Bridge = "br-none"
	volumeKind(t, e.Extend(t.Context(), segmentOwners[0], ext), drover.NotFound)
	e.retract(segmentOwners[0], "blue")
	volumeKind(t, e.SetStations(t.Context(), "blue", nil), drover.NotFound)
	_, err := e.Counters(t.Context(), "blue")
	volumeKind(t, err, drover.NotFound)
	e.wants()
}

// segmentsConflicts: what contradicts an extension that there is.
func segmentsConflicts(t *testing.T, e *segmentsEdge) {
	ext := blue(segmentRemotes...)
	e.extend(segmentOwners[0], ext)
	for name, change := range map[string]func(*driver.Extension){
		"bridge":  func(x *driver.Extension) { x.Bridge = "br-green" },
		"number":  func(x *driver.Extension) { x.VNI++ },
		"local":   func(x *driver.Extension) { x.Local = netip.MustParseAddr("10.99.0.7") },
		"segment": func(x *driver.Extension) { x.Segment, x.Bridge = "green", "br-green" },
	} {
		other := ext
		change(&other)
		if err := e.Extend(t.Context(), segmentOwners[1], other); drover.KindOf(err) != drover.Refused {
			t.Errorf("another %s: %v", name, err)
		}
	}
	e.wants(extendedAs(ext, segmentOwners[0]))
}

func segmentsBadInput(t *testing.T, e *segmentsEdge) {
	good := blue(segmentRemotes...)
	good.LocalEgress = true
	good.Gateway = driver.SegmentGateway{MAC: "02:00:00:00:00:fe", Addresses: []netip.Addr{netip.MustParseAddr("192.168.7.1")}}
	for name, change := range map[string]func(*driver.Extension){
		"no segment":      func(x *driver.Extension) { x.Segment = "" },
		"long bridge":     func(x *driver.Extension) { x.Bridge = "br-0123456789012" },
		"no number":       func(x *driver.Extension) { x.VNI = 0 },
		"large number":    func(x *driver.Extension) { x.VNI = 1 << 24 },
		"no local":        func(x *driver.Extension) { x.Local = netip.Addr{} },
		"no remote":       func(x *driver.Extension) { x.Remotes = nil },
		"itself":          func(x *driver.Extension) { x.Remotes = []driver.Remote{{Address: x.Local}} },
		"a remote twice":  func(x *driver.Extension) { x.Remotes = []driver.Remote{x.Remotes[0], x.Remotes[0]} },
		"another family":  func(x *driver.Extension) { x.Remotes = []driver.Remote{{Address: netip.MustParseAddr("fd99::2")}} },
		"small MTU":       func(x *driver.Extension) { x.MTU = 1000 },
		"large MTU":       func(x *driver.Extension) { x.MTU = 65000 },
		"no gateway":      func(x *driver.Extension) { x.Gateway.Addresses = nil },
		"no gateway MAC":  func(x *driver.Extension) { x.Gateway.MAC = "" },
		"group MAC":       func(x *driver.Extension) { x.Gateway.MAC = "01:00:00:00:00:01" },
		"gateway's group": func(x *driver.Extension) { x.Gateway.Addresses = []netip.Addr{netip.MustParseAddr("224.0.0.1")} },
	} {
		ext := good
		change(&ext)
		if err := e.Extend(t.Context(), segmentOwners[0], ext); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	volumeKind(t, e.Extend(t.Context(), "nobody", good), drover.Invalid)
	volumeKind(t, e.Retract(t.Context(), "nobody", "blue"), drover.Invalid)
	volumeKind(t, e.Retract(t.Context(), segmentOwners[0], "a b"), drover.Invalid)
	e.wants()
	e.extend(segmentOwners[0], good)
	known := driver.Station{MAC: "52:54:00:00:00:01", Addresses: []netip.Addr{netip.MustParseAddr("192.168.7.11")}}
	noError(t, e.SetStations(t.Context(), "blue", []driver.Station{known}))
	for name, bad := range map[string][]driver.Station{
		"no MAC":         {{}},
		"twice":          {known, {MAC: known.MAC}},
		"address twice":  {known, {MAC: "52:54:00:00:00:02", Addresses: known.Addresses}},
		"group":          {{MAC: "ff:ff:ff:ff:ff:ff"}},
		"unknown edge":   {{MAC: known.MAC, At: netip.MustParseAddr("10.99.0.9")}},
		"unknown next":   {{MAC: known.MAC, Next: netip.MustParseAddr("10.99.0.9")}},
		"next elsewhere": {{MAC: known.MAC, At: segmentRemotes[0].Address, Next: segmentRemotes[1].Address}},
		"loopback":       {{MAC: known.MAC, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}},
	} {
		if err := e.SetStations(t.Context(), "blue", bad); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	want := extendedAs(good, segmentOwners[0])
	want.Stations = []driver.Station{known}
	e.wants(want)
}

func segmentsTaken(t *testing.T, e *segmentsEdge) {
	e.Occupy(4711)
	before := e.Snapshot()
	volumeKind(t, e.Extend(t.Context(), segmentOwners[0], blue(segmentRemotes...)), drover.Exists)
	e.wants()
	e.retract(segmentOwners[0], "blue")
	if d := cmp.Diff(before, e.Snapshot()); d != "" {
		t.Errorf("somebody else's was changed (-before +after):\n%s", d)
	}
}

func segmentsRestart(t *testing.T, e *segmentsEdge) {
	before := e.Snapshot()
	e.extend(segmentOwners[0], blue(segmentRemotes...))
	st := driver.Station{MAC: "52:54:00:00:00:02", Addresses: []netip.Addr{netip.MustParseAddr("192.168.7.12")}, At: segmentRemotes[0].Address}
	noError(t, e.SetStations(t.Context(), "blue", []driver.Station{st}))
	want := extendedAs(blue(segmentRemotes...), segmentOwners[0])
	want.Stations = []driver.Station{st}
	running := e.Snapshot()
	noError(t, e.Close())
	noError(t, e.Close())
	_, err := e.List(t.Context())
	volumeKind(t, err, drover.Canceled)
	volumeKind(t, e.Extend(t.Context(), segmentOwners[0], blue(segmentRemotes...)), drover.Canceled)
	e.open()
	if d := cmp.Diff(running, e.Snapshot()); d != "" {
		t.Errorf("a restart changed something (-before +after):\n%s", d)
	}
	e.wants(want)
	e.extend(segmentOwners[0], blue(segmentRemotes...))
	e.wants(want)
	e.retract(segmentOwners[0], "blue")
	if d := cmp.Diff(before, e.Snapshot()); d != "" {
		t.Errorf("left or taken (-before +after):\n%s", d)
	}
}

// segmentsBroken: what has lost a part is listed with its fault, made whole by
// Extend, removed by Retract.
func segmentsBroken(t *testing.T, e *segmentsEdge) {
	before := e.Snapshot()
	for _, repair := range []bool{true, false} {
		e.extend(segmentOwners[0], blue(segmentRemotes...))
		e.Break(4711)
		list, err := e.List(t.Context())
		noError(t, err)
		if len(list) != 1 || list[0].Fault == "" || !list[0].Missing || len(list[0].Owners) != 1 || list[0].Segment != "blue" {
			t.Errorf("broken: %+v", list)
		}
		if repair {
			e.extend(segmentOwners[0], blue(segmentRemotes...))
			e.wants(extendedAs(blue(segmentRemotes...), segmentOwners[0]))
		}
		e.retract(segmentOwners[0], "blue")
		e.wants()
	}
	if d := cmp.Diff(before, e.Snapshot()); d != "" {
		t.Errorf("left or taken (-before +after):\n%s", d)
	}
}

func segmentsCanceled(t *testing.T, e *segmentsEdge) {
	before := e.Snapshot()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	volumeKind(t, e.Extend(ctx, segmentOwners[0], blue(segmentRemotes...)), drover.Canceled)
	volumeKind(t, e.Retract(ctx, segmentOwners[0], "blue"), drover.Canceled)
	volumeKind(t, e.SetStations(ctx, "blue", nil), drover.Canceled)
	if d := cmp.Diff(before, e.Snapshot()); d != "" {
		t.Errorf("canceled calls changed something (-before +after):\n%s", d)
	}
}
