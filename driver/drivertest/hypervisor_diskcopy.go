package drivertest

import (
	"fmt"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// another is the fixture's disk, as a new image beside it.
func (f *fixture) another(t *testing.T, suffix string) drover.Disk {
	t.Helper()
	d := f.disk
	d.Path = f.DiskFolder + "/" + f.vm.Name + "-" + suffix + ".qcow2"
	vm := f.vm
	vm.Disks = []drover.Disk{d}
	f.Hosts[0].CreateDisk(t, vm, d)
	return d
}

// wantDisk checks where the running VM has its disk.
func (f *fixture) wantDisk(t *testing.T, want drover.Disk) {
	t.Helper()
	vm, err := f.a.VM(t.Context(), f.vm.Name)
	succeed(t, err)
	if len(vm.Disks) != 1 || vm.Disks[0].Path != want.Path || vm.Disks[0].Format != want.Format {
		t.Fatalf("its disks are %+v, want one at %s", vm.Disks, want.Path)
	}
}

// testDiskCopy copies a running VM's disk, drops the copy, makes another and has the
// VM go on with that, which its next start does too.
func testDiskCopy(t *testing.T, f *fixture) {
	ctx, name := t.Context(), f.vm.Name
	f.run(t, true)
	_, err := f.a.DiskCopyState(ctx, name, "vda")
	failAs(t, err, drover.NotFound)
	failAs(t, f.a.SetDiskCopyRate(ctx, name, "vda", drover.Mbps), drover.NotFound)
	failAs(t, f.a.EndDiskCopy(ctx, name, "vda", true), drover.NotFound)
	succeed(t, f.a.EndDiskCopy(ctx, name, "vda", false))

	dropped, kept := f.another(t, "dropped"), f.another(t, "kept")
	failAs(t, f.a.CopyDisk(ctx, name, driver.DiskCopy{Target: "vdz", Path: kept.Path, Format: kept.Format}), drover.NotFound)
	failAs(t, f.a.CopyDisk(ctx, "no-such-vm", driver.DiskCopy{Target: "vda", Path: kept.Path, Format: kept.Format}), drover.NotFound)
	c := driver.DiskCopy{Target: "vda", Path: dropped.Path, Format: dropped.Format, Rate: 800 * drover.Mbps}
	for range 2 {
		succeed(t, f.a.CopyDisk(ctx, name, c))
	}
	elsewhere := c
	elsewhere.Path = kept.Path
	failAs(t, f.a.CopyDisk(ctx, name, elsewhere), drover.Refused)
	succeed(t, f.a.SetDiskCopyRate(ctx, name, "vda", 0))
	succeed(t, f.a.EndDiskCopy(ctx, name, "vda", false))
	_, err = f.a.DiskCopyState(ctx, name, "vda")
	failAs(t, err, drover.NotFound)
	f.wantDisk(t, f.disk)

	succeed(t, f.a.CopyDisk(ctx, name, elsewhere))
	eventually(t, "wait until the copy is ready", func() error {
		s, err := f.a.DiskCopyState(ctx, name, "vda")
		if err == nil && !s.Ready {
			err = fmt.Errorf("it is at %s of %s", s.DoneBytes, s.TotalBytes)
		}
		if err == nil && s.Path != kept.Path {
			t.Fatalf("it goes to %s, want %s", s.Path, kept.Path)
		}
		return err
	})
	f.wantDisk(t, f.disk)
	succeed(t, f.a.EndDiskCopy(ctx, name, "vda", true))
	f.wantDisk(t, kept)
	failAs(t, f.a.EndDiskCopy(ctx, name, "vda", true), drover.NotFound)

	succeed(t, f.a.Destroy(ctx, name))
	failAs(t, f.a.CopyDisk(ctx, name, c), drover.Refused)
	f.wantDisk(t, kept) // in its definition
	f.vm.Disks = []drover.Disk{kept}
	f.Hosts[0].VerifyDisks(t, f.vm)
}
