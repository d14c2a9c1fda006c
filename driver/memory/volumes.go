package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var _ driver.Volumes = (*Volumes)(nil)

const (
	formatQcow2 = "qcow2"
	formatRaw   = "raw"
	// sectorBytes is what every size is a multiple of.
	sectorBytes = 512
	// clusterBytes is the unit of allocation, QEMU's default for qcow2.
	clusterBytes = 64 << 10
	// headerBytes is what an empty qcow2 image takes.
	headerBytes = 192 << 10
	// maxChain bounds a backing chain.
	maxChain = 64
)

// VolumesConfig describes a store in memory.
type VolumesConfig struct {
	// Dirs are the folders below which paths are valid: absolute.
	Dirs []string
	// CapacityBytes bounds what all images take together; zero is 1 TiB.
	CapacityBytes drover.Bytes
	// Fault, if set, is asked before each operation, with the method's name
	// in lower case ("create", "write at") and the image's path; an error
	// that it returns is the operation's. It must be safe for concurrent use.
	Fault func(op, path string) error
}

// Volumes is a store of disk images in memory: block maps of 64 KiB clusters,
// with backing chains, locks, limited space and faults on demand. Writes are
// volatile until flushed, see CrashWriter.
type Volumes struct {
	cfg VolumesConfig

	mu     sync.Mutex
	closed bool
	files  map[string]*file
	open   map[*handle]struct{}
	used   int64
}

// file is one image, or a file that is none.
type file struct {
	path    string
	format  string // empty: no image
	size    int64
	backing drover.Backing
	// clusters are what the image itself holds. A nil value is a cluster of
	// zeros that hides the backing image.
	clusters map[int64][]byte
	// readers and writer are the open handles, those of images above included.
	readers int
	writer  bool
	// bitmaps are the records of changes; guest says that a VM runs on it.
	bitmaps map[driver.Checkpoint]*bitmap
	guest   bool
}

// NewVolumes returns an empty store.
func NewVolumes(cfg VolumesConfig) *Volumes {
	if cfg.CapacityBytes == 0 {
		cfg.CapacityBytes = drover.TiB
	}
	return &Volumes{cfg: cfg, files: map[string]*file{}, open: map[*handle]struct{}{}}
}

// PutFile puts a file there as another program would. Content whose length is
// a positive multiple of 512 is a raw image, unless the name ends in .qcow2.
func (v *Volumes) PutFile(path string, content []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := &file{path: path, size: int64(len(content)), clusters: map[int64][]byte{}}
	if len(content) > 0 && len(content)%sectorBytes == 0 && !strings.HasSuffix(path, ".qcow2") {
		f.format = formatRaw
	}
	for i := 0; i*clusterBytes < len(content); i++ {
		c := make([]byte, clusterBytes)
		copy(c, content[i*clusterBytes:])
		f.clusters[int64(i)] = c
		v.used += clusterBytes
	}
	if old := v.files[path]; old != nil {
		v.used -= old.allocated()
	}
	v.files[path] = f
}

// begin takes the lock unless the operation cannot begin. On success the
// caller unlocks.
func (v *Volumes) begin(ctx context.Context, name, path string) error {
	op := name + " volume " + path
	if v.cfg.Fault != nil {
		if err := v.cfg.Fault(name, path); err != nil {
			return wrap(op, err)
		}
	}
	v.mu.Lock()
	err := v.admit(ctx, op, path)
	if err != nil {
		v.mu.Unlock()
	}
	return err
}

func (v *Volumes) admit(ctx context.Context, op, path string) error {
	switch {
	case v.closed:
		return drover.Errorf(drover.Canceled, op, "the store is closed")
	case ctx.Err() != nil:
		return drover.E(drover.Canceled, op, ctx.Err())
	}
	return drover.E(drover.Invalid, op, v.confine(path))
}

func (v *Volumes) confine(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path ||
		strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("path %q is not absolute and plain", path)
	}
	for _, d := range v.cfg.Dirs {
		if strings.HasPrefix(path, d+"/") {
			return nil
		}
	}
	return fmt.Errorf("path %q is not below the store's folders (%s)", path, strings.Join(v.cfg.Dirs, ", "))
}

// wrap keeps the kind of a drover.Error.
func wrap(op string, err error) error {
	var e *drover.Error
	if errors.As(err, &e) {
		return drover.E(e.Kind, op, err)
	}
	return drover.E(drover.Internal, op, err)
}

// image finds one; the lock is held.
func (v *Volumes) image(path string) (*file, error) {
	f := v.files[path]
	switch {
	case f == nil:
		return nil, drover.Errorf(drover.NotFound, "", "%s does not exist", path)
	case f.format == "":
		return nil, drover.Errorf(drover.Invalid, "", "%s is not an image", path)
	}
	return f, nil
}

// chain finds an image and what is below it, top first; the lock is held.
func (v *Volumes) chain(path string) ([]*file, error) {
	var list []*file
	for path != "" {
		if len(list) == maxChain {
			return nil, drover.Errorf(drover.Invalid, "backing chain", "more than %d images", maxChain)
		}
		f, err := v.image(path)
		if err != nil {
			return nil, err
		}
		list = append(list, f)
		path = f.backing.Path
	}
	return list, nil
}

