package driver_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// TestCheckpointNames: a name is read as it was written, and nobody else's is
// taken for one.
func TestCheckpointNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,62}`).Draw(t, "name")
		owner := driver.MoveOwner(name)
		if rapid.Bool().Draw(t, "vm") {
			owner = driver.VMOwner(name)
		}
		c := driver.Checkpoint{Owner: owner, Number: rapid.Int64Min(1).Draw(t, "number")}
		if got, ok := driver.ParseCheckpoint(c.String()); !ok || got != c {
			t.Fatalf("%s is read as %+v, %v", c, got, ok)
		}
		if !driver.ScratchOf(owner, "/images/"+driver.ScratchName(owner, "vda")) {
			t.Fatalf("%s is not its owner's", driver.ScratchName(owner, "vda"))
		}
	})
	for _, name := range []string{
		"", "drover-", "drover-move-m1", "drover-move-m1-", "drover-move-m1-0", "drover-move-m1-01", "drover-move--1",
		"drover-host-m1-1", "backup-move-m1-1", "drover-move-m1-x", "drover-move-m 1-1",
	} {
		if c, ok := driver.ParseCheckpoint(name); ok {
			t.Errorf("%q is read as %+v", name, c)
		}
	}
}

func TestBackupSpecValidate(t *testing.T) {
	owner := driver.MoveOwner("m1")
	good := func() driver.BackupSpec {
		return driver.BackupSpec{
			Checkpoint: driver.Checkpoint{Owner: owner, Number: 2}, Since: driver.Checkpoint{Owner: owner, Number: 1},
			Socket: "/run/x", Disks: []driver.BackupDisk{{Target: "vda", Scratch: "/images/" + driver.ScratchName(owner, "vda")}},
		}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*driver.BackupSpec){
		"no owner":        func(s *driver.BackupSpec) { s.Checkpoint.Owner = "" },
		"another's":       func(s *driver.BackupSpec) { s.Since.Owner = driver.MoveOwner("m2") },
		"backwards":       func(s *driver.BackupSpec) { s.Since.Number = 2 },
		"no number":       func(s *driver.BackupSpec) { s.Checkpoint.Number = 0 },
		"relative socket": func(s *driver.BackupSpec) { s.Socket = "x" },
		"no disks":        func(s *driver.BackupSpec) { s.Disks = nil },
		"twice":           func(s *driver.BackupSpec) { s.Disks = append(s.Disks, s.Disks[0]) },
		"strange target":  func(s *driver.BackupSpec) { s.Disks[0].Target = "../vda" },
		"strange scratch": func(s *driver.BackupSpec) { s.Disks[0].Scratch = "/images/other" },
	} {
		s := good()
		spoil(&s)
		if err := s.Validate(); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
