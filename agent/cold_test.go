package agent

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver/memory"
)

// coldStep is a line of a cold move's table.
type coldStep struct {
	host, step string
	do, undo   any
}

func (w *world) coldSteps() []coldStep {
	peer := w.hosts["south1"].address
	return []coldStep{
		{host: "south1", step: "reserve-target", do: &droverv1.Reserve{Target: true}},
		{host: "north1", step: "reserve-source", do: &droverv1.Reserve{Replica: w.replica}},
		{host: "south1", step: "create-volumes", do: &droverv1.CreateVolumes{Disks: diskPlans(), Replica: w.replica}, undo: &droverv1.DeleteVolumes{}},
		{host: "north1", step: "shutdown", do: &droverv1.Shutdown{GraceMillis: 2000}, undo: &droverv1.TakeBack{Start: true}},
		{host: "north1", step: "give-up", do: &droverv1.GiveUp{}, undo: &droverv1.TakeBack{}},
		{host: "north1", step: "copy", do: &droverv1.Copy{PeerAddress: peer, PeerHost: "south1", Disks: diskPlans()}},
		{host: "south1", step: "define", do: nil, undo: &droverv1.Undefine{}},
		{host: "south1", step: "start", do: &droverv1.StartVM{}, undo: &droverv1.Undefine{}},
		{host: "south1", step: "verify", do: &droverv1.Verify{Running: true}},
		{host: "north1", step: "release-source", do: &droverv1.ReleaseSource{Disks: diskPlans()}},
		{host: "south1", step: "release", do: &droverv1.Release{Target: true}},
		{host: "north1", step: "release", do: &droverv1.Release{}},
	}
}

// cold runs the steps up to the one called last (all when empty) and returns
// how many it did.
func (w *world) cold(last string, generation int64) (done int, err error) {
	w.t.Helper()
	var def []byte
	for i, s := range w.coldSteps() {
		action := s.do
		if s.step == "define" {
			action = &droverv1.Define{Definition: def}
		}
		r, err := w.insist(s.host, s.step, generation, action)
		if err != nil {
			return i, err
		}
		switch s.step {
		case "give-up":
			def = r.GetDefinition()
		case "shutdown":
			if !r.GetWasRunning() {
				w.t.Error("shutdown: the vm was running, the result says not")
			}
		case "copy":
			w.fleet.CopyDisk(vdaPath, "north1", "south1")
		}
		if s.step == last {
			return i + 1, nil
		}
	}
	return len(w.coldSteps()), nil
}

// undo takes back the first n steps in reverse order.
func (w *world) undo(n int, generation int64) {
	w.t.Helper()
	steps := w.coldSteps()[:n]
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].undo != nil {
			w.ask(steps[i].host, steps[i].step, generation, steps[i].undo)
		}
	}
	w.ask("south1", "release", generation, &droverv1.Release{Target: true})
	w.ask("north1", "release", generation, &droverv1.Release{})
}

func TestCold(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	want := w.content("north1")
	_, err := w.cold("", 1)
	must(t, err)
	if !bytes.Equal(w.content("south1"), want) {
		t.Error("the disk has another content at the destination")
	}
	v, err := w.hosts["south1"].volumes.Volume(t.Context(), vdaPath)
	must(t, err)
	if len(v.Backing) != 1 || v.Backing[0].Path != gold {
		t.Errorf("backing at the destination: %v", v.Backing)
	}
	// Four clusters of data and two of zeros; the golden content did not cross.
	if v.AllocatedBytes > 1*drover.MiB {
		t.Errorf("%s allocated at the destination", v.AllocatedBytes)
	}
	w.checkOnce("south1")
}

// TestColdUndo undoes after each step that can be undone, with each undo asked
// for twice.
func TestColdUndo(t *testing.T) {
	for _, last := range []string{"reserve-target", "reserve-source", "create-volumes", "shutdown", "give-up", "copy", "define"} {
		t.Run(last, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			want := w.content("north1")
			n, err := w.cold(last, 1)
			must(t, err)
			steps := w.coldSteps()[:n]
			for i := len(steps) - 1; i >= 0; i-- {
				if steps[i].undo != nil {
					w.ask(steps[i].host, steps[i].step, 1, steps[i].undo)
					w.ask(steps[i].host, steps[i].step, 2, steps[i].undo)
				}
			}
			w.undo(0, 2)
			if !bytes.Equal(w.content("north1"), want) {
				t.Error("the source's disk has changed")
			}
			w.checkOnce("north1")
		})
	}
}

// TestLatePowerOff has a guest power off only when its move is being undone: it
// was asked to, and must run on.
func TestLatePowerOff(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	source := w.hosts["north1"]
	n, err := w.cold("create-volumes", 1)
	must(t, err)
	source.deaf.Store(true)
	for _, heeds := range []bool{true, false} {
		_, err = w.run("north1", "shutdown", 1, &droverv1.Shutdown{GraceMillis: 500})
		if drover.KindOf(err) != drover.Refused {
			t.Fatalf("shutdown of a guest that does not power off: %v", err)
		}
		var off sync.WaitGroup
		if heeds {
			off.Go(func() {
				time.Sleep(150 * time.Millisecond) // take-back is waiting by then
				if err := source.hyp.Destroy(t.Context(), vmName); err != nil {
					t.Error(err)
				}
			})
		}
		w.ask("north1", "shutdown", 1, &droverv1.TakeBack{})
		off.Wait()
		v, err := source.hyp.VM(t.Context(), vmName)
		if must(t, err); v.State != drover.VMRunning {
			t.Errorf("the guest is %s after its move was undone, heeding late: %v", v.State, heeds)
		}
	}
	w.undo(n, 1)
	w.checkOnce("north1")
}

