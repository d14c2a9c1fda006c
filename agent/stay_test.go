package agent

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/nbd"
)

// bringName is the move of disks after moveName has left them.
const bringName = "move-2"

func wholeDisks() []*droverv1.DiskPlan {
	return []*droverv1.DiskPlan{{Target: "vda", Path: vdaPath, Format: "qcow2", VirtualBytes: diskLen, AllocatedBytes: diskLen}}
}

// stay moves the VM from north1 to south1 and leaves its disk, as the executor's
// table does, and returns where the VM is then.
func (w *world) stay(generation int64) string {
	w.t.Helper()
	w.ask("south1", "reserve-target", generation, &droverv1.Reserve{Target: true, MemoryBytes: int64(256 * drover.MiB)})
	w.ask("north1", "reserve-source", generation, &droverv1.Reserve{})
	w.ask("north1", "lend-disks", generation, &droverv1.LendDisks{PeerHost: "south1", Disks: wholeDisks()})
	moved := false
	r, err := w.insist("south1", "attach-disks", generation, &droverv1.AttachDisks{
		PeerAddress: w.hosts["north1"].address, PeerHost: "north1", Disks: wholeDisks(),
	})
	if err == nil {
		_, err = w.insist("north1", "transfer", generation, &droverv1.Transfer{
			PeerAddress: w.hosts["south1"].address, PeerHost: "south1", Remote: r.GetRemoteDisks(),
		})
		moved = err == nil
		if err != nil {
			moved = w.ask("north1", "settle-transfer", generation, w.abortAction()).GetMoved()
		}
	}
	at := "south1"
	if moved {
		w.ask("south1", "verify", generation, &droverv1.Verify{Running: true})
		w.ask("north1", "release-source", generation, &droverv1.ReleaseSource{KeepVolumes: true})
	} else {
		at = "north1"
		w.ask("south1", "undo-attach-disks", generation, &droverv1.DetachDisks{})
		w.ask("north1", "undo-lend-disks", generation, &droverv1.ReclaimDisks{})
	}
	w.ask("south1", "release", generation, &droverv1.Release{Target: true})
	w.ask("north1", "release", generation, &droverv1.Release{})
	return at
}

// bring brings the disk to south1, and returns where it is then.
func (w *world) bring(generation int64) string {
	w.t.Helper()
	ask := func(host, step string, action any) *droverv1.RunResult {
		w.t.Helper()
		r, err := w.insistAs(bringName, host, step, generation, action)
		if err != nil {
			w.t.Fatalf("%s on %s: %v (%s)", step, host, err, drover.KindOf(err))
		}
		return r
	}
	ask("south1", "reserve-target", &droverv1.Reserve{Target: true, DisksOnly: true})
	ask("north1", "reserve-source", &droverv1.Reserve{DisksOnly: true})
	ask("south1", "create-volumes", &droverv1.CreateVolumes{Disks: wholeDisks()})
	_, err := w.insistAs(bringName, "south1", "bring-disks", generation, &droverv1.BringDisks{Disks: wholeDisks()})
	at := "south1"
	if err == nil || ask("south1", "settle-bring-disks", &droverv1.AbortBring{}).GetMoved() {
		ask("south1", "verify", &droverv1.Verify{Running: true})
		ask("south1", "detach-disks", &droverv1.DetachDisks{})
		ask("north1", "release-source", &droverv1.ReleaseSource{Disks: wholeDisks()})
	} else {
		at = "north1"
		ask("south1", "undo-create-volumes", &droverv1.DeleteVolumes{})
	}
	ask("south1", "release", &droverv1.Release{Target: true})
	ask("north1", "release", &droverv1.Release{})
	return at
}

// checkDisks fails unless the VM runs once, at one host, with its disk at the other
// or at the same, and nothing else is left.
func (w *world) checkDisks(vmAt, diskAt string) {
	t := w.t
	t.Helper()
	if got := w.fleet.RunsAt(vmName); !slices.Equal(got, []string{vmAt}) {
		t.Errorf("the vm runs at %v, want %s", got, vmAt)
	}
	for _, v := range w.fleet.Violations() {
		t.Errorf("violation: %s", v)
	}
	apart := vmAt != diskAt
	for name, h := range w.hosts {
		_, err := h.volumes.Volume(t.Context(), vdaPath)
		if there := err == nil; there != (name == diskAt) {
			t.Errorf("host %s: disk there is %v, want it at %s", name, there, diskAt)
		}
		j := h.current().agent.journal
		lent, err := disksIn[lentDisk](j, lentBucket, "")
		must(t, err)
		remote, err := disksIn[remoteDisk](j, remoteBucket, "")
		must(t, err)
		if (len(lent) == 1) != (apart && name == diskAt) || (len(remote) == 1) != (apart && name == vmAt) {
			t.Errorf("host %s lends %d disks and has ways to %d", name, len(lent), len(remote))
		}
		moves, err := j.moves()
		must(t, err)
		if len(moves) != 0 {
			t.Errorf("host %s: %d moves are left in the journal", name, len(moves))
		}
	}
	vm, err := w.hosts[vmAt].hyp.VM(t.Context(), vmName)
	must(t, err)
	want := vdaPath
	if apart {
		want = driver.RemoteDiskPath("vda")
	}
	if vm.Disks[0].Path != want {
		t.Errorf("its disk is at %s, want %s", vm.Disks[0].Path, want)
	}
}

