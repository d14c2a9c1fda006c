package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver/memory"
	"github.com/drover-vm/drover/pki"
)

// TestRoles: servers call AgentService, agents PeerService, and no one else.
func TestRoles(t *testing.T) {
	w := newWorld(t)
	h := w.hosts["south1"]
	asAgent := api.NewAgentClient(h.address, w.hosts["north1"].tls, "south1")
	defer asAgent.Close()
	if _, err := asAgent.Describe(t.Context(), &droverv1.DescribeRequest{}); drover.KindOf(err) != drover.Denied {
		t.Errorf("an agent's Describe: %v", err)
	}
	asServer := api.NewPeerClient(h.address, w.server, "south1")
	defer asServer.Close()
	if _, err := asServer.Ping(t.Context(), &droverv1.PingRequest{}); drover.KindOf(err) != drover.Denied {
		t.Errorf("a server's Ping: %v", err)
	}
	if _, err := w.client("south1").Describe(t.Context(), &droverv1.DescribeRequest{}); err != nil {
		t.Errorf("a server's Describe: %v", err)
	}
}

// TestForeignAgent: a move's other end is one agent, and no other may speak
// for it.
func TestForeignAgent(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.fleet.SetTransfer(func(ctx context.Context, _, _, _ string) error {
		ref := &droverv1.MoveRef{Move: moveName, Generation: 9, Vm: vmName, VmUuid: vmUUID}
		foreign := api.NewPeerClient(w.hosts["south1"].address, w.issue(pki.Agent, "west1"), "south1")
		defer foreign.Close()
		calls := map[string]error{}
		_, calls["finish"] = foreign.Finish(ctx, &droverv1.FinishRequest{Ref: ref, Token: make([]byte, 32)})
		_, calls["fate"] = foreign.Fate(ctx, &droverv1.FateRequest{Ref: ref})
		_, calls["abandon"] = foreign.Abandon(ctx, &droverv1.AbandonRequest{Ref: ref})
		_, calls["digest"] = foreign.Digest(ctx, &droverv1.DigestRequest{Ref: ref})
		for name, err := range calls {
			if drover.KindOf(err) != drover.Denied {
				t.Errorf("a foreign agent's %s: %v", name, err)
			}
		}
		return nil
	})
	w.begin()
	r := w.ask("north1", "transfer", 1, w.transferAction())
	if !r.GetMoved() {
		t.Error("not moved")
	}
	w.finish(1, nil)
	w.checkOnce("south1")
}

// TestFinishWithoutPrepare: a token that was not given out lets nothing run.
func TestFinishWithoutPrepare(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.begin()
	peer := w.hosts["north1"].current().agent.peers.at(w.hosts["south1"].address, "south1")
	ref := &droverv1.MoveRef{Move: moveName, Generation: 1, Vm: vmName, VmUuid: vmUUID}
	if _, err := peer.Finish(t.Context(), &droverv1.FinishRequest{Ref: ref, Token: make([]byte, 32)}); drover.KindOf(err) != drover.Refused {
		t.Errorf("%v", err)
	}
	// Asked about its fate, the destination refuses for good: a Prepare of the
	// same generation that was late finds it refused.
	f, err := peer.Fate(t.Context(), &droverv1.FateRequest{Ref: ref})
	must(t, err)
	if f.GetAccepted() {
		t.Error("accepted")
	}
	if _, err := w.run("north1", "transfer", 1, w.transferAction()); drover.KindOf(err) != drover.Refused {
		t.Errorf("a transfer after the refusal: %v", err)
	}
	w.finish(2, errors.New("refused"))
	w.checkOnce("north1")
}

// TestFateOfReleasedMove: what was accepted stays accepted after the move has
// been forgotten, and what is not known is refused, with a mark.
func TestFateOfReleasedMove(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.begin()
	w.ask("north1", "transfer", 1, w.transferAction())
	w.finish(1, nil)
	peer := w.hosts["north1"].current().agent.peers.at(w.hosts["south1"].address, "south1")
	for move, want := range map[string]bool{moveName: true, "other": true, "unknown": false} {
		uuid := vmUUID // the VM itself is a witness for a move that is not known
		if move == "unknown" {
			uuid = "99999999-2222-3333-4444-555555555555"
		}
		f, err := peer.Fate(t.Context(), &droverv1.FateRequest{Ref: &droverv1.MoveRef{Move: move, Generation: 1, Vm: vmName, VmUuid: uuid}})
		must(t, err)
		if f.GetAccepted() != want {
			t.Errorf("move %s: accepted %v", move, f.GetAccepted())
		}
	}
	s, err := w.hosts["south1"].current().agent.journal.stone("unknown")
	must(t, err)
	if s == nil || s.Accepted {
		t.Errorf("the refusal left %+v", s)
	}
}

