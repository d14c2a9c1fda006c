package driver

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/drover-vm/drover"
)

// Backuper follows what a running VM writes to its disks, and serves them as
// they were at one moment while the VM runs on.
//
// A checkpoint is a moment from which on the hypervisor records which parts of
// the disks change. It is begun together with a backup, so that what the backup
// serves and what is recorded afterwards are all there is to a disk. The record
// lies in each disk's image and outlives the VM's being shut down; it is lost
// when the hypervisor's process dies without ending properly.
//
//	backup 1 (all) ── checkpoint 1 ── writes ── backup 2 (since 1) ── checkpoint 2 ── …
//
// Every checkpoint carries its owner in its name, so that what was left behind is
// found again; checkpoints and backups of others are neither used nor ended.
type Backuper interface {
	// CheckBackup says whether the VM's disks can be followed: what the
	// hypervisor and the manager are able to, and who else is at it. Nothing is
	// changed.
	CheckBackup(ctx context.Context, name string) ([]drover.Check, error)
	// BeginBackup stops the clock for the disks named, all at the same moment,
	// and begins the checkpoint there. With Since the backup serves only what
	// has changed since that checkpoint, whose record goes on. A VM that is off
	// gives drover.Refused, a checkpoint of that name drover.Exists, one to begin
	// from that is not there, or whose record is damaged, drover.NotFound, and a
	// backup or migration that is under way already drover.Unavailable after
	// up to half a minute. On any other error neither backup nor checkpoint is
	// left, unless the kind is drover.Unavailable.
	BeginBackup(ctx context.Context, name string, spec BackupSpec) (Backup, error)
	// EndBackup ends the owner's backup, whichever process began it; the
	// checkpoint stays. None, another's, and a VM that is off or gone are fine.
	EndBackup(ctx context.Context, name string, owner Owner) error
	// Checkpoints lists those that carry an owner, oldest first, as the manager
	// knows them.
	Checkpoints(ctx context.Context, name string) ([]Checkpoint, error)
	// ChangedBytes is what has changed on all disks together since the
	// checkpoint, in whole clusters. A VM that is off gives drover.Refused.
	ChangedBytes(ctx context.Context, name string, since Checkpoint) (drover.Bytes, error)
	// RemoveCheckpoint ends the record that it names on the disks given by
	// their targets, also one of which only the images know; missing is fine. Of
	// a VM that is off only what the manager knows is removed: its images are
	// RemoveBitmap's.
	RemoveCheckpoint(ctx context.Context, name string, c Checkpoint, targets []string) error
}

// Backup is an open backup. The one who began it ends it.
type Backup interface {
	// Open opens a disk as it was when the backup began, for reading. Extents
	// are what may be other than zero or, of a backup since a checkpoint, what
	// has changed since then. The caller closes it before End.
	Open(ctx context.Context, target string) (ImageReader, error)
	// End ends the backup; the checkpoint stays. Repeating it is fine.
	End(ctx context.Context) error
}

// BackupSpec is a backup to begin.
type BackupSpec struct {
	// Checkpoint begins with the backup. Since is where it begins from; the
	// zero value: it is of everything.
	Checkpoint, Since Checkpoint
	// Socket is the path of the unix socket at which the hypervisor serves the
	// disks. Nothing may be there yet.
	Socket string
	// Disks are those to be served, at least one.
	Disks []BackupDisk
}

// BackupDisk is a disk to be served by a backup.
type BackupDisk struct {
	Target string // "vda"
	// Scratch is the path of a file that the hypervisor makes and keeps what
	// the guest overwrites meanwhile in; its name is ScratchName's. It is gone
	// when the backup has ended.
	Scratch string
}

// ScratchName is the name of a scratch file, by which its backup is known to be
// the owner's.
func ScratchName(o Owner, target string) string {
	return ScratchPrefix + strings.ReplaceAll(string(o), "/", "-") + "-" + target
}

// ScratchPrefix begins the names of scratch files: Volumes' List leaves them out,
// and its Delete takes them.
const ScratchPrefix = ".drover-scratch-"

// ScratchOf reports whether a path is that of a scratch file of the owner's.
func ScratchOf(o Owner, path string) bool {
	return strings.HasPrefix(filepath.Base(path), ScratchName(o, ""))
}

// OwnerOfScratch reads the owner from a scratch file's path; ok is false for any
// other file.
func OwnerOfScratch(path string) (o Owner, ok bool) {
	rest, ok := strings.CutPrefix(filepath.Base(path), ScratchPrefix)
	if !ok {
		return "", false
	}
	kind, rest, _ := strings.Cut(rest, "-")
	at := strings.LastIndexByte(rest, '-')
	if at < 0 {
		return "", false
	}
	o = Owner(kind + "/" + rest[:at])
	return o, o.Validate() == nil && ScratchOf(o, path)
}

