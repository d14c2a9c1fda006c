package server

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
)

// TestEveryActionCrosses fills every field of every action and wants every
// field of its message to arrive.
func TestEveryActionCrosses(t *testing.T) {
	disks := []executor.DiskPlan{{
		Target: "vda", Path: "/a", Format: "qcow2", VirtualBytes: 1, BackingPath: "/b", BackingFormat: "raw", TopOnly: true, AllocatedBytes: 2, Fresh: true,
	}}
	ops := []drover.EdgeOp{{
		Do: drover.ForwardOld, Owner: "vm/u", Segment: "s", Sites: []string{"a"}, Site: "b", Next: "c", MAC: "m",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
		Name: "n", Backend: "k", Target: "t", Weight: 1, LocalEgress: true, Limit: time.Second, Force: true, DUID: []byte{1}, IAID: 1, Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Neighbors: []netip.Addr{netip.MustParseAddr("10.0.0.3")},
	}}
	change := executor.GuestChange{
		MAC: "m", Add: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, Gateways: ops[0].Addresses, Primary: true, Drop: ops[0].Addresses, Ask: true,
	}
	edge := executor.EdgeAgent{Host: "e", Address: "a"}
	all := []executor.Action{
		executor.Edge{Ops: ops, Undo: true},
		executor.StageEdge{Ops: ops, By: "h"},
		executor.CountSessions{Addresses: ops[0].Addresses, Backend: "k", Server: "s"},
		executor.DefineClone{
			Definition: []byte("x"), NICs: []executor.CloneNIC{{MAC: "a", NewMAC: "b", Network: "c"}}, Paths: map[string]string{"/a": "/b"},
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}, Gateways: ops[0].Addresses,
			Probe: &drover.ProbeTarget{TCP: "t", Kind: "k", HTTP: "h"},
		},
		executor.CopyClone{PeerAddress: "a", PeerHost: "h", Name: "n", UUID: "u", Disks: disks, Bandwidth: 1},
		executor.Attend{Kind: drover.HealthTCP, Target: "t", For: time.Second, Backend: "k", Server: "s"},
		executor.Reserve{Target: true, MemoryBytes: 1, Replica: "r", Keeps: true, DisksOnly: true},
		executor.Release{Target: true},
		executor.CreateVolumes{Disks: disks, Replica: "r"},
		executor.DeleteVolumes{},
		executor.Transfer{
			PeerAddress: "a", PeerHost: "h", Disks: disks, Bandwidth: 1, MaxPause: time.Second, NoThrottle: true, SourceEdge: edge, TargetEdge: edge,
			Retarget: &executor.Retarget{MAC: "m", Network: "n", Probe: &drover.ProbeTarget{TCP: "a:1"}}, Guest: &change,
			Remote: []executor.RemoteDisk{{Target: "vda", Socket: "s"}},
		},
		executor.ChangeGuest{GuestChange: change, Undo: true},
		executor.FindStation{Segment: "s", MAC: "m", Addresses: ops[0].Addresses, Wait: time.Second},
		executor.AbortTransfer{PeerAddress: "a", PeerHost: "h"},
		executor.Shutdown{Grace: time.Second, Force: true},
		executor.GiveUp{},
		executor.TakeBack{Start: true},
		executor.Copy{PeerAddress: "a", PeerHost: "h", Disks: disks, Bandwidth: 1, Changes: true},
		executor.Replicate{PeerAddress: "a", PeerHost: "h", Disks: disks, Bandwidth: 1, MaxDowntime: time.Second, Once: true},
		executor.StopReplication{},
		executor.StopVM{},
		executor.CheckHealth{Kind: drover.HealthTCP, Target: "t", Limit: time.Second},
		executor.Commit{},
		executor.AbortCommit{},
		executor.Define{Definition: []byte("x")},
		executor.Undefine{},
		executor.StartVM{TargetEdge: edge},
		executor.Verify{Running: true},
		executor.ReleaseSource{KeepVolumes: true, Disks: disks},
		executor.LendDisks{PeerHost: "h", Disks: disks},
		executor.ReclaimDisks{},
		executor.AttachDisks{PeerAddress: "a", PeerHost: "h", Disks: disks},
		executor.DetachDisks{},
		executor.BringDisks{Disks: disks, Bandwidth: 1},
		executor.AbortBring{},
	}
	seen := map[string]bool{}
	for _, a := range all {
		var r droverv1.RunRequest
		if err := setAction(&r, a); err != nil {
			t.Errorf("%T: %v", a, err)
			continue
		}
		m := r.ProtoReflect()
		which := m.WhichOneof(m.Descriptor().Oneofs().ByName("action"))
		seen[string(which.Name())] = true
		wantFull(t, m.Get(which).Message())
	}
	if actions := (&droverv1.RunRequest{}).ProtoReflect().Descriptor().Oneofs().ByName("action").Fields(); len(seen) != actions.Len() {
		t.Errorf("%d of the API's %d actions are used: %v", len(seen), actions.Len(), seen)
	}
}

// wantFull wants every field of a message to be set.
func wantFull(t *testing.T, m protoreflect.Message) {
	t.Helper()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) {
			t.Errorf("%s is not carried over", f.FullName())
			continue
		}
		if f.IsList() && f.Message() != nil {
			wantFull(t, m.Get(f).List().Get(0).Message())
		}
	}
}

