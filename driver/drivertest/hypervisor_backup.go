package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// BackupSetup is what the suite of driver.Backuper needs of a host beside
// HypervisorHost.
type BackupSetup struct {
	HypervisorHost
	VM         drover.VM
	Define     func(t *testing.T, vm drover.VM) driver.Definition
	DiskFolder string
	// WriteGuest lets the running guest write n bytes, all of that value.
	WriteGuest func(t *testing.T, vm drover.VM, target string, off, n int64, value byte)
	// KillGuest ends the hypervisor's process without warning.
	KillGuest func(t *testing.T, vm drover.VM)
	// Volumes is the host's store, in which a disk is at the path that Path
	// gives.
	Volumes driver.Volumes
	Path    func(disk drover.Disk) string
	// Scratches counts the scratch files that are there.
	Scratches func(t *testing.T) int
}

// Backups runs the conformance suite of driver.Backuper.
func Backups(t *testing.T, setup BackupSetup) {
	for i, c := range []struct {
		name string
		run  func(*testing.T, *backupFixture)
	}{
		{"Rounds", backupRounds},
		{"Refused", backupRefused},
		{"Check", backupCheck},
		{"ClientDies", backupClientDies},
		{"ManagerRestarts", backupManagerRestarts},
		{"GuestStops", backupGuestStops},
		{"GuestIsKilled", backupGuestKilled},
		{"Remove", backupRemove},
		{"DefinedAnew", backupDefinedAnew},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, newBackupFixture(t, setup, i)) })
	}
}

// backupFixture is a VM with two disks that runs.
type backupFixture struct {
	BackupSetup
	h      driver.Hypervisor
	vm     drover.VM
	owner  driver.Owner
	folder string
	serial int
}

const backupDiskBytes = 16 * drover.MiB

func newBackupFixture(t *testing.T, setup BackupSetup, serial int) *backupFixture {
	f := &backupFixture{BackupSetup: setup, h: setup.Open(t), vm: setup.VM, owner: driver.MoveOwner("m-1")}
	f.vm.Name = "bak" + string(rune('a'+serial))
	f.vm.UUID = "d4000000-0000-4000-8000-00000000000" + string(rune('0'+serial))
	for _, target := range []string{"vda", "vdb"} {
		disk := drover.Disk{Target: target, Path: setup.DiskFolder + "/" + f.vm.Name + "-" + target + ".qcow2", Format: "qcow2", VirtualBytes: backupDiskBytes}
		f.vm.Disks = append(f.vm.Disks, disk)
		setup.CreateDisk(t, f.vm, disk)
	}
	var err error
	if f.folder, err = os.MkdirTemp("", "drv"); err != nil { // short, for the socket's path
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), suiteLimit)
		defer cancel()
		h := setup.Open(t)
		succeed(t, h.Destroy(ctx, f.vm.Name))
		succeed(t, h.Undefine(ctx, f.vm.Name))
		if n := setup.Scratches(t); n != 0 {
			t.Errorf("%d scratch files are left", n)
		}
		succeed(t, h.Close())
		succeed(t, f.h.Close())
		succeed(t, os.RemoveAll(f.folder))
	})
	f.define(t)
	f.start(t)
	return f
}

func (f *backupFixture) define(t *testing.T) {
	t.Helper()
	_, err := f.h.Define(t.Context(), f.Define(t, f.vm))
	succeed(t, err)
}

func (f *backupFixture) start(t *testing.T) {
	t.Helper()
	succeed(t, f.h.Start(t.Context(), f.vm.Name))
}

func (f *backupFixture) at(n int64) driver.Checkpoint {
	return driver.Checkpoint{Owner: f.owner, Number: n}
}

func (f *backupFixture) spec(number, since int64) driver.BackupSpec {
	f.serial++
	s := driver.BackupSpec{Checkpoint: f.at(number), Socket: filepath.Join(f.folder, "s"+string(rune('0'+f.serial)))}
	if since > 0 {
		s.Since = f.at(since)
	}
	for _, d := range f.vm.Disks {
		s.Disks = append(s.Disks, driver.BackupDisk{Target: d.Target, Scratch: f.DiskFolder + "/" + driver.ScratchName(f.owner, d.Target)})
	}
	return s
}

func (f *backupFixture) begin(t *testing.T, number, since int64) driver.Backup {
	t.Helper()
	b, err := f.h.BeginBackup(t.Context(), f.vm.Name, f.spec(number, since))
	succeed(t, err)
	return b
}

