package agent

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

func vmValue() drover.VM {
	return drover.VM{
		Name: vmName, UUID: vmUUID, VCPUs: 1, MemoryBytes: 256 * drover.MiB, Machine: "pc-q35-10.0",
		Accelerator: "tcg", CPU: "qemu64", Persistent: true,
		Disks: []drover.Disk{{
			Target: "vda", Path: vdaPath, Format: "qcow2", VirtualBytes: diskLen,
			Backing: []drover.Backing{{Path: gold, Format: "raw", VirtualBytes: diskLen}},
		}},
		NICs: []drover.NIC{{MAC: "52:54:00:00:00:01", Network: "blue"}},
	}
}

func specOfDisk() driver.VolumeSpec {
	return driver.VolumeSpec{
		Path: vdaPath, Format: "qcow2", VirtualBytes: diskLen,
		Backing: drover.Backing{Path: gold, Format: "raw"},
	}
}

func diskPlans() []*droverv1.DiskPlan {
	return []*droverv1.DiskPlan{{
		Target: "vda", Path: vdaPath, Format: "qcow2", VirtualBytes: diskLen,
		BackingPath: gold, BackingFormat: "raw", TopOnly: true, AllocatedBytes: 1 << 20,
	}}
}

func (w *world) transferAction() *droverv1.Transfer {
	return &droverv1.Transfer{PeerAddress: w.hosts["south1"].address, PeerHost: "south1", Disks: diskPlans()}
}

func (w *world) abortAction() *droverv1.AbortTransfer {
	return &droverv1.AbortTransfer{PeerAddress: w.hosts["south1"].address, PeerHost: "south1"}
}

// begin does what comes before the transfer.
func (w *world) begin() {
	w.t.Helper()
	for _, s := range []struct {
		host, step string
		action     any
	}{
		{"south1", "reserve-target", &droverv1.Reserve{Target: true, MemoryBytes: int64(256 * drover.MiB)}},
		{"north1", "reserve-source", &droverv1.Reserve{}},
		{"south1", "create-volumes", &droverv1.CreateVolumes{Disks: diskPlans()}},
	} {
		w.ask(s.host, s.step, 1, s.action)
	}
}

// ask insists on an action until it has a definite end, as an executor does,
// and fails the test on an error.
func (w *world) ask(host, step string, generation int64, action any) *droverv1.RunResult {
	w.t.Helper()
	r, err := w.insist(host, step, generation, action)
	if err != nil {
		w.t.Fatalf("%s on %s: %v (%s)", step, host, err, drover.KindOf(err))
	}
	return r
}

func (w *world) insist(host, step string, generation int64, action any) (*droverv1.RunResult, error) {
	return w.insistAs(moveName, host, step, generation, action)
}

