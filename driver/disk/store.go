package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/nbd"
)

var _ driver.Volumes = (*Store)(nil)

const (
	// maxTools bounds the qemu-img processes at a time: each is short and
	// more than a few only compete for the disk.
	maxTools = 4
	// maxOpen bounds the images open at a time; most are a process of some
	// 30 MiB each.
	maxOpen = 64
	// maxIdentify bounds the identities computed at a time; one alone keeps
	// several cores busy.
	maxIdentify = 2
	// maxListed bounds the files that List looks at, against a store that is
	// pointed at the wrong folder.
	maxListed = 100_000
	// staleAfter is how old a half-made image must be to be taken for the
	// remains of a crash; no creation takes as long.
	staleAfter = time.Hour
	// tempPrefix begins the names of images in the making, and of those kept
	// aside.
	tempPrefix = ".drover-"
)

// Config says where a Store's images and its own files are.
type Config struct {
	// Dirs are the folders whose images the store holds, sub-folders
	// included: absolute, at least one. They need not exist yet.
	Dirs []string
	// RunDir holds the sockets of open images; empty takes the system's
	// folder for temporary files. At most 60 bytes long, since a unix
	// socket's path has 108.
	RunDir string
	// CacheDir keeps identities beyond the process; empty keeps them in
	// memory alone.
	CacheDir string
	// QemuImg and QemuNBD are the programs; empty finds them in PATH.
	QemuImg, QemuNBD string
}

// Validate reports the first field that cannot be right.
func (c Config) Validate() error {
	if len(c.Dirs) == 0 {
		return drover.Errorf(drover.Invalid, "volume folders", "none is given: want at least one absolute path")
	}
	for _, d := range c.Dirs {
		if !filepath.IsAbs(d) || filepath.Clean(d) != d || d == "/" {
			return drover.Errorf(drover.Invalid, "volume folders", "%q: want an absolute path without dots, and not the root", d)
		}
	}
	if len(c.RunDir) > 60 {
		return drover.Errorf(drover.Invalid, "run folder", "%q: longer than 60 bytes", c.RunDir)
	}
	return nil
}

// Store is the images below some folders.
type Store struct {
	log      *slog.Logger
	cfg      Config
	tools    chan struct{}
	identify chan struct{}
	ids      *idCache

	mu     sync.Mutex
	closed bool
	opened map[io.Closer]struct{}
	count  int // open or being opened
}

// New returns the store. It removes what creations that died an hour ago or
// more have left in the folders.
func New(log *slog.Logger, cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.QemuImg == "" {
		cfg.QemuImg = "qemu-img"
	}
	if cfg.QemuNBD == "" {
		cfg.QemuNBD = "qemu-nbd"
	}
	s := &Store{
		log: log, cfg: cfg,
		tools:    make(chan struct{}, maxTools),
		identify: make(chan struct{}, maxIdentify),
		ids:      newIDCache(log, cfg.CacheDir),
		opened:   map[io.Closer]struct{}{},
	}
	s.sweep()
	s.sweepSockets()
	return s, nil
}

// Close ends every open image. Images stay.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	var open []io.Closer
	for im := range s.opened {
		open = append(open, im)
	}
	s.mu.Unlock()
	var errs []error
	for _, im := range open {
		errs = append(errs, im.Close())
	}
	return errors.Join(errs...)
}

// List observes every image in the store by its headers, without starting a
// process. Files that are no images are left out; images that are broken or
// whose chain leaves the store are left out and logged.
func (s *Store) List(ctx context.Context) ([]drover.Volume, error) {
	const op = "list volumes"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	var list []drover.Volume
	seen, files := map[string]bool{}, 0
	for _, dir := range s.cfg.Dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil // removed meanwhile, or the folder is not made yet
				}
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), tempPrefix) || seen[path] {
				return nil
			}
			if files++; files > maxListed {
				return drover.Errorf(drover.Exhausted, op, "more than %d files below %s", maxListed, dir)
			}
			seen[path] = true
			v, err := s.observe(path)
			switch kind := drover.KindOf(err); {
			case err == nil:
				list = append(list, v)
			case kind == drover.NotFound && !fileExists(path):
			case errors.Is(err, errNoImage):
			default:
				s.log.Warn("image left out of the list", "path", path, "err", err)
			}
			return nil
		})
		if err != nil {
			return nil, fault(op, err)
		}
	}
	return list, nil
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Volume observes one image and has qemu-img look at it.
func (s *Store) Volume(ctx context.Context, path string) (drover.Volume, error) {
	op := "volume " + path
	if err := s.admit(op, path); err != nil {
		return drover.Volume{}, err
	}
	v, err := s.observe(path)
	if err != nil {
		return drover.Volume{}, fault(op, err)
	}
	if err := s.vouch(ctx, v); err != nil {
		return drover.Volume{}, fault(op, err)
	}
	return v, nil
}