func (f *backupFixture) wantCheckpoints(t *testing.T, want ...int64) {
	t.Helper()
	got, err := f.h.Checkpoints(t.Context(), f.vm.Name)
	succeed(t, err)
	if !slices.EqualFunc(got, want, func(c driver.Checkpoint, n int64) bool { return c == f.at(n) }) {
		t.Fatalf("checkpoints %v, want %v of %s", got, want, f.owner)
	}
}

// extents are those of a backup's disk.
func (f *backupFixture) extents(t *testing.T, b driver.Backup, target string) []driver.Extent {
	t.Helper()
	im, err := b.Open(t.Context(), target)
	succeed(t, err)
	if im.Size() != int64(backupDiskBytes) {
		t.Errorf("%s has %d bytes, want %d", target, im.Size(), int64(backupDiskBytes))
	}
	return extentsOf(t, im)
}

// has fails unless the bytes there have that value.
func has(t *testing.T, im driver.ImageReader, off, n int64, value byte) {
	t.Helper()
	p := make([]byte, n)
	if _, err := im.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, bytes.Repeat([]byte{value}, int(n))) {
		t.Fatalf("the bytes at %d are not all %#x", off, value)
	}
}

const mib = int64(drover.MiB)

// backupRounds is the life of checkpoints: all, what changed, what changed since
// then, and the rest when the guest is off.
func backupRounds(t *testing.T, f *backupFixture) {
	ctx := t.Context()
	f.WriteGuest(t, f.vm, "vda", 1*mib, clusterBytes, 0x11)
	b := f.begin(t, 1, 0)
	im, err := b.Open(ctx, "vda")
	succeed(t, err)
	// What the guest overwrites now is served as it was.
	f.WriteGuest(t, f.vm, "vda", 1*mib, clusterBytes, 0x22)
	f.WriteGuest(t, f.vm, "vda", 8*mib, 2*clusterBytes, 0x33)
	has(t, im, 1*mib, clusterBytes, 0x11)
	has(t, im, 8*mib, 2*clusterBytes, 0)
	if got, want := extentsOf(t, im), []driver.Extent{{Offset: mib, Length: clusterBytes}}; !slices.Equal(got, want) {
		t.Errorf("extents %v, want %v", got, want)
	}
	for range 2 {
		succeed(t, b.End(ctx))
	}
	if n, err := f.h.ChangedBytes(ctx, f.vm.Name, f.at(1)); err != nil || n != 3*clusterBytes {
		t.Errorf("changed since the first: %v, %v; want %d bytes", n, err, 3*clusterBytes)
	}
	b = f.begin(t, 2, 1)
	f.WriteGuest(t, f.vm, "vdb", 4*mib, clusterBytes, 0x44)
	want := []driver.Extent{{Offset: mib, Length: clusterBytes}, {Offset: 8 * mib, Length: 2 * clusterBytes}}
	if got := f.extents(t, b, "vda"); !slices.Equal(got, want) {
		t.Errorf("changes %v, want %v", got, want)
	}
	if got := f.extents(t, b, "vdb"); got != nil {
		t.Errorf("changes of the other disk: %v, want none", got)
	}
	succeed(t, b.End(ctx))
	succeed(t, f.h.RemoveCheckpoint(ctx, f.vm.Name, f.at(1), []string{"vda", "vdb"}))
	f.wantCheckpoints(t, 2)
	f.WriteGuest(t, f.vm, "vda", 12*mib, clusterBytes, 0x55)
	succeed(t, f.h.Destroy(ctx, f.vm.Name))
	for i, want := range []driver.Extent{{Offset: 12 * mib, Length: clusterBytes}, {Offset: 4 * mib, Length: clusterBytes}} {
		r, err := f.Volumes.OpenChanges(ctx, f.Path(f.vm.Disks[i]), f.at(2))
		succeed(t, err)
		has(t, r, want.Offset, want.Length, []byte{0x55, 0x44}[i])
		if got := extentsOf(t, r); !slices.Equal(got, []driver.Extent{want}) {
			t.Errorf("%s: changed when off %v, want %v", f.vm.Disks[i].Target, got, want)
		}
		wantBitmaps(t, f.Volumes, f.Path(f.vm.Disks[i]), f.at(2))
	}
}

