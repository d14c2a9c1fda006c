package agent

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/memory"
)

const (
	newName = "web1-south"
	newUUID = "99999999-2222-4333-8444-555555555555"
	newPath = imgDir + "/web1-south.qcow2"
)

// guestGate is a host's guests as a process of its agent has them: one that is
// dead reaches none.
type guestGate struct {
	driver.Guests
	life *life
}

func (g guestGate) Freeze(ctx context.Context, vm string) error {
	if g.life.dead.Load() {
		return errDead
	}
	return g.Guests.Freeze(ctx, vm)
}

func (g guestGate) Thaw(ctx context.Context, vm string) error {
	if g.life.dead.Load() {
		return errDead
	}
	return g.Guests.Thaw(ctx, vm)
}

func clonePlans(fresh bool) []*droverv1.DiskPlan {
	p := diskPlans()
	p[0].Path, p[0].Fresh = newPath, fresh
	return p
}

func cloneDefinition() *droverv1.CloneDefinition {
	return &droverv1.CloneDefinition{
		Definition: memory.NewDefinition(vmValue()),
		Nics:       []*droverv1.CloneNIC{{Mac: "52:54:00:00:00:01", NewMac: "52:54:00:00:00:21", Network: "blue"}},
		Paths:      map[string]string{vdaPath: newPath},
		Addresses:  []string{"10.60.0.21/24"}, Gateways: []string{"10.60.0.1"},
		Probe: &droverv1.ProbeTarget{Tcp: "10.60.0.21:7"},
	}
}

// cloneSteps are the lines of a table that makes a VM at south1, as far as hosts
// have to do with it.
func (w *world) cloneSteps(fresh bool) []coldStep {
	steps := []coldStep{
		{host: "south1", step: "reserve-target", do: &droverv1.Reserve{Target: true, MemoryBytes: 1 << 28}},
		{host: "north1", step: "reserve-source", do: &droverv1.Reserve{}},
		{host: "south1", step: "create-volumes", do: &droverv1.CreateVolumes{Disks: clonePlans(fresh)}, undo: &droverv1.DeleteVolumes{}},
		{host: "north1", step: "copy", do: &droverv1.CopyClone{
			PeerAddress: w.hosts["south1"].address, PeerHost: "south1", Name: newName, Uuid: newUUID, Disks: diskPlans(),
		}, undo: &droverv1.StopReplication{}},
		{host: "south1", step: "define", do: &droverv1.DefineClone{Clone: cloneDefinition()}, undo: &droverv1.Undefine{}},
		{host: "south1", step: "start", do: &droverv1.StartVM{}, undo: &droverv1.StopVM{}},
		{host: "south1", step: "health", do: &droverv1.CheckHealth{LimitMillis: 1000}},
		{host: "south1", step: "commit", do: &droverv1.Commit{}},
		{host: "south1", step: "verify", do: &droverv1.Verify{Running: true}},
		{host: "north1", step: "shutdown", do: &droverv1.Shutdown{GraceMillis: 2000, Force: true}},
		{host: "north1", step: "give-up", do: &droverv1.GiveUp{}},
		{host: "north1", step: "release-source", do: &droverv1.ReleaseSource{Disks: diskPlans()}},
		{host: "south1", step: "release", do: &droverv1.Release{Target: true}},
		{host: "north1", step: "release", do: &droverv1.Release{}},
	}
	if fresh {
		steps = slices.DeleteFunc(steps, func(s coldStep) bool { return s.step == "copy" })
	}
	return steps
}

