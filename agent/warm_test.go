package agent

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver/memory"
)

// warmSteps are the lines of a warm move's table.
func (w *world) warmSteps() []coldStep {
	peer := w.hosts["south1"].address
	return []coldStep{
		{host: "south1", step: "reserve-target", do: &droverv1.Reserve{Target: true}},
		{host: "north1", step: "reserve-source", do: &droverv1.Reserve{Replica: w.replica}},
		{host: "south1", step: "create-volumes", do: &droverv1.CreateVolumes{Disks: diskPlans(), Replica: w.replica}, undo: &droverv1.DeleteVolumes{}},
		{host: "north1", step: "replicate", do: &droverv1.Replicate{PeerAddress: peer, PeerHost: "south1", Disks: diskPlans(), MaxDowntimeMillis: 1}, undo: &droverv1.StopReplication{}},
		{host: "north1", step: "shutdown", do: &droverv1.Shutdown{GraceMillis: 2000}, undo: &droverv1.TakeBack{Start: true}},
		{host: "north1", step: "give-up", do: &droverv1.GiveUp{}, undo: &droverv1.TakeBack{}},
		{host: "north1", step: "copy-changes", do: &droverv1.Copy{PeerAddress: peer, PeerHost: "south1", Disks: diskPlans(), Changes: true}},
		{host: "south1", step: "define", do: nil, undo: &droverv1.Undefine{}},
		{host: "south1", step: "start", do: &droverv1.StartVM{}, undo: &droverv1.StopVM{}},
		{host: "south1", step: "gate", do: &droverv1.CheckHealth{}},
		{host: "south1", step: "commit", do: &droverv1.Commit{}},
		{host: "south1", step: "verify", do: &droverv1.Verify{Running: true}},
		{host: "north1", step: "release-source", do: &droverv1.ReleaseSource{Disks: diskPlans()}},
		{host: "south1", step: "release", do: &droverv1.Release{Target: true}},
		{host: "north1", step: "release", do: &droverv1.Release{}},
	}
}

// warmStory is what came of a run of the steps.
type warmStory struct {
	steps []coldStep // done
	want  []byte     // the disk as the guest left it at its source
	sent  int64      // by replicate
}

// warm runs the steps up to the one called last (all when empty).
func (w *world) warm(last string, generation int64) warmStory {
	w.t.Helper()
	var def []byte
	var st warmStory
	for _, s := range w.warmSteps() {
		action := s.do
		switch s.step {
		case "define":
			action = &droverv1.Define{Definition: def}
		case "copy-changes":
			st.want = w.content("north1")
		}
		r := w.ask(s.host, s.step, generation, action)
		switch s.step {
		case "replicate":
			st.sent = r.GetDiskBytes()
		case "give-up":
			def = r.GetDefinition()
		case "copy-changes":
			w.fleet.CopyDisk(vdaPath, "north1", "south1")
		case "gate":
			if !r.GetHealthy() {
				w.t.Errorf("it is not well: %s", r.GetDetail())
			}
		}
		st.steps = append(st.steps, s)
		if s.step == last {
			break
		}
	}
	return st
}

// unwarm takes back what was done, each of it twice.
func (w *world) unwarm(st warmStory, generation int64) {
	w.t.Helper()
	for i := len(st.steps) - 1; i >= 0; i-- {
		s := st.steps[i]
		if s.step == "start" {
			// What it wrote at the destination is given up, and known to be.
			w.fleet.CopyDisk(vdaPath, "south1", "north1")
		}
		if s.undo != nil {
			w.ask(s.host, "undo-"+s.step, generation, s.undo)
			w.ask(s.host, "undo-"+s.step, generation+1, s.undo)
		}
	}
	w.ask("south1", "release", generation+1, &droverv1.Release{Target: true})
	w.ask("north1", "release", generation+1, &droverv1.Release{})
}

// busyGuest makes the guest write whenever a round begins, while there are
// writes left: each time less, and zeros among it.
func (w *world) busyGuest(also func(host, point string) error) {
	var mu sync.Mutex
	n := 0
	w.setPoint(func(host, point string) error {
		if host == "north1" && point == "after hypervisor begin backup" {
			mu.Lock()
			n++
			k := n
			mu.Unlock()
			for block := range max(0, 24-9*k) {
				p := bytes.Repeat([]byte{byte('a' + k)}, 4096)
				if block == 0 {
					clear(p)
				}
				_ = w.fleet.WriteDisk("north1", vmName, "vda", int64(block+3*k)<<17, p)
			}
		}
		if also == nil {
			return nil
		}
		return also(host, point)
	})
}