func backupRefused(t *testing.T, f *backupFixture) {
	ctx := t.Context()
	spec := f.spec(2, 1)
	_, err := f.h.BeginBackup(ctx, f.vm.Name, spec)
	failAs(t, err, drover.NotFound)
	spec.Checkpoint.Owner = "somebody"
	_, err = f.h.BeginBackup(ctx, f.vm.Name, spec)
	failAs(t, err, drover.Invalid)
	_, err = f.h.BeginBackup(ctx, "nobody", f.spec(1, 0))
	failAs(t, err, drover.NotFound)
	_, err = f.h.ChangedBytes(ctx, f.vm.Name, f.at(1))
	failAs(t, err, drover.NotFound)
	b := f.begin(t, 1, 0)
	succeed(t, b.End(ctx))
	_, err = f.h.BeginBackup(ctx, f.vm.Name, f.spec(1, 0))
	failAs(t, err, drover.Exists)
	f.wantCheckpoints(t, 1)
	succeed(t, f.h.Destroy(ctx, f.vm.Name))
	_, err = f.h.BeginBackup(ctx, f.vm.Name, f.spec(2, 1))
	failAs(t, err, drover.Refused)
	_, err = f.h.ChangedBytes(ctx, f.vm.Name, f.at(1))
	failAs(t, err, drover.Refused)
	succeed(t, f.h.EndBackup(ctx, f.vm.Name, f.owner))
	succeed(t, f.h.EndBackup(ctx, "nobody", f.owner))
}

func backupCheck(t *testing.T, f *backupFixture) {
	holds := func(want bool) {
		t.Helper()
		checks, err := f.h.CheckBackup(t.Context(), f.vm.Name)
		succeed(t, err)
		found := slices.ContainsFunc(checks, func(c drover.Check) bool { return !c.OK && !c.Warning })
		if len(checks) == 0 || found == want {
			t.Fatalf("checks %+v, want them to hold: %v", checks, want)
		}
		for _, c := range checks {
			if !c.OK && c.Fix == "" {
				t.Errorf("check %s says nothing about what to do", c.Name)
			}
		}
	}
	holds(true)
	b := f.begin(t, 1, 0)
	holds(false)
	// Another's is left alone.
	succeed(t, f.h.EndBackup(t.Context(), f.vm.Name, driver.MoveOwner("m-2")))
	holds(false)
	succeed(t, b.End(t.Context()))
	holds(true)
	_, err := f.h.CheckBackup(t.Context(), "nobody")
	failAs(t, err, drover.NotFound)
}

// backupClientDies: the next process ends what is under way and goes on from the
// last checkpoint.
func backupClientDies(t *testing.T, f *backupFixture) {
	f.begin(t, 1, 0)
	f.Crash(t, f.h)
	f.h = f.Open(t)
	f.goOn(t)
}

func backupManagerRestarts(t *testing.T, f *backupFixture) {
	f.begin(t, 1, 0)
	f.StopManager(t)
	failAs(t, f.h.EndBackup(t.Context(), f.vm.Name, f.owner), drover.Unavailable)
	f.StartManager(t)
	f.goOn(t)
}

// goOn ends the backup of an earlier life and takes the next.
func (f *backupFixture) goOn(t *testing.T) {
	t.Helper()
	for range 2 {
		succeed(t, f.h.EndBackup(t.Context(), f.vm.Name, f.owner))
	}
	wantState(t, f.h, f.vm.Name, drover.VMRunning)
	f.wantCheckpoints(t, 1)
	f.WriteGuest(t, f.vm, "vda", 2*mib, clusterBytes, 0x66)
	b := f.begin(t, 2, 1)
	want := []driver.Extent{{Offset: 2 * mib, Length: clusterBytes}}
	if got := f.extents(t, b, "vda"); !slices.Equal(got, want) {
		t.Errorf("changes %v, want %v", got, want)
	}
	succeed(t, b.End(t.Context()))
	f.wantCheckpoints(t, 1, 2)
}

// backupGuestStops: a guest that goes off ends its backup, and its changes are
// in the images; started again, the record goes on.
func backupGuestStops(t *testing.T, f *backupFixture) {
	ctx := t.Context()
	b := f.begin(t, 1, 0)
	f.WriteGuest(t, f.vm, "vda", 3*mib, clusterBytes, 0x77)
	succeed(t, f.h.Destroy(ctx, f.vm.Name))
	succeed(t, b.End(ctx))
	want := []driver.Extent{{Offset: 3 * mib, Length: clusterBytes}}
	if got := changesOf(t, f.Volumes, f.Path(f.vm.Disks[0]), f.at(1)); !slices.Equal(got, want) {
		t.Errorf("changes when off %v, want %v", got, want)
	}
	f.start(t)
	f.WriteGuest(t, f.vm, "vda", 5*mib, clusterBytes, 0x88)
	b = f.begin(t, 2, 1)
	want = append(want, driver.Extent{Offset: 5 * mib, Length: clusterBytes})
	if got := f.extents(t, b, "vda"); !slices.Equal(got, want) {
		t.Errorf("changes after a restart %v, want %v", got, want)
	}
	succeed(t, b.End(ctx))
}