// observe describes an image; the lock is held.
func (v *Volumes) observe(path string) (drover.Volume, error) {
	chain, err := v.chain(path)
	if err != nil {
		return drover.Volume{}, err
	}
	vol := drover.Volume{
		Path: path, Format: chain[0].format, VirtualBytes: drover.Bytes(chain[0].size),
		AllocatedBytes: drover.Bytes(chain[0].allocated()),
	}
	for _, f := range chain[1:] {
		vol.Backing = append(vol.Backing, drover.Backing{Path: f.path, Format: f.format, VirtualBytes: drover.Bytes(f.size)})
	}
	return vol, nil
}

// allocated is what the file takes.
func (f *file) allocated() int64 {
	n := int64(0)
	for _, c := range f.clusters {
		if c != nil {
			n += clusterBytes
		}
	}
	if f.format == formatQcow2 {
		n += headerBytes
	}
	return n
}

// List observes every image.
func (v *Volumes) List(ctx context.Context) ([]drover.Volume, error) {
	if v.cfg.Fault != nil {
		if err := v.cfg.Fault("list", ""); err != nil {
			return nil, wrap("list volumes", err)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return nil, drover.Errorf(drover.Canceled, "list volumes", "the store is closed")
	case ctx.Err() != nil:
		return nil, drover.E(drover.Canceled, "list volumes", ctx.Err())
	}
	var list []drover.Volume
	for path := range v.files {
		if driver.Hidden(path) {
			continue
		}
		if vol, err := v.observe(path); err == nil {
			list = append(list, vol)
		}
	}
	slices.SortFunc(list, func(a, b drover.Volume) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

// Paths returns the paths of all files, those kept aside included.
func (v *Volumes) Paths() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.files))
}

// Volume observes one image.
func (v *Volumes) Volume(ctx context.Context, path string) (drover.Volume, error) {
	if err := v.begin(ctx, "observe", path); err != nil {
		return drover.Volume{}, err
	}
	defer v.mu.Unlock()
	vol, err := v.observe(path)
	if err != nil {
		return drover.Volume{}, wrap("volume "+path, err)
	}
	return vol, nil
}

// FreeBytes is the capacity less what the images take.
func (v *Volumes) FreeBytes(ctx context.Context, path string) (drover.Bytes, error) {
	if err := v.begin(ctx, "free bytes", path); err != nil {
		return 0, err
	}
	defer v.mu.Unlock()
	return max(0, v.cfg.CapacityBytes-drover.Bytes(v.used)), nil
}

// take claims space; the lock is held.
func (v *Volumes) take(n int64) error {
	if v.used+n > int64(v.cfg.CapacityBytes) {
		return drover.Errorf(drover.Exhausted, "", "no space left in the store of %v", v.cfg.CapacityBytes)
	}
	v.used += n
	return nil
}

// Create makes an empty image.
func (v *Volumes) Create(ctx context.Context, spec driver.VolumeSpec) error {
	op := "create volume " + spec.Path
	if err := v.begin(ctx, "create", spec.Path); err != nil {
		return err
	}
	defer v.mu.Unlock()
	if err := spec.Validate(); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	if v.files[spec.Path] != nil {
		return drover.Errorf(drover.Exists, op, "the file exists")
	}
	if err := v.checkBacking(spec.Backing); err != nil {
		return wrap(op, err)
	}
	f := &file{path: spec.Path, format: spec.Format, size: int64(spec.VirtualBytes), backing: spec.Backing, clusters: map[int64][]byte{}}
	if err := v.take(f.allocated()); err != nil {
		return wrap(op, err)
	}
	v.files[spec.Path] = f
	return nil
}

func (v *Volumes) checkBacking(b drover.Backing) error {
	if b.Path == "" {
		return nil
	}
	op := "backing file " + b.Path
	if err := v.confine(b.Path); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	chain, err := v.chain(b.Path)
	if err != nil {
		return wrap(op, err)
	}
	if f := chain[0]; f.format != b.Format || b.VirtualBytes != 0 && int64(b.VirtualBytes) != f.size {
		return drover.Errorf(drover.Invalid, op, "is %s of %d bytes, not %q of %d", f.format, f.size, b.Format, int64(b.VirtualBytes))
	}
	return nil
}

// Delete removes an image; one that is open gives drover.Refused.
func (v *Volumes) Delete(ctx context.Context, path string) error {
	op := "delete volume " + path
	if err := v.begin(ctx, "delete", path); err != nil {
		return err
	}
	defer v.mu.Unlock()
	f := v.files[path]
	switch {
	case f == nil:
		return nil
	case f.writer || f.readers > 0:
		return wrap(op, errInUse())
	}
	v.used -= f.allocated()
	delete(v.files, path)
	return nil
}

// Rename gives an image another path.
func (v *Volumes) Rename(ctx context.Context, path, to string) error {
	op := "rename volume " + path
	if err := v.begin(ctx, "rename", path); err != nil {
		return err
	}
	defer v.mu.Unlock()
	if err := v.confine(to); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	f := v.files[path]
	switch {
	case f == nil:
		return drover.Errorf(drover.NotFound, op, "it does not exist")
	case f.writer || f.readers > 0:
		return wrap(op, errInUse())
	case v.files[to] != nil:
		return drover.Errorf(drover.Exists, op, "%s is there already", to)
	}
	delete(v.files, path)
	f.path = to
	v.files[to] = f
	return nil
}

func errInUse() error {
	return drover.Errorf(drover.Refused, "", "the image is in use: a VM runs on it, or another process has it open")
}

// Close closes every open image. Images stay, for another store's eyes only.
func (v *Volumes) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for h := range v.open {
		h.close()
	}
	return nil
}