func TestEveryResultCrosses(t *testing.T) {
	sent := &droverv1.RunResult{
		Moved: true, WasRunning: true, Definition: []byte("x"), PauseNanos: 1, MemoryBytes: 2, DiskBytes: 3,
		PathWireBytes: 4, StoppedUnixNanos: 5, ResumedUnixNanos: 6, PointUnixNanos: 9, Healthy: true, Detail: "d",
		Path:      &droverv1.PathFigures{ThrottlePercent: 7},
		Addresses: []string{"10.0.0.9/24"}, Gateways: []string{"10.0.0.1"}, Sessions: 8,
		RemoteDisks: []*droverv1.RemoteDisk{{Target: "vda", Socket: "s"}},
	}
	wantFull(t, sent.ProtoReflect())
	raw, err := proto.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	var received droverv1.RunResult
	if err := proto.Unmarshal(raw, &received); err != nil {
		t.Fatal(err)
	}
	want := executor.Result{
		Moved: true, WasRunning: true, Definition: []byte("x"), Pause: 1, MemoryBytes: 2, DiskBytes: 3,
		PathWireBytes: 4, Stopped: time.Unix(0, 5).UTC(), Resumed: time.Unix(0, 6).UTC(), Point: time.Unix(0, 9).UTC(), Healthy: true, Detail: "d",
		Path:      &drover.PathFigures{ThrottlePercent: 7},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Sessions: 8,
		RemoteDisks: []executor.RemoteDisk{{Target: "vda", Socket: "s"}},
	}
	got, err := resultFromProto(&received)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" || err != nil {
		t.Error(diff, err)
	}
	received.Addresses = []string{"10.0.0.9"}
	if _, err := resultFromProto(&received); drover.KindOf(err) != drover.Invalid {
		t.Errorf("an address without its length: got %v, want one invalid", err)
	}
}

func TestDiskPlans(t *testing.T) {
	golden := []drover.Backing{{Path: "/golden", Format: "raw", VirtualBytes: 8}, {Path: "/base", Format: "raw", VirtualBytes: 8}}
	vm := drover.VM{Disks: []drover.Disk{
		{Target: "vda", Path: "/a", Format: "qcow2", VirtualBytes: 8, AllocatedBytes: 1, Backing: golden},
		{Target: "vdb", Path: "/b", Format: "qcow2", VirtualBytes: 8, AllocatedBytes: 2, Backing: golden},
		{Target: "vdc", Path: "/c", Format: "raw", VirtualBytes: 8, AllocatedBytes: 3},
		{Target: "vdd", Path: "/d", Format: "raw", VirtualBytes: 8, Shared: true},
		{Target: "sda", Path: "/e", Format: "raw", VirtualBytes: 8, ReadOnly: true},
	}}
	want := []executor.DiskPlan{
		{Target: "vda", Path: "/a", Format: "qcow2", VirtualBytes: 8, AllocatedBytes: 1, TopOnly: true, BackingPath: "/golden", BackingFormat: "raw"},
		{Target: "vdb", Path: "/b", Format: "qcow2", VirtualBytes: 8, AllocatedBytes: 2},
		{Target: "vdc", Path: "/c", Format: "raw", VirtualBytes: 8, AllocatedBytes: 3},
	}
	if diff := cmp.Diff(want, diskPlans(vm, map[string]bool{"vda": true, "vdc": true, "sda": true})); diff != "" {
		t.Error(diff)
	}
}

func TestCarried(t *testing.T) {
	before := map[string]drover.Bytes{"w1": 100, "w2": 50}
	if got, err := carried(before, map[string]drover.Bytes{"w1": 400, "w2": 50, "w3": 9}); err != nil || *got != 300 {
		t.Errorf("got %v, %v; want 300", got, err)
	}
	for name, after := range map[string]map[string]drover.Bytes{
		"began anew": {"w1": 10, "w2": 60}, "gone": {"w1": 400},
	} {
		if got, err := carried(before, after); err == nil || got != nil {
			t.Errorf("%s: got %v, %v; want not measured", name, got, err)
		}
	}
}

// TestAnyAddress: the VM's own addresses give way to zero, which stands for the
// new VM's, and nothing else does.
func TestAnyAddress(t *testing.T) {
	k := &cloneCheck{own: []netip.Addr{netip.MustParseAddr("10.50.0.11"), netip.MustParseAddr("fd00:50::11")}}
	for in, want := range map[string]string{
		"":                                 "",
		"10.50.0.11:7000":                  "0.0.0.0:7000",
		"[fd00:50::11]:7000":               "0.0.0.0:7000",
		"10.50.0.12:7000":                  "10.50.0.12:7000",
		"http://10.50.0.11:8080/x?y=1":     "http://0.0.0.0:8080/x?y=1",
		"http://10.50.0.11/healthz":        "http://0.0.0.0/healthz",
		"https://[fd00:50::11]:8443/":      "https://0.0.0.0:8443/",
		"http://web.example.net:8080/":     "http://web.example.net:8080/",
		"http://10.3.9.80:8080/10.50.0.11": "http://10.3.9.80:8080/10.50.0.11",
	} {
		got := k.anyURL(in)
		if _, err := netip.ParseAddrPort(in); err == nil {
			got = k.anyAddress(in)
		}
		if got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

// TestWeights: shares of what a server had, with nobody left without before the end.
func TestWeights(t *testing.T) {
	for _, tt := range []struct {
		percent []int
		whole   int
		want    []executor.WeightStep
	}{
		{[]int{10, 50, 100}, 100, []executor.WeightStep{{New: 10, Old: 90}, {New: 50, Old: 50}, {New: 100}}},
		{[]int{10, 100}, 1, []executor.WeightStep{{New: 1, Old: 1}, {New: 1}}},
		{[]int{33, 100}, 256, []executor.WeightStep{{New: 84, Old: 172}, {New: 256}}},
		{[]int{100}, 5, []executor.WeightStep{{New: 5}}},
	} {
		if got := weights(tt.percent, tt.whole); !cmp.Equal(got, tt.want) {
			t.Errorf("%v of %d: %v, want %v", tt.percent, tt.whole, got, tt.want)
		}
	}
}