// backupGuestKilled: what was recorded is lost, which must be seen; it can still
// be removed, and all begun anew.
func backupGuestKilled(t *testing.T, f *backupFixture) {
	ctx := t.Context()
	succeed(t, f.begin(t, 1, 0).End(ctx))
	f.start(t)
	f.WriteGuest(t, f.vm, "vda", 3*mib, clusterBytes, 0x99)
	succeed(t, f.h.Destroy(ctx, f.vm.Name)) // the record is in the images
	f.start(t)                              // and in use
	f.KillGuest(t, f.vm)
	eventually(t, "wait until it is seen that it is dead", func() error {
		vm, err := f.h.VM(ctx, f.vm.Name)
		if err == nil && vm.State != drover.VMCrashed && vm.State != drover.VMOff {
			err = fmt.Errorf("it is %s", vm.State)
		}
		return err
	})
	_, err := f.Volumes.OpenChanges(ctx, f.Path(f.vm.Disks[0]), f.at(1))
	failAs(t, err, drover.NotFound)
	f.start(t)
	_, err = f.h.BeginBackup(ctx, f.vm.Name, f.spec(2, 1))
	failAs(t, err, drover.NotFound)
	succeed(t, f.h.RemoveCheckpoint(ctx, f.vm.Name, f.at(1), []string{"vda", "vdb"}))
	f.wantCheckpoints(t)
	succeed(t, f.begin(t, 3, 0).End(ctx))
	succeed(t, f.h.Destroy(ctx, f.vm.Name))
	wantBitmaps(t, f.Volumes, f.Path(f.vm.Disks[0]), f.at(3))
}

func backupRemove(t *testing.T, f *backupFixture) {
	ctx := t.Context()
	both := []string{"vda", "vdb"}
	for n := int64(1); n <= 3; n++ {
		succeed(t, f.begin(t, n, 0).End(ctx))
	}
	succeed(t, f.h.RemoveCheckpoint(ctx, f.vm.Name, f.at(2), both))
	succeed(t, f.h.RemoveCheckpoint(ctx, f.vm.Name, f.at(2), both))
	succeed(t, f.h.RemoveCheckpoint(ctx, f.vm.Name, f.at(9), both))
	f.wantCheckpoints(t, 1, 3)
	failAs(t, f.h.RemoveCheckpoint(ctx, "nobody", f.at(1), both), drover.NotFound)
	failAs(t, f.h.RemoveCheckpoint(ctx, f.vm.Name, driver.Checkpoint{}, both), drover.Invalid)
	succeed(t, f.h.Destroy(ctx, f.vm.Name))
	// Off, the manager's knowledge goes here, the images' there.
	succeed(t, f.h.RemoveCheckpoint(ctx, f.vm.Name, f.at(1), both))
	f.wantCheckpoints(t, 3)
	for _, d := range f.vm.Disks {
		wantBitmaps(t, f.Volumes, f.Path(d), f.at(1), f.at(3))
		succeed(t, f.Volumes.RemoveBitmap(ctx, f.Path(d), f.at(1)))
	}
	f.start(t)
	succeed(t, f.begin(t, 4, 3).End(ctx))
}

// backupDefinedAnew: a record that the manager has forgotten goes from a running
// VM all the same.
func backupDefinedAnew(t *testing.T, f *backupFixture) {
	ctx := t.Context()
	succeed(t, f.begin(t, 1, 0).End(ctx))
	succeed(t, f.h.Destroy(ctx, f.vm.Name))
	succeed(t, f.h.Undefine(ctx, f.vm.Name))
	succeed(t, f.Volumes.RemoveBitmap(ctx, f.Path(f.vm.Disks[1]), f.at(1))) // half of it
	f.define(t)
	f.start(t)
	f.wantCheckpoints(t)
	for range 2 {
		succeed(t, f.h.RemoveCheckpoint(ctx, f.vm.Name, f.at(1), []string{"vda", "vdb"}))
	}
	succeed(t, f.h.Destroy(ctx, f.vm.Name))
	for _, d := range f.vm.Disks {
		wantBitmaps(t, f.Volumes, f.Path(d))
	}
}