// asClone asks an action of a move that the destination knows as the new VM's.
func (w *world) asClone(s coldStep, step string, generation int64, action any) *droverv1.RunResult {
	w.t.Helper()
	var err error
	for range 200 {
		req := request(step, generation, action)
		if s.host == "south1" {
			req.Ref.Vm, req.Ref.VmUuid = newName, newUUID
		}
		var r *droverv1.RunResult
		if r, err = w.runRequest(s.host, req); err == nil {
			return r
		}
		if !inconclusive(err) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.t.Fatalf("%s on %s: %v (%s)", step, s.host, err, drover.KindOf(err))
	return nil
}

// clone runs the steps up to the one called last (all when empty), and returns
// those that were done.
func (w *world) clone(last string, fresh bool, generation int64) []coldStep {
	w.t.Helper()
	var done []coldStep
	for _, s := range w.cloneSteps(fresh) {
		r := w.asClone(s, s.step, generation, s.do)
		if s.step == "health" && !r.GetHealthy() {
			w.t.Errorf("it is not well: %s", r.GetDetail())
		}
		if done = append(done, s); s.step == last {
			break
		}
	}
	return done
}

// unclone takes back what was done, each of it twice.
func (w *world) unclone(done []coldStep, generation int64) {
	w.t.Helper()
	for _, s := range slices.Backward(done) {
		if s.undo != nil {
			w.asClone(s, "undo-"+s.step, generation, s.undo)
			w.asClone(s, "undo-"+s.step, generation+1, s.undo)
		}
	}
	for _, s := range []coldStep{{host: "south1", do: &droverv1.Release{Target: true}}, {host: "north1", do: &droverv1.Release{}}} {
		w.asClone(s, "undo-release", generation+1, s.do)
	}
}

func (h *host) read(path string) []byte {
	h.w.t.Helper()
	img, err := h.volumes.OpenRead(context.Background(), path, false)
	must(h.w.t, err)
	defer img.Close()
	out, err := io.ReadAll(io.NewSectionReader(img, 0, img.Size()))
	must(h.w.t, err)
	return out
}

// checkCloned fails unless the two VMs are where they should be, and nothing of the
// move is left.
func (w *world) checkCloned(original, made bool) {
	t := w.t
	t.Helper()
	for _, v := range w.fleet.Violations() {
		t.Errorf("violation: %s", v)
	}
	for host, want := range map[string][]string{"north1": {vmName}, "south1": {newName}} {
		here := host == "north1" && original || host == "south1" && made
		if got := w.fleet.RunsAt(want[0]); here != slices.Equal(got, []string{host}) {
			t.Errorf("%s runs at %v, want it at %s: %v", want[0], got, host, here)
		}
		h := w.hosts[host]
		vms, err := h.hyp.List(context.Background())
		must(t, err)
		if (len(vms) == 1) != here {
			t.Errorf("host %s has %d VMs", host, len(vms))
		}
		path := map[string]string{"north1": vdaPath, "south1": newPath}[host]
		if _, err := h.volumes.Volume(context.Background(), path); (err == nil) != here {
			t.Errorf("host %s: %s: %v", host, path, err)
		}
		h.checkRemains()
		h.checkRecords()
		records, err := h.current().agent.journal.moves()
		must(t, err)
		if len(records) != 0 {
			t.Errorf("host %s: %d moves are left in the journal", host, len(records))
		}
	}
	if w.inside.Frozen(vmUUID) {
		t.Error("the guest is left frozen")
	}
}

// The copy is of the moment at which the guest was frozen, whatever it writes
// afterwards; the new VM has a name, a MAC, a disk and a probe of its own.
func TestClone(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	want := w.content("north1")
	frozen := false
	w.setPoint(func(host, point string) error {
		switch {
		case host == "north1" && point == "before hypervisor begin backup":
			frozen = w.inside.Frozen(vmUUID)
		case host == "north1" && point == "after hypervisor begin backup":
			_ = w.fleet.WriteDisk("north1", vmName, "vda", 5<<20, bytes.Repeat([]byte{'z'}, 4096))
		}
		return nil
	})
	done := w.clone("verify", false, 1)
	if !frozen || w.inside.Frozen(vmUUID) {
		t.Errorf("frozen when the backup began: %v, at the end: %v", frozen, w.inside.Frozen(vmUUID))
	}
	got := w.hosts["south1"].read(newPath)
	if !bytes.Equal(got, want) {
		t.Error("the new disk is not what the old one was at the moment of the copy")
	}
	if bytes.Equal(w.content("north1"), want) {
		t.Error("the guest could not write meanwhile")
	}
	v, err := w.hosts["south1"].hyp.VM(t.Context(), newName)
	must(t, err)
	if v.UUID != newUUID || v.NICs[0].MAC != "52:54:00:00:00:21" || v.Disks[0].Path != newPath || v.Probe == nil || v.Probe.TCP != "10.60.0.21:7" {
		t.Errorf("the new VM is %+v", v)
	}
	for _, s := range w.cloneSteps(false)[len(done):] {
		w.asClone(s, s.step, 1, s.do)
	}
	w.checkCloned(false, true)
}

// A fresh disk begins as the golden image, and nothing is carried into it.
func TestCloneFresh(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.clone("verify", true, 1)
	if got := w.hosts["south1"].read(newPath); !bytes.Equal(got, w.hosts["south1"].read(gold)) {
		t.Error("the fresh disk is not the golden image")
	}
	for _, s := range w.cloneSteps(true)[8:] {
		w.asClone(s, s.step, 1, s.do)
	}
	w.checkCloned(false, true)
}

// TestCloneUndo takes back after each step up to the commit.
func TestCloneUndo(t *testing.T) {
	for _, last := range []string{"reserve-source", "create-volumes", "copy", "define", "start", "health"} {
		t.Run(last, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			want := w.content("north1")
			w.unclone(w.clone(last, false, 1), 1)
			if !bytes.Equal(w.content("north1"), want) {
				t.Error("the original's disk has changed")
			}
			w.checkCloned(true, false)
		})
	}
}