// insistAs insists for another move.
func (w *world) insistAs(move, host, step string, generation int64, action any) (*droverv1.RunResult, error) {
	var err error
	for range 200 {
		var r *droverv1.RunResult
		r, err = w.runAs(move, host, step, generation, action)
		if err == nil || !inconclusive(err) {
			return r, err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, fmt.Errorf("no definite end: %w", err)
}

// inconclusive reports whether an error leaves open how the action ended.
// A reset connection is one, whatever kind the transport gives it.
func inconclusive(err error) bool {
	return drover.KindOf(err).Retryable() || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// finish takes the move to its end the way the executor's table does, and
// returns where the VM is.
func (w *world) finish(generation int64, transferred error) string {
	w.t.Helper()
	moved := transferred == nil
	if !moved {
		r := w.ask("north1", "transfer", generation, w.abortAction())
		moved = r.GetMoved()
	}
	at := "south1"
	if moved {
		w.ask("south1", "verify", generation, &droverv1.Verify{Running: true})
		w.ask("north1", "release-source", generation, &droverv1.ReleaseSource{Disks: diskPlans()})
	} else {
		at = "north1"
		w.ask("south1", "create-volumes", generation, &droverv1.DeleteVolumes{})
	}
	w.ask("south1", "release", generation, &droverv1.Release{Target: true})
	w.ask("north1", "release", generation, &droverv1.Release{})
	return at
}

func TestLive(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.fleet.SetTransfer(w.carryBytes)
	w.begin()
	r, err := w.run("north1", "transfer", 1, w.transferAction())
	must(t, err)
	if !r.GetMoved() || r.GetMemoryBytes() == 0 || r.GetDiskBytes() == 0 {
		t.Errorf("result %v", r)
	}
	if wire, guest := r.GetPathWireBytes(), r.GetPath().GetMemory().GetGuestBytes()+r.GetPath().GetDisk().GetGuestBytes(); wire == 0 || wire > guest {
		t.Errorf("%d bytes on the path for %d of the guest's", wire, guest)
	}
	if stop, run := r.GetStoppedUnixNanos(), r.GetResumedUnixNanos(); stop == 0 || run < stop {
		t.Errorf("stopped at %d, resumed at %d", stop, run)
	}
	again, err := w.run("north1", "transfer", 2, w.transferAction())
	must(t, err)
	if !again.GetMoved() || again.GetResumedUnixNanos() != r.GetResumedUnixNanos() {
		t.Errorf("asked again: %v, first %v", again, r)
	}
	if at := w.finish(2, nil); at != "south1" {
		t.Errorf("at %s", at)
	}
	w.checkOnce("south1")
}

func TestLiveCanceled(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	flying := make(chan struct{})
	w.fleet.SetTransfer(func(ctx context.Context, _, _, _ string) error {
		close(flying)
		<-ctx.Done()
		return ctx.Err()
	})
	w.begin()
	ended := make(chan error, 1)
	go func() {
		_, err := w.run("north1", "transfer", 1, w.transferAction())
		ended <- err
	}()
	<-flying
	_, err := w.client("north1").Cancel(context.Background(), &droverv1.CancelRequest{
		Ref: &droverv1.MoveRef{Move: moveName, Generation: 1, Vm: vmName, VmUuid: vmUUID}, Step: "transfer",
	})
	must(t, err)
	if err := <-ended; drover.KindOf(err) != drover.Canceled {
		t.Fatalf("transfer ended with %v", err)
	}
	w.finish(1, errors.New("canceled"))
	w.checkOnce("north1")
}

// TestAbortWhileFlying undoes a transfer that is still under way, as another
// executor does.
func TestAbortWhileFlying(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	flying := make(chan struct{})
	w.fleet.SetTransfer(func(ctx context.Context, _, _, _ string) error {
		close(flying)
		<-ctx.Done()
		return ctx.Err()
	})
	w.begin()
	ended := make(chan error, 1)
	go func() {
		_, err := w.run("north1", "transfer", 1, w.transferAction())
		ended <- err
	}()
	<-flying
	w.finish(2, errors.New("another executor"))
	if err := <-ended; err == nil {
		t.Error("the transfer ended well")
	}
	if _, err := w.run("north1", "transfer", 1, w.transferAction()); drover.KindOf(err) != drover.Refused {
		t.Errorf("the old generation's transfer afterwards: %v", err)
	}
	w.checkOnce("north1")
}

func TestGenerations(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.ask("south1", "reserve-target", 3, &droverv1.Reserve{Target: true})
	for step, action := range map[string]any{
		"reserve-target": &droverv1.Reserve{Target: true}, "create-volumes": &droverv1.CreateVolumes{Disks: diskPlans()},
		"undo": &droverv1.DeleteVolumes{}, "release": &droverv1.Release{Target: true}, "verify": &droverv1.Verify{},
	} {
		if _, err := w.run("south1", step, 2, action); drover.KindOf(err) != drover.Refused {
			t.Errorf("%s of generation 2 after 3: %v", step, err)
		}
	}
	w.ask("south1", "release", 3, &droverv1.Release{Target: true})
	w.ask("south1", "release", 3, &droverv1.Release{Target: true})
	if _, err := w.run("south1", "reserve-target", 4, &droverv1.Reserve{Target: true}); drover.KindOf(err) != drover.Refused {
		t.Errorf("reserve after release: %v", err)
	}
	w.checkOnce("north1")
}
