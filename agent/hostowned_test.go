package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// kindsOf are the kinds of what the owner has at a host.
func (w *world) kindsOf(host, owner string) []string {
	w.t.Helper()
	r, err := w.client(host).Owned(w.t.Context(), &droverv1.OwnedRequest{})
	must(w.t, err)
	if len(r.GetFaults()) > 0 {
		w.t.Errorf("faults: %v", r.GetFaults())
	}
	var kinds []string
	for _, t := range r.GetThings() {
		if t.GetOwner() == owner && !slices.Contains(kinds, t.GetKind()) {
			kinds = append(kinds, t.GetKind())
		}
	}
	slices.Sort(kinds)
	return kinds
}

// TestOwnedRecords: checkpoints, records in images at rest and folders of sockets
// that no journal knows are found by their names, and removed; those of a
// replica that is kept are told, and not removed.
func TestOwnedRecords(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	h := w.hosts["north1"]
	const ghost = "move/ghost"
	b, err := h.hyp.BeginBackup(t.Context(), vmName, driver.BackupSpec{
		Checkpoint: driver.Checkpoint{Owner: ghost, Number: 3}, Socket: filepath.Join(h.dir, "b"),
		Disks: []driver.BackupDisk{{Target: "vda", Scratch: filepath.Join(imgDir, driver.ScratchName(ghost, "vda"))}},
	})
	must(t, err)
	must(t, b.End(t.Context()))
	must(t, h.current().agent.sockets.make("ghost"))
	if got := w.kindsOf("north1", ghost); !slices.Equal(got, []string{ownedCheckpoint, ownedSockets}) {
		t.Errorf("of a running VM: %v", got)
	}
	must(t, h.hyp.Shutdown(t.Context(), vmName))
	if got := w.kindsOf("north1", ghost); !slices.Contains(got, ownedBitmap) {
		t.Errorf("of a VM that is off: %v", got)
	}
	for _, kind := range []string{ownedCheckpoint, ownedBitmap, ownedSockets} {
		_, err := w.client("north1").RemoveOwned(t.Context(), &droverv1.RemoveOwnedRequest{Owner: ghost, Kind: kind})
		must(t, err)
	}
	if got := w.kindsOf("north1", ghost); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	must(t, h.hyp.Start(context.Background(), vmName))
	w.protect()
	owner := string(driver.MoveOwner(replicaName))
	if got := w.kindsOf("north1", owner); !slices.Equal(got, []string{ownedCheckpoint, ownedReplica}) {
		t.Errorf("of a replica: %v", got)
	}
	_, err = w.client("north1").RemoveOwned(t.Context(), &droverv1.RemoveOwnedRequest{Owner: owner, Kind: ownedCheckpoint})
	if drover.KindOf(err) != drover.Refused {
		t.Errorf("removing what the journal knows: %v", err)
	}
	w.round(2)
	w.unprotect()
	w.checkOnce("north1")
}

func TestStrayFiles(t *testing.T) {
	dir := t.TempDir()
	scratch := driver.ScratchName("move/m-1", "vda")
	for _, name := range []string{"web1.qcow2", driver.AsidePrefix + "m-1-vda.qcow2", driver.ReplicaPrefix + "replica-7-1-vda.qcow2", scratch, driver.ScratchPrefix + "x"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	a := &Agent{config: Config{Volumes: []string{dir, filepath.Join(dir, "missing")}}}
	got, err := a.strayFiles()
	must(t, err)
	want := []strayFile{
		{ownedImage, "move/replica-7-1", filepath.Join(dir, driver.ReplicaPrefix+"replica-7-1-vda.qcow2")},
		{ownedScratch, "move/m-1", filepath.Join(dir, scratch)},
	}
	if !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

// TestRemoveVM: a VM is removed with its disks, unless it is another one, or
// something has it; once more is fine.
func TestRemoveVM(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	ask := func(uuid string) error {
		_, err := w.client("north1").RemoveVM(t.Context(), &droverv1.RemoveVMRequest{Vm: vmName, VmUuid: uuid})
		return err
	}
	if err := ask("99999999-2222-3333-4444-555555555555"); drover.KindOf(err) != drover.Refused {
		t.Errorf("another UUID: %v", err)
	}
	w.ask("north1", "reserve-source", 1, &droverv1.Reserve{})
	if err := ask(vmUUID); drover.KindOf(err) != drover.Refused {
		t.Errorf("a VM that a move has: %v", err)
	}
	w.ask("north1", "release", 1, &droverv1.Release{})
	must(t, ask(vmUUID))
	must(t, ask(vmUUID))
	h := w.hosts["north1"]
	if _, err := h.hyp.VM(t.Context(), vmName); drover.KindOf(err) != drover.NotFound {
		t.Errorf("the VM: %v", err)
	}
	if got := h.volumes.Paths(); !slices.Equal(got, []string{gold}) {
		t.Errorf("images: %v", got)
	}
}