// TestAttach: asking for an action that runs finds it, and cutting the stream
// does not end it.
func TestAttach(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	flying, land := make(chan struct{}), make(chan struct{})
	w.fleet.SetTransfer(func(ctx context.Context, _, _, _ string) error {
		close(flying) // panics when begun twice
		select {
		case <-land:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	w.begin()
	ctx, cut := context.WithCancel(t.Context())
	stream, err := w.client("north1").Run(ctx, request("transfer", 1, w.transferAction()))
	must(t, err)
	<-flying
	if !stream.Receive() || stream.Msg().GetProgress() == nil {
		t.Errorf("no progress: %v", stream.Err())
	}
	cut()
	_ = stream.Close()
	if _, err := w.run("north1", "other", 1, &droverv1.Shutdown{}); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("another action of the move meanwhile: %v", err)
	}
	ended := make(chan error, 2)
	for _, generation := range []int64{1, 2} {
		go func() {
			_, err := w.insist("north1", "transfer", generation, w.transferAction())
			ended <- err
		}()
		time.Sleep(50 * time.Millisecond)
	}
	close(land)
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	w.finish(2, nil)
	w.checkOnce("south1")
}

// TestReserve: one move has a VM, and there must be room for it.
func TestReserve(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	other := request("reserve-source", 1, &droverv1.Reserve{})
	w.ask("north1", "reserve-source", 1, &droverv1.Reserve{})
	other.Ref.Move = "move-2"
	if _, err := w.runRequest("north1", other); drover.KindOf(err) != drover.Refused || !strings.Contains(err.Error(), moveName) {
		t.Errorf("a second move of the vm: %v", err)
	}
	if _, err := w.run("south1", "reserve-target", 1, &droverv1.Reserve{Target: true, MemoryBytes: int64(9 * drover.GiB)}); drover.KindOf(err) != drover.Exhausted {
		t.Errorf("more memory than there is: %v", err)
	}
	if _, err := w.run("north1", "reserve-target", 1, &droverv1.Reserve{Target: true}); err == nil {
		t.Error("the source was reserved as the target")
	}
	w.ask("south1", "reserve-target", 1, &droverv1.Reserve{Target: true, MemoryBytes: int64(5 * drover.GiB)})
	if _, err := w.run("south1", "create-volumes", 1, &droverv1.Transfer{PeerAddress: "10.0.0.1:1", PeerHost: "x"}); drover.KindOf(err) != drover.Refused {
		t.Errorf("a transfer from the target: %v", err)
	}
	second := request("reserve-target", 1, &droverv1.Reserve{Target: true, MemoryBytes: int64(4 * drover.GiB)})
	second.Ref.Move, second.Ref.Vm, second.Ref.VmUuid = "move-3", "web9", "99999999-2222-3333-4444-555555555555"
	if _, err := w.runRequest("south1", second); drover.KindOf(err) != drover.Exhausted {
		t.Errorf("memory that another move was promised: %v", err)
	}
}

// TestPreflight: every finding is ok where all is well, and each fault is
// found by the check whose name says so, with a fix.
func TestPreflight(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		live   bool
		fails  []string
		warns  []string
	}{
		"all is well": {live: true},
		"off":         {live: true, change: func(w *world) { must(w.t, w.hosts["north1"].hyp.Destroy(w.t.Context(), vmName)) }, fails: []string{"vm-state"}},
		"off, cold":   {change: func(w *world) { must(w.t, w.hosts["north1"].hyp.Destroy(w.t.Context(), vmName)) }},
		"file in the way": {live: true, change: func(w *world) {
			must(w.t, w.hosts["south1"].volumes.Create(w.t.Context(), specOfDisk()))
		}, fails: []string{"volume-paths"}},
		"another vm": {live: true, change: func(w *world) {
			vm := vmValue()
			vm.UUID, vm.Disks = "99999999-2222-3333-4444-555555555555", nil
			_, err := w.hosts["south1"].hyp.Define(w.t.Context(), memory.NewDefinition(vm))
			must(w.t, err)
		}, fails: []string{"name-free", "mac-free"}},
		"another move": {live: true, change: func(w *world) {
			w.ask("north1", "reserve-source", 1, &droverv1.Reserve{})
		}, fails: []string{"no-other-move"}},
		"target is down": {live: true, change: func(w *world) {
			w.hosts["south1"].listen.partition(true)
		}, fails: []string{"source-reaches-target"}},
		"clock is off by 3 s": {live: true, change: func(w *world) { w.skew.Store(int64(3 * time.Second)) }, warns: []string{"clock-source"}},
		"clock is off by 9 s": {live: true, change: func(w *world) { w.skew.Store(int64(9 * time.Second)) }, fails: []string{"clock-source"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			if c.change != nil {
				c.change(w)
			}
			method := "cold"
			if c.live {
				method = "live"
			}
			checks, same := w.preflight(method)
			var fails, warns []string
			for _, k := range checks {
				switch {
				case k.OK && (k.Detail == "" || k.Fix != ""), !k.OK && (k.Detail == "" || k.Fix == ""):
					t.Errorf("%+v", k)
				case !k.OK && k.Warning:
					warns = append(warns, k.Name)
				case !k.OK:
					fails = append(fails, k.Name)
				}
			}
			if diff := cmp.Diff([][]string{c.fails, c.warns}, [][]string{fails, warns}); diff != "" {
				t.Errorf("fails and warnings: %s", diff)
			}
			if same != nil && !same["vda"] {
				t.Error("the backing file is the same at both ends, which was not seen")
			}
		})
	}
}

// preflight asks both ends, as a server does.
func (w *world) preflight(method string) ([]drover.Check, map[string]bool) {
	w.t.Helper()
	north, south := w.hosts["north1"], w.hosts["south1"]
	src, err := w.client("north1").CheckSource(w.t.Context(), &droverv1.CheckSourceRequest{
		Vm: vmName, Method: method, TargetAddress: south.address, TargetHost: "south1",
	})
	must(w.t, err)
	checks := api.ChecksFromProto(src.GetChecks())
	if south.listen.isCut() {
		return checks, nil
	}
	dst, err := w.client("south1").CheckTarget(w.t.Context(), &droverv1.CheckTargetRequest{
		Vm: src.GetVm(), Method: method, Definition: src.GetDefinition(), Source: src.GetHost(),
		BackingIds: src.GetBackingIds(), SourceAddress: north.address,
	})
	must(w.t, err)
	// The clock is seen from both ends; one is enough here.
	far := slices.DeleteFunc(api.ChecksFromProto(dst.GetChecks()), func(c drover.Check) bool { return c.Name == "clock" })
	return append(checks, far...), dst.GetSameBacking()
}

// TestWatch: a watcher is told at once, and again when a VM changes.
func TestWatch(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	stream, err := w.client("north1").Watch(ctx, &droverv1.DescribeRequest{})
	must(t, err)
	defer stream.Close()
	state := func() string {
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		d := stream.Msg()
		if d.GetHost().GetName() != "north1" || d.GetHost().GetSite() != "north" || !d.GetHost().GetUp() || len(d.GetVms()) != 1 {
			t.Fatalf("%v", d)
		}
		disk := d.GetVms()[0].GetDisks()[0]
		if disk.GetAllocatedBytes() == 0 || disk.GetBacking()[0].GetPath() != gold {
			t.Errorf("disk: %v", disk)
		}
		return d.GetVms()[0].GetState()
	}
	if s := state(); s != "running" {
		t.Errorf("at first %s", s)
	}
	must(t, w.hosts["north1"].hyp.Destroy(ctx, vmName))
	for state() != "off" {
	}
}

// TestManagerDown: the host's agent is up and says what is wrong.
func TestManagerDown(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.fleet.StopManager("north1")
	d, err := w.client("north1").Describe(t.Context(), &droverv1.DescribeRequest{})
	must(t, err)
	if !d.GetHost().GetUp() || d.GetHost().GetFault() == "" {
		t.Errorf("%v", d.GetHost())
	}
	w.fleet.StartManager("north1")
}