// observe reads an image's headers and those of its chain.
func (s *Store) observe(path string) (drover.Volume, error) {
	chain, err := s.chain(path)
	if err != nil {
		return drover.Volume{}, err
	}
	v := drover.Volume{
		Path: path, Format: chain[0].format, VirtualBytes: drover.Bytes(chain[0].size),
		AllocatedBytes: drover.Bytes(chain[0].allocated),
	}
	for _, b := range chain[1:] {
		v.Backing = append(v.Backing, drover.Backing{Path: b.path, Format: b.format, VirtualBytes: drover.Bytes(b.size)})
	}
	return v, nil
}

// FreeBytes is what an unprivileged process could still write to the file
// system that holds path, or would.
func (s *Store) FreeBytes(_ context.Context, path string) (drover.Bytes, error) {
	op := "free space at " + path
	if err := s.admit(op, path); err != nil {
		return 0, err
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		var st syscall.Statfs_t
		err := syscall.Statfs(dir, &st)
		if err == nil {
			return drover.Bytes(st.Bavail) * drover.Bytes(st.Bsize), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return 0, fault(op, err)
		}
	}
}

// Delete removes the image. One that a process holds open, a VM above all,
// gives drover.Refused.
func (s *Store) Delete(_ context.Context, path string) error {
	op := "delete volume " + path
	if err := s.admit(op, path); err != nil {
		return err
	}
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fault(op, err)
	case fi.IsDir():
		return drover.Errorf(drover.Invalid, op, "is a folder")
	}
	if fi.Mode().IsRegular() && locked(path) {
		return fault(op, errInUse())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault(op, err)
	}
	return fault(op, syncDir(filepath.Dir(path)))
}

// Rename gives an image another path on the same file system.
func (s *Store) Rename(_ context.Context, path, to string) error {
	op := "rename volume " + path
	for _, p := range []string{path, to} {
		if err := s.admit(op, p); err != nil {
			return err
		}
	}
	fi, err := os.Lstat(path)
	switch {
	case err != nil:
		return fault(op, err)
	case !fi.Mode().IsRegular():
		return drover.Errorf(drover.Invalid, op, "is no regular file")
	case locked(path):
		return fault(op, errInUse())
	}
	switch err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); {
	case errors.Is(err, unix.EEXIST):
		return drover.Errorf(drover.Exists, op, "%s is there already", to)
	case errors.Is(err, unix.EXDEV):
		return drover.Errorf(drover.Invalid, op, "%s is on another file system", to)
	case err != nil:
		return fault(op, fmt.Errorf("to %s: %w", to, err))
	}
	return fault(op, errors.Join(syncDir(filepath.Dir(path)), syncDir(filepath.Dir(to))))
}

// usable says whether the store still is open.
func (s *Store) usable(op string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return drover.Errorf(drover.Canceled, op, "the store is closed")
	}
	return nil
}

// admit says whether an operation on path may begin.
func (s *Store) admit(op, path string) error {
	if err := s.usable(op); err != nil {
		return err
	}
	if err := s.confine(path); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	return nil
}

// sweep removes half-made images of the past.
func (s *Store) sweep() {
	for _, dir := range s.cfg.Dirs {
		files := 0
		filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if files++; files > maxListed {
				return fs.SkipAll
			}
			if err != nil || !e.Type().IsRegular() || !isTemp(e.Name()) {
				return nil
			}
			if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > staleAfter {
				s.log.Info("removing a half-made image", "path", path, "err", os.Remove(path))
			}
			return nil
		})
	}
}

// sweepSockets removes the folders that processes which were killed while they
// opened an image have left.
func (s *Store) sweepSockets() {
	if s.cfg.RunDir == "" {
		return // the system's folder, in which others' may lie
	}
	found, _ := filepath.Glob(filepath.Join(s.cfg.RunDir, socketPrefix+"*"))
	for _, dir := range found {
		number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), socketPrefix), "-")
		if pid, err := strconv.Atoi(number); err == nil && pid > 0 && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			s.log.Info("removing a folder for sockets of a process that has ended", "path", dir, "err", os.RemoveAll(dir))
		}
	}
}

// fault gives err the kind that its cause has, unless it has one already.
func fault(op string, err error) error {
	if err == nil {
		return nil
	}
	kind := drover.Internal
	var known *drover.Error
	var server *nbd.ServerError
	switch {
	case errors.As(err, &known):
		kind = known.Kind
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, nbd.ErrClosed), errors.Is(err, os.ErrClosed):
		kind = drover.Canceled
	case errors.Is(err, errNoImage):
		kind = drover.Invalid
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		kind = drover.Exhausted
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		kind = drover.NotFound
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENAMETOOLONG):
		kind = drover.Invalid
	case errors.As(err, &server):
		// Any other failure of the image itself.
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET), isHangup(err):
		kind = drover.Unavailable
	}
	return drover.E(kind, op, err)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}