func TestWarm(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	rounds := 0
	w.busyGuest(func(host, point string) error {
		if host == "north1" && point == "after journal round-done" {
			rounds++
		}
		return nil
	})
	st := w.warm("", 1)
	if !bytes.Equal(w.content("south1"), st.want) {
		t.Error("the disk has another content at the destination")
	}
	if rounds < 2 {
		t.Errorf("%d rounds, want more", rounds)
	}
	v, err := w.hosts["south1"].volumes.Volume(t.Context(), vdaPath)
	must(t, err)
	// What is the golden image's has not crossed.
	if len(v.Backing) != 1 || v.AllocatedBytes > 2*drover.MiB {
		t.Errorf("%s allocated at the destination, backing %v", v.AllocatedBytes, v.Backing)
	}
	w.checkOnce("south1")
}

// TestWarmUndo undoes after each step, up to where the gate still is closed.
func TestWarmUndo(t *testing.T) {
	for _, last := range []string{"create-volumes", "replicate", "shutdown", "give-up", "copy-changes", "define", "start", "gate"} {
		t.Run(last, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			w.busyGuest(nil)
			st := w.warm(last, 1)
			want := w.content("north1")
			w.unwarm(st, 1)
			if !bytes.Equal(w.content("north1"), want) {
				t.Error("the source's disk has changed")
			}
			w.checkOnce("north1")
		})
	}
}

// TestWarmDieAnywhere kills either agent at every point of a warm move; the same
// steps are asked for again, or taken back.
func TestWarmDieAnywhere(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	points := w.tracePoints()
	w.warm("", 1)
	campaign(t, points(), func(t *testing.T, i int, p deathPoint) {
		w := newWorld(t)
		w.addVM()
		w.supervise()
		died := w.dieAt(p)
		if i%3 == 2 {
			st := w.warm("copy-changes", 1)
			want := w.content("north1")
			w.unwarm(st, 2)
			t.Logf("died: %v", died())
			if !bytes.Equal(w.content("north1"), want) {
				t.Error("the source's disk has changed")
			}
			w.checkOnce("north1")
			return
		}
		st := w.warm("", 1)
		if !died() {
			t.Fatal("the point was not reached")
		}
		if !bytes.Equal(w.content("south1"), st.want) {
			t.Error("the disk has another content at the destination")
		}
		w.checkOnce("south1")
	})
}

// TestWarmGoesOn: an agent that died between two rounds does not send all again.
func TestWarmGoesOn(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.supervise()
	var mu sync.Mutex
	killed, full := false, 0
	w.busyGuest(func(host, point string) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case host == "south1" && point == "after journal prepared":
			r, err := w.hosts["south1"].current().agent.journal.move(moveName)
			if err == nil && r.In.Base == 0 {
				full++
			}
		case !killed && host == "north1" && point == "after journal round-done":
			killed = true
			w.hosts["north1"].kill()
			return errDead
		}
		return nil
	})
	st := w.warm("", 1)
	if !killed || full != 1 {
		t.Errorf("killed %v, all was sent %d times, want once", killed, full)
	}
	if !bytes.Equal(w.content("south1"), st.want) {
		t.Error("the disk has another content at the destination")
	}
	w.checkOnce("south1")
}

// TestWarmRecordLost: a guest whose hypervisor died has no record of its changes;
// all is sent once more, and right.
func TestWarmRecordLost(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	var once sync.Once
	w.busyGuest(func(host, point string) error {
		if host == "north1" && point == "after journal round-done" {
			once.Do(func() {
				w.fleet.Kill("north1", vmName)
				must(t, w.hosts["north1"].hyp.Start(context.Background(), vmName))
			})
		}
		return nil
	})
	st := w.warm("", 1)
	if !bytes.Equal(w.content("south1"), st.want) {
		t.Error("the disk has another content at the destination")
	}
	w.checkOnce("south1")
}

// TestWarmRecordLostAtTheEnd: with the VM off nothing tells what changed; the
// move does not guess.
func TestWarmRecordLostAtTheEnd(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	st := w.warm("replicate", 1)
	w.ask("north1", "shutdown", 1, &droverv1.Shutdown{GraceMillis: 2000})
	w.fleet.Kill("north1", vmName)
	w.ask("north1", "give-up", 1, &droverv1.GiveUp{})
	action := &droverv1.Copy{PeerAddress: w.hosts["south1"].address, PeerHost: "south1", Disks: diskPlans(), Changes: true}
	if _, err := w.run("north1", "copy-changes", 1, action); drover.KindOf(err) != drover.Refused {
		t.Fatalf("copy of changes that nobody knows: %v", err)
	}
	st.steps = w.warmSteps()[:7]
	w.unwarm(st, 1)
	w.checkOnce("north1")
}