// Validate reports what is wrong with a spec as far as it alone can tell.
func (s BackupSpec) Validate() error {
	const op = "begin backup"
	if err := s.Checkpoint.Validate(); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	if s.Since != (Checkpoint{}) {
		if err := s.Since.Validate(); err != nil {
			return drover.E(drover.Invalid, op, err)
		}
	}
	switch {
	case s.Since.Owner != "" && (s.Since.Owner != s.Checkpoint.Owner || s.Since.Number >= s.Checkpoint.Number):
		return drover.Errorf(drover.Invalid, op, "from %s to %s: want an earlier one of the same owner", s.Since, s.Checkpoint)
	case !filepath.IsAbs(s.Socket):
		return drover.Errorf(drover.Invalid, op, "socket %q: want an absolute path", s.Socket)
	case len(s.Disks) == 0:
		return drover.Errorf(drover.Invalid, op, "no disks: want at least one")
	}
	seen := make(map[string]bool)
	for _, d := range s.Disks {
		if err := drover.CheckName("disk target", d.Target); err != nil {
			return err
		}
		if seen[d.Target] {
			return drover.Errorf(drover.Invalid, op, "disk %s stands in it twice", d.Target)
		}
		seen[d.Target] = true
		if !filepath.IsAbs(d.Scratch) || filepath.Base(d.Scratch) != ScratchName(s.Checkpoint.Owner, d.Target) {
			return drover.Errorf(drover.Invalid, op, "scratch file %q: want an absolute path that ends in %s",
				d.Scratch, ScratchName(s.Checkpoint.Owner, d.Target))
		}
	}
	return nil
}

// Checkpoint names a moment, and the record of what has changed since.
type Checkpoint struct {
	Owner Owner `json:"owner"`
	// Number orders an owner's checkpoints, from 1.
	Number int64 `json:"number"`
}

// checkpointPrefix begins the names of Drover's checkpoints and bitmaps.
const checkpointPrefix = "drover-"

// String returns the name in the technology's terms, "drover-move-NAME-3".
func (c Checkpoint) String() string {
	return checkpointPrefix + strings.ReplaceAll(string(c.Owner), "/", "-") + "-" + strconv.FormatInt(c.Number, 10)
}

// Validate reports what is wrong with a checkpoint; the kind is drover.Invalid.
func (c Checkpoint) Validate() error {
	if err := c.Owner.Validate(); err != nil {
		return err
	}
	if c.Number < 1 {
		return drover.E(drover.Invalid, "checkpoint", fmt.Errorf("number %d: want 1 or more", c.Number))
	}
	return nil
}

// ParseCheckpoint reads a name as String writes it; ok is false for anybody
// else's.
func ParseCheckpoint(name string) (c Checkpoint, ok bool) {
	rest, ok := strings.CutPrefix(name, checkpointPrefix)
	if !ok {
		return Checkpoint{}, false
	}
	kind, rest, ok := strings.Cut(rest, "-")
	at := strings.LastIndexByte(rest, '-')
	if !ok || at < 0 {
		return Checkpoint{}, false
	}
	n, err := strconv.ParseInt(rest[at+1:], 10, 64)
	c = Checkpoint{Owner: Owner(kind + "/" + rest[:at]), Number: n}
	if err != nil || c.Validate() != nil || c.String() != name {
		return Checkpoint{}, false
	}
	return c, true
}

// Bitmaps are the records of changes that lie in images, beside what Volumes
// tells of them: those of checkpoints, which outlive the VM's being shut down.
type Bitmaps interface {
	// Bitmaps lists those of a checkpoint that the file has stored, in the
	// order of their numbers per owner. While a VM runs on the image the
	// hypervisor holds them, so they need not be among them. An image of a
	// format that cannot store any gives drover.Refused, with what would help.
	Bitmaps(ctx context.Context, path string) ([]Checkpoint, error)
	// OpenChanges opens an image that no VM is running on, for reading. Extents
	// are what has changed since the checkpoint. One that is not there, or is
	// not reliable because the hypervisor died without ending properly, gives
	// drover.NotFound.
	OpenChanges(ctx context.Context, path string, since Checkpoint) (ImageReader, error)
	// RemoveBitmap removes one, from an image that no VM is running on; missing is
	// fine, also the image's being so. An image in use gives drover.Refused.
	RemoveBitmap(ctx context.Context, path string, c Checkpoint) error
}
