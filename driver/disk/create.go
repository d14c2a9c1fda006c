package disk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"golang.org/x/sys/unix"
)

// Create makes the image under a hidden name in its folder and gives it its
// name at the end, in one step that fails if the name is taken.
func (s *Store) Create(ctx context.Context, spec driver.VolumeSpec) (err error) {
	op := "create volume " + spec.Path
	if err := s.admit(op, spec.Path); err != nil {
		return err
	}
	if err := spec.Validate(); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	if fileExists(spec.Path) {
		return drover.Errorf(drover.Exists, op, "the file exists")
	}
	if err := s.checkBacking(spec.Backing); err != nil {
		return fault(op, err)
	}
	dir := filepath.Dir(spec.Path)
	made, err := makeDirs(dir)
	if err != nil {
		return fault(op, err)
	}
	defer func() {
		if err != nil {
			made.undo()
		}
	}()
	temp := filepath.Join(dir, tempPrefix+rand.Text()+".tmp")
	defer os.Remove(temp) // gone already when all went well
	if err := s.make(ctx, temp, spec); err != nil {
		return fault(op, err)
	}
	if err := publish(temp, spec.Path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return drover.Errorf(drover.Exists, op, "the file exists")
		}
		return fault(op, err)
	}
	if err := errors.Join(syncDir(dir), made.sync()); err != nil {
		os.Remove(spec.Path)
		return fault(op, err)
	}
	return nil
}

// checkBacking says whether the file can back an image in the way described.
func (s *Store) checkBacking(b drover.Backing) error {
	if b.Path == "" {
		return nil
	}
	op := "backing file " + b.Path
	if err := s.confine(b.Path); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	if b.Format != formatQcow2 && b.Format != formatRaw {
		return drover.Errorf(drover.Invalid, op, "format %q: want qcow2 or raw", b.Format)
	}
	chain, err := s.chain(b.Path)
	if err != nil {
		return fault(op, err)
	}
	if chain[0].format != b.Format {
		return drover.Errorf(drover.Invalid, op, "is %s, not %s", chain[0].format, b.Format)
	}
	if b.VirtualBytes != 0 && int64(b.VirtualBytes) != chain[0].size {
		return drover.Errorf(drover.Invalid, op, "has a virtual size of %d bytes, not %d", chain[0].size, int64(b.VirtualBytes))
	}
	return nil
}

// make makes the image at temp and writes it through to the disk.
func (s *Store) make(ctx context.Context, temp string, spec driver.VolumeSpec) error {
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.format(ctx, f, spec); err != nil {
		return err
	}
	// File systems without attributes lose the record, not the image.
	err = unix.Fsetxattr(int(f.Fd()), formatAttr, []byte(spec.Format), 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("record the format: %w", err)
	}
	return f.Sync()
}

// format makes the empty file f an image. A raw one is a hole: qemu-img would
// allocate its first block.
func (s *Store) format(ctx context.Context, f *os.File, spec driver.VolumeSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if spec.Format == formatRaw {
		return f.Truncate(int64(spec.VirtualBytes))
	}
	args := []string{"create", "-q", "-f", spec.Format, "-o", "compat=1.1,lazy_refcounts=off,preallocation=off"}
	if b := spec.Backing; b.Path != "" {
		args = append(args, "-b", b.Path, "-F", b.Format)
	}
	_, err := s.tool(ctx, append(args, f.Name(), strconv.FormatInt(int64(spec.VirtualBytes), 10))...)
	return err
}

// publish renames temp to path unless path exists.
func publish(temp, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// File systems without that flag have hard links; the hidden name
		// goes in Create's end.
		return os.Link(temp, path)
	}
	return err
}

// madeDirs are folders that did not exist before, outermost first.
type madeDirs []string

// makeDirs makes dir and what is missing above it.
func makeDirs(dir string) (madeDirs, error) {
	var made madeDirs
	for d := dir; !fileExists(d); d = filepath.Dir(d) {
		made = append(madeDirs{d}, made...)
	}
	for i, d := range made {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			made[:i].undo()
			return nil, err
		}
	}
	return made, nil
}

// undo removes the folders as far as nothing else has come into them.
func (m madeDirs) undo() {
	for i := len(m) - 1; i >= 0; i-- {
		os.Remove(m[i])
	}
}

// sync makes the folders' own names durable.
func (m madeDirs) sync() error {
	for _, d := range m {
		if err := syncDir(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}