// qemu connects to the VM's disk as the hypervisor does.
func (w *world) qemu(at string) *nbd.Client {
	w.t.Helper()
	a := w.hosts[at].current().agent
	var d net.Dialer
	conn, err := d.DialContext(w.t.Context(), "unix", a.remote.socketOf(remoteDisk{VMUUID: vmUUID, Target: "vda"}))
	must(w.t, err)
	c, err := nbd.New(w.t.Context(), conn, nbd.Options{Export: "vda"})
	must(w.t, err)
	return c
}

// TestDisksStay leaves a disk behind, works on it over the agents, through the death
// of the one that has it, sees what is shown of it, and brings it.
func TestDisksStay(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.supervise()
	before := w.content("north1")
	if at := w.stay(1); at != "south1" {
		t.Fatalf("the vm is at %s", at)
	}
	w.checkDisks("south1", "north1")

	disk := w.qemu("south1")
	got := make([]byte, diskLen)
	_, err := disk.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, before) {
		t.Error("the disk reads otherwise than it was left")
	}
	for i, change := range []func(){func() {}, w.hosts["north1"].kill} {
		p := bytes.Repeat([]byte{byte('x' + i)}, 8192)
		change()
		_, err = disk.WriteAt(p, int64(i)*8192)
		must(t, err)
		copy(before[i*8192:], p)
	}
	got = make([]byte, diskLen)
	if _, err := io.ReadFull(io.NewSectionReader(disk, 0, diskLen), got); err != nil || !bytes.Equal(got, before) {
		t.Errorf("the disk does not hold what was written (%v)", err)
	}
	vm := drover.VM{Name: vmName, UUID: vmUUID, Disks: []drover.Disk{{Target: "vda", Path: driver.RemoteDiskPath("vda")}}}
	w.hosts["south1"].current().agent.fillVM(context.Background(), &vm)
	if io := vm.RemoteIO; io == nil || io.WrittenBytes != 2*8192 || io.ReadBytes != 2*diskLen || io.Operations == 0 || io.LatencyMillis <= 0 {
		t.Errorf("what crosses is told as %+v", io)
	}
	if l := vm.Disks[0].Left; l == nil || *l != (drover.LeftDisk{Host: "north1", Path: vdaPath, Format: "qcow2"}) {
		t.Errorf("the disk is told to be at %+v", l)
	}
	must(t, disk.Close())

	if at := w.bring(1); at != "south1" {
		t.Fatalf("the disk is at %s", at)
	}
	w.checkDisks("south1", "south1")
}

// Another host gets nothing, and nobody before the VM has been given up.
func TestLentToOneOnly(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.ask("north1", "reserve-source", 1, &droverv1.Reserve{})
	w.ask("north1", "lend-disks", 1, &droverv1.LendDisks{PeerHost: "south1", Disks: wholeDisks()})
	l := w.hosts["north1"].current().agent.lent
	for _, c := range []struct{ peer, disk string }{
		{"east1", diskKey(vmUUID, "vda")}, {"south1", diskKey(vmUUID, "vdb")}, {"south1", "../" + vdaPath}, {"", diskKey(vmUUID, "vda")},
	} {
		if _, err := l.share(c.peer, c.disk); drover.KindOf(err) != drover.Refused {
			t.Errorf("%s gets %s: %v", c.peer, c.disk, err)
		}
	}
	if _, err := l.share("south1", diskKey(vmUUID, "vda")); err != nil {
		t.Fatal(err)
	}
	if err := l.a.mayLend(lentDisk{Move: moveName, VMUUID: vmUUID, Target: "vda"}); drover.KindOf(err) != drover.Refused {
		t.Errorf("the image may be opened while the VM runs on it: %v", err)
	}
	w.ask("north1", "undo-lend-disks", 1, &droverv1.ReclaimDisks{})
	if _, err := l.share("south1", diskKey(vmUUID, "vda")); drover.KindOf(err) != drover.Refused {
		t.Errorf("it is lent still: %v", err)
	}
	w.ask("north1", "release", 1, &droverv1.Release{})
	w.checkOnce("north1")
}

// stayStride is how far apart the points are at which TestStayDieAnywhere kills: most
// are those of TestDieAnywhere, too.
const stayStride = 3

// TestStayDieAnywhere kills either agent at journal writes and hypervisor calls of
// a move that leaves its disk, and of one that brings it.
func TestStayDieAnywhere(t *testing.T) {
	whole := newWorld(t)
	whole.addVM()
	whole.supervise()
	points := whole.tracePoints()
	whole.stay(1)
	stayed := len(points())
	whole.bring(1)
	for i, p := range points() {
		if i%stayStride != 0 {
			continue
		}
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.addVM()
			w.supervise()
			died := w.dieAt(p)
			vmAt := w.stay(1)
			diskAt := "north1"
			if vmAt == "south1" {
				if i < stayed {
					w.checkDisks("south1", "north1")
				}
				diskAt = w.bring(1)
			}
			if !died() && vmAt == "south1" {
				t.Fatal("the point was not reached")
			}
			for end := time.Now().Add(5 * time.Second); w.hosts[p.host].current().dead.Load() && time.Now().Before(end); {
				time.Sleep(5 * time.Millisecond)
			}
			w.checkDisks(vmAt, diskAt)
		})
	}
}