// TestCloneDieAnywhere kills either agent at every point; the same steps are asked
// for again, or taken back. The guest is never left frozen.
func TestCloneDieAnywhere(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	points := w.tracePoints()
	w.clone("", false, 1)
	campaign(t, points(), func(t *testing.T, i int, p deathPoint) {
		w := newWorld(t)
		w.addVM()
		w.supervise()
		died := w.dieAt(p)
		if i%3 == 2 {
			w.unclone(w.clone("start", false, 1), 2)
			w.checkCloned(true, false)
			return
		}
		w.clone("", false, 1)
		if !died() {
			t.Fatal("the point was not reached")
		}
		w.checkCloned(false, true)
	})
}

// A guest without an agent is copied as it is, and the copy says so.
func TestCloneNotFrozen(t *testing.T) {
	for name, mode := range map[string]memory.AgentMode{"missing": memory.AgentMissing, "hangs": memory.AgentHangs} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			w.inside.SetAgent(vmUUID, mode)
			want := w.content("north1")
			w.clone("create-volumes", false, 1)
			r := w.asClone(coldStep{host: "north1"}, "copy", 1, w.cloneSteps(false)[3].do)
			if !strings.Contains(r.GetDetail(), "power cut") {
				t.Errorf("the copy says %q", r.GetDetail())
			}
			if !bytes.Equal(w.hosts["south1"].read(newPath), want) {
				t.Error("the new disk differs")
			}
		})
	}
}

// An agent that dies with the guest frozen thaws it when it comes back, whoever asks
// for anything.
func TestCloneThaws(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.supervise()
	var once sync.Once
	was := make(chan bool, 1)
	w.setPoint(func(host, point string) error {
		var err error
		if host == "north1" && point == "before hypervisor begin backup" {
			once.Do(func() {
				was <- w.inside.Frozen(vmUUID)
				w.hosts["north1"].kill()
				err = errDead
			})
		}
		return err
	})
	w.clone("create-volumes", false, 1)
	_, _ = w.run("north1", "copy", 1, w.cloneSteps(false)[3].do)
	if !<-was {
		t.Fatal("the guest was not frozen when the agent died")
	}
	for range 500 {
		if !w.inside.Frozen(vmUUID) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the guest stays frozen")
}