// TestColdSettle asks for the undoing of define after start: it must be
// refused, since the guest has run.
func TestColdSettle(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	_, err := w.cold("start", 1)
	must(t, err)
	for range 2 {
		if _, err := w.run("south1", "start", 2, &droverv1.Undefine{}); drover.KindOf(err) != drover.Refused {
			t.Fatalf("undefine after start: %v", err)
		}
		// Also when it has powered off by itself meanwhile.
		must(t, w.hosts["south1"].hyp.Destroy(t.Context(), vmName))
	}
	if _, err := w.run("south1", "undo", 2, &droverv1.DeleteVolumes{}); drover.KindOf(err) != drover.Refused {
		t.Errorf("delete volumes after start: %v", err)
	}
	if _, err := w.run("north1", "release", 2, &droverv1.Release{}); drover.KindOf(err) != drover.Refused {
		t.Errorf("release of a source that has the only definition: %v", err)
	}
	must(t, w.hosts["south1"].hyp.Start(t.Context(), vmName))
	w.ask("north1", "release-source", 2, &droverv1.ReleaseSource{Disks: diskPlans()})
	w.ask("north1", "release", 2, &droverv1.Release{})
	w.ask("south1", "release", 2, &droverv1.Release{Target: true})
	w.checkOnce("south1")
}

// TestColdDieAnywhere kills either agent at every point of a cold move; the
// same steps are asked for again.
func TestColdDieAnywhere(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	points := w.tracePoints()
	_, err := w.cold("", 1)
	must(t, err)
	campaign(t, points(), func(t *testing.T, i int, p deathPoint) {
		w := newWorld(t)
		w.addVM()
		want := w.content("north1")
		w.supervise()
		died := w.dieAt(p)
		if i%3 == 2 {
			// Another executor gives up and undoes, where it still can.
			n, err := w.cold("copy", 1)
			must(t, err)
			w.undo(n, 2)
			// A point that lies in what was not done leaves a plain undo to
			// judge, by the same rule.
			t.Logf("died: %v", died())
			if !bytes.Equal(w.content("north1"), want) {
				t.Error("the source's disk has changed")
			}
			w.checkOnce("north1")
			return
		}
		_, err := w.cold("", 1)
		must(t, err)
		if !died() {
			t.Fatal("the point was not reached")
		}
		if !bytes.Equal(w.content("south1"), want) {
			t.Error("the disk has another content at the destination")
		}
		w.checkOnce("south1")
	})
}

func TestSourceIsNotDeletedTooEarly(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	_, err := w.cold("create-volumes", 1)
	must(t, err)
	if _, err := w.run("north1", "release-source", 1, &droverv1.ReleaseSource{Disks: diskPlans()}); drover.KindOf(err) != drover.Refused {
		t.Errorf("release of a source whose vm runs: %v", err)
	}
	if _, err := w.run("north1", "copy", 1, &droverv1.Copy{PeerAddress: w.hosts["south1"].address, PeerHost: "south1", Disks: diskPlans()}); drover.KindOf(err) != drover.Refused {
		t.Errorf("copy of a running vm's disk: %v", err)
	}
	if _, err := w.run("north1", "give-up", 1, &droverv1.GiveUp{}); drover.KindOf(err) != drover.Refused {
		t.Errorf("give-up of a running vm: %v", err)
	}
	if _, err := w.run("south1", "define", 1, &droverv1.Define{Definition: memory.NewDefinition(vmValue())}); drover.KindOf(err) != drover.Refused {
		t.Errorf("define before the disks are copied: %v", err)
	}
	w.undo(4, 1)
	w.checkOnce("north1")
}

// TestForeignVolume: what was there before the move is neither used nor
// deleted by its undoing.
func TestForeignVolume(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	other := bytes.Repeat([]byte("x"), 512)
	w.hosts["south1"].volumes.PutFile(vdaPath, other)
	w.ask("south1", "reserve-target", 1, &droverv1.Reserve{Target: true})
	if _, err := w.run("south1", "create-volumes", 1, &droverv1.CreateVolumes{Disks: diskPlans()}); err == nil {
		t.Fatal("a volume was made over another's file")
	}
	w.ask("south1", "create-volumes", 1, &droverv1.DeleteVolumes{})
	w.ask("south1", "release", 1, &droverv1.Release{Target: true})
	if err := w.hosts["south1"].volumes.Create(context.Background(), specOfDisk()); drover.KindOf(err) != drover.Exists {
		t.Errorf("the other's file is gone: creating at its path gives %v", err)
	}
	if got := w.fleet.RunsAt(vmName); len(got) != 1 {
		t.Error(errors.New("the vm does not run any more"))
	}
}