// TestWarmVolumesReplaced: a destination whose volumes are not those of the last
// round gets everything.
func TestWarmVolumesReplaced(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.warm("replicate", 1)
	w.ask("south1", "undo-create-volumes", 1, &droverv1.DeleteVolumes{})
	w.ask("south1", "create-volumes", 2, &droverv1.CreateVolumes{Disks: diskPlans()})
	peer := w.hosts["south1"].address
	w.ask("north1", "replicate-again", 2, &droverv1.Replicate{PeerAddress: peer, PeerHost: "south1", Disks: diskPlans()})
	st := w.warm("", 2)
	if !bytes.Equal(w.content("south1"), st.want) {
		t.Error("the disk has another content at the destination")
	}
	w.checkOnce("south1")
}

// TestWarmOff: a guest that is shut down between two rounds is not started again
// for the rest.
func TestWarmOff(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	var once sync.Once
	w.busyGuest(func(host, point string) error {
		if host == "north1" && point == "after journal round-done" {
			once.Do(func() { must(t, w.hosts["north1"].hyp.Destroy(context.Background(), vmName)) })
		}
		return nil
	})
	st := w.warm("copy-changes", 1)
	if !bytes.Equal(w.content("south1"), st.want) {
		t.Error("the disk has another content at the destination")
	}
}

// TestGateActions: what was committed stays, what was given up is never committed.
func TestGateActions(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	if _, err := w.run("south1", "commit", 1, &droverv1.Commit{}); drover.KindOf(err) != drover.Refused {
		t.Errorf("commit of a move that is not here: %v", err)
	}
	w.warm("commit", 1)
	for _, action := range []any{&droverv1.StopVM{}, &droverv1.Undefine{}, &droverv1.DeleteVolumes{}} {
		if _, err := w.run("south1", "undo", 1, action); drover.KindOf(err) != drover.Refused {
			t.Errorf("%T after commit: %v, want refused", action, err)
		}
	}
	must(t, w.hosts["south1"].hyp.Destroy(t.Context(), vmName))
	if _, err := w.run("south1", "undo-off", 1, &droverv1.Undefine{}); drover.KindOf(err) != drover.Refused {
		t.Errorf("undefine of what was committed, and is off: %v", err)
	}
	if r := w.ask("south1", "settle", 1, &droverv1.AbortCommit{}); !r.GetMoved() {
		t.Error("abort-commit says that there was no commit")
	}

	w = newWorld(t)
	w.addVM()
	w.warm("gate", 1)
	if r := w.ask("south1", "settle", 1, &droverv1.AbortCommit{}); r.GetMoved() {
		t.Error("abort-commit says that there was a commit")
	}
	if _, err := w.run("south1", "commit", 1, &droverv1.Commit{}); drover.KindOf(err) != drover.Refused {
		t.Errorf("commit after abort-commit: %v", err)
	}
}

// TestWarmPreflight: disks that cannot record what changes are found before
// anything is done, with what would help; a VM that is off moves cold.
func TestWarmPreflight(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	ask := func() map[string]*droverv1.Check {
		t.Helper()
		resp, err := w.client("north1").CheckSource(t.Context(), &droverv1.CheckSourceRequest{
			Vm: vmName, Method: string(drover.Warm), TargetAddress: w.hosts["south1"].address, TargetHost: "south1",
		})
		must(t, err)
		checks := make(map[string]*droverv1.Check)
		for _, c := range resp.GetChecks() {
			checks[c.GetName()] = c
			if !c.GetOk() && c.GetFix() == "" {
				t.Errorf("%s says nothing about what to do", c.GetName())
			}
		}
		return checks
	}
	for _, name := range []string{"vm-state", "dirty-bitmaps", "disk-records"} {
		if c := ask()[name]; !c.GetOk() {
			t.Errorf("%s of a good VM: %v", name, c)
		}
	}
	h := w.hosts["north1"]
	must(t, h.hyp.Destroy(t.Context(), vmName))
	if c := ask()["vm-state"]; c.GetOk() {
		t.Error("a VM that is off may move warm")
	}
	raw := vmValue()
	raw.Disks[0].Path, raw.Disks[0].Format, raw.Disks[0].Backing = imgDir+"/web1.raw", "raw", nil
	h.volumes.PutFile(raw.Disks[0].Path, make([]byte, diskLen))
	_, err := h.hyp.Define(t.Context(), memory.NewDefinition(raw))
	must(t, err)
	if c := ask()["disk-records"]; c.GetOk() || !strings.Contains(c.GetDetail(), "qcow2") {
		t.Errorf("a raw disk: %v", c)
	}
}
