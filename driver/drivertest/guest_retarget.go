package drivertest

import (
	"bytes"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// The identities of the suite's definitions.
const (
	retargetUUID = "d4000000-0000-4000-8000-000000000001"
	cloneUUID    = "d4000000-0000-4000-8000-000000000002"
)

// original is a VM with two network cards and two disks.
func (f *guestsFixture) original() drover.VM {
	vm := f.VM
	vm.Name, vm.UUID = "original", retargetUUID
	vm.Labels = map[string]string{"role": "test", "odd": `<"&>`}
	vm.Probe = &drover.ProbeTarget{TCP: "192.0.2.7:7", Kind: "line", HTTP: "http://192.0.2.7/"}
	vm.NICs = []drover.NIC{
		{MAC: "52:54:00:d4:00:01", Network: f.Networks[0], Model: "virtio"},
		{MAC: "52:54:00:d4:00:02", Network: f.Networks[0], Model: "virtio"},
	}
	vm.Disks = []drover.Disk{
		{Target: "vda", Path: f.DiskFolder + "/original-a.qcow2", Format: "qcow2"},
		{Target: "vdb", Path: f.DiskFolder + "/original-b.qcow2", Format: "qcow2"},
	}
	return vm
}

// observed defines what Retarget made and returns how the hypervisor sees it.
func (f *guestsFixture) observed(t *testing.T, def driver.Definition) drover.VM {
	t.Helper()
	name, err := f.Hypervisor.Define(t.Context(), def)
	succeed(t, err)
	defer func() { succeed(t, f.Hypervisor.Undefine(t.Context(), name)) }()
	vm, err := f.Hypervisor.VM(t.Context(), name)
	succeed(t, err)
	return vm
}

// changed checks what a change makes of the original, and that the original's
// definition is left as it was.
func (f *guestsFixture) changed(t *testing.T, to driver.Retarget, change func(*drover.VM)) {
	t.Helper()
	def := f.Define(t, f.original())
	want := f.observed(t, def)
	before := bytes.Clone(def)
	got, err := f.g.Retarget(def, to)
	succeed(t, err)
	if !bytes.Equal(def, before) {
		t.Fatal("the definition that was handed in has changed")
	}
	change(&want)
	if d := cmp.Diff(want, f.observed(t, got)); d != "" {
		t.Errorf("%+v (-want +got):\n%s", to, d)
	}
	again, err := f.g.Retarget(def, to)
	succeed(t, err)
	if !bytes.Equal(got, again) {
		t.Error("the same change of the same definition gave another one")
	}
}

func guestsRetarget(t *testing.T, f *guestsFixture) {
	vm := f.original()
	f.changed(t, driver.Retarget{}, func(*drover.VM) {})
	f.changed(t, driver.Retarget{NICs: []driver.RetargetNIC{{MAC: "52:54:00:D4:00:02", Network: f.Networks[1]}}}, func(v *drover.VM) {
		v.NICs[1].Network = f.Networks[1]
	})
	f.changed(t, driver.Retarget{NICs: []driver.RetargetNIC{
		{MAC: vm.NICs[0].MAC, Network: f.Networks[1], NewMAC: "52:54:00:d4:00:02"},
		{MAC: vm.NICs[1].MAC, NewMAC: "52:54:00:d4:00:01"},
	}}, func(v *drover.VM) {
		v.NICs[0] = drover.NIC{MAC: "52:54:00:d4:00:02", Network: f.Networks[1], Model: "virtio"}
		v.NICs[1].MAC = "52:54:00:d4:00:01"
	})
	probe := drover.ProbeTarget{TCP: "198.51.100.7:7", Kind: "sheep", HTTP: "http://[2001:db8::7]/?x='1'&y=<2>"}
	f.changed(t, driver.Retarget{Probe: &probe}, func(v *drover.VM) { v.Probe = &probe })
	moved := f.DiskFolder + "/moved <&'>.qcow2"
	f.changed(t, driver.Retarget{Paths: map[string]string{vm.Disks[1].Path: moved}}, func(v *drover.VM) { v.Disks[1].Path = moved })
	at := driver.RetargetDisk{Target: "vdb", Socket: "/run/drover/r/<&'>/vdb"}
	f.changed(t, driver.Retarget{Disks: []driver.RetargetDisk{at}}, func(v *drover.VM) {
		v.Disks[1].Path, v.Disks[1].Format, v.Disks[1].Shared = driver.RemoteDiskPath("vdb"), "raw", true
	})
	// There and back again, and nothing where nothing changes.
	remote, err := f.g.Retarget(f.Define(t, vm), driver.Retarget{Disks: []driver.RetargetDisk{at}})
	succeed(t, err)
	home := driver.Retarget{Disks: []driver.RetargetDisk{{Target: "vdb", Path: vm.Disks[1].Path, Format: "qcow2"}}}
	back, err := f.g.Retarget(remote, home)
	succeed(t, err)
	if d := cmp.Diff(f.observed(t, f.Define(t, vm)), f.observed(t, back)); d != "" {
		t.Errorf("a disk that was at a socket (-want +got):\n%s", d)
	}
	same, err := f.g.Retarget(back, home)
	succeed(t, err)
	if !bytes.Equal(same, back) {
		t.Error("a disk that is there already has changed its definition")
	}
}

// cloneOf is all that a clone of the original needs.
func cloneOf(f *guestsFixture) driver.Retarget {
	vm := f.original()
	return driver.Retarget{
		NICs: []driver.RetargetNIC{
			{MAC: vm.NICs[0].MAC, NewMAC: "52:54:00:d4:01:01", Network: f.Networks[1]},
			{MAC: vm.NICs[1].MAC, NewMAC: "52:54:00:d4:01:02"},
		},
		Paths: map[string]string{
			vm.Disks[0].Path: f.DiskFolder + "/clone-a.qcow2",
			vm.Disks[1].Path: f.DiskFolder + "/clone-b.qcow2",
		},
		Clone: &driver.RetargetClone{Name: "clone", UUID: cloneUUID},
	}
}

func guestsRetargetClone(t *testing.T, f *guestsFixture) {
	f.changed(t, cloneOf(f), func(v *drover.VM) {
		v.Name, v.UUID, v.Probe = "clone", cloneUUID, nil
		v.NICs[0].MAC, v.NICs[0].Network, v.NICs[1].MAC = "52:54:00:d4:01:01", f.Networks[1], "52:54:00:d4:01:02"
		v.Disks[0].Path, v.Disks[1].Path = f.DiskFolder+"/clone-a.qcow2", f.DiskFolder+"/clone-b.qcow2"
	})
	// Original and clone can be known to one host.
	def := f.Define(t, f.original())
	clone, err := f.g.Retarget(def, cloneOf(f))
	succeed(t, err)
	for _, d := range []driver.Definition{def, clone} {
		name, err := f.Hypervisor.Define(t.Context(), d)
		succeed(t, err)
		defer func() { succeed(t, f.Hypervisor.Undefine(t.Context(), name)) }()
	}
}

func guestsRetargetRefused(t *testing.T, f *guestsFixture) {
	vm := f.original()
	def := f.Define(t, vm)
	base := func() driver.Retarget {
		to := cloneOf(f)
		to.Paths = maps.Clone(to.Paths)
		return to
	}
	for what, edit := range map[string]func(*driver.Retarget){
		"absent MAC":         func(r *driver.Retarget) { r.NICs[0].MAC = absentMAC },
		"bad MAC":            func(r *driver.Retarget) { r.NICs[0].MAC = "x" },
		"bad new MAC":        func(r *driver.Retarget) { r.NICs[0].NewMAC = "01:00:5e:00:00:01" },
		"new MAC twice":      func(r *driver.Retarget) { r.NICs[0].NewMAC = r.NICs[1].NewMAC },
		"card twice":         func(r *driver.Retarget) { r.NICs[1].MAC = r.NICs[0].MAC },
		"bad network":        func(r *driver.Retarget) { r.NICs[0].Network = "a b" },
		"path of nothing":    func(r *driver.Retarget) { r.Paths["/absent"] = "/elsewhere" },
		"relative path":      func(r *driver.Retarget) { r.Paths[vm.Disks[0].Path] = "elsewhere" },
		"one path for two":   func(r *driver.Retarget) { r.Paths[vm.Disks[0].Path] = r.Paths[vm.Disks[1].Path] },
		"clone without name": func(r *driver.Retarget) { r.Clone.Name = "" },
		"clone without UUID": func(r *driver.Retarget) { r.Clone.UUID = "1" },
		"clone shares MAC":   func(r *driver.Retarget) { r.NICs = r.NICs[:1] },
		"clone keeps MAC":    func(r *driver.Retarget) { r.NICs[0].NewMAC = "" },
		"clone shares disk":  func(r *driver.Retarget) { delete(r.Paths, vm.Disks[1].Path) },
	} {
		to := base()
		edit(&to)
		got, err := f.g.Retarget(def, to)
		wantKind(t, what, err, drover.Invalid)
		if got != nil {
			t.Errorf("%s: a definition in spite of the error", what)
		}
	}
	for _, bad := range []string{"", "{", "<domain>", "<network/>", "null", "<domain/><domain/>"} {
		_, err := f.g.Retarget(driver.Definition(bad), base())
		wantKind(t, "definition "+bad, err, drover.Invalid)
	}
}
