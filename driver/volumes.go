package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/drover-vm/drover"
)

// Volumes is the store of disk images of one host.
//
// Methods may be called concurrently. Paths are absolute and lie below the
// store's folders; any other gives drover.Invalid.
type Volumes interface {
	// List observes every image in the store but those that are Hidden.
	List(ctx context.Context) ([]drover.Volume, error)
	// Volume observes one; missing gives drover.NotFound, a file that is no
	// image drover.Invalid.
	Volume(ctx context.Context, path string) (drover.Volume, error)
	// FreeBytes is the space left for new images in the folder of path.
	FreeBytes(ctx context.Context, path string) (drover.Bytes, error)
	// Create makes an empty image. An existing file gives drover.Exists,
	// whatever is in it. Folders above it are made. On any error no file is left.
	Create(ctx context.Context, spec VolumeSpec) error
	// Delete removes the image; missing is fine. Backing files stay. An image
	// that a process holds open gives drover.Refused.
	Delete(ctx context.Context, path string) error
	// Rename gives an image another path on the same file system, at once and
	// durably: after a crash it is at one of the two. A missing one gives
	// drover.NotFound, a file at to drover.Exists, an image that a process
	// holds open drover.Refused, folders on two file systems drover.Invalid.
	Rename(ctx context.Context, path, to string) error
	// OpenRead opens an image that no VM is running on, for reading.
	// topOnly limits Extents to what the top image holds above its backing.
	OpenRead(ctx context.Context, path string, topOnly bool) (ImageReader, error)
	// OpenWrite opens an image that no VM is running on, for writing.
	OpenWrite(ctx context.Context, path string) (ImageWriter, error)
	// Identify returns the identity of a file's content as far as it matters
	// as a backing file: a digest over its guest-visible content, cached by
	// path, size and modification time.
	Identify(ctx context.Context, path string) (ContentID, error)
	Bitmaps
	Close() error
}

// AsidePrefix begins the names of images that are kept aside: List leaves them
// out, every other operation takes them.
const AsidePrefix = ".drover-aside-"

// ReplicaPrefix begins the names of images that are replicas of the disks of a VM
// elsewhere, for which the same holds.
const ReplicaPrefix = ".drover-replica-"

// Hidden reports whether a path is that of an image that List leaves out: no VM
// runs on it under that name.
func Hidden(path string) bool {
	name := filepath.Base(path)
	return strings.HasPrefix(name, AsidePrefix) || strings.HasPrefix(name, ReplicaPrefix)
}

// ContentID is a BLAKE3-256 digest that is equal for images with the same
// guest-visible bytes and size, whatever their format and allocation; how it is
// made of blocks is in package disk.
type ContentID [32]byte

// VolumeSpec is an image to create.
type VolumeSpec struct {
	Path         string
	Format       string // "qcow2" or "raw"
	VirtualBytes drover.Bytes
	// Backing is the image below it; empty Path means none.
	Backing drover.Backing
}

// Bounds of an image to create.
const (
	// sectorBytes is what every guest's disk is a multiple of.
	sectorBytes = 512
	// maxVirtualBytes is what ext4 can hold as a raw file, and far below what
	// QEMU can address.
	maxVirtualBytes = 16 * drover.TiB
)

// Validate reports what is wrong with a spec as far as it alone can tell.
func (s VolumeSpec) Validate() error {
	switch {
	case s.Format != "qcow2" && s.Format != "raw":
		return fmt.Errorf("format %q: want qcow2 or raw", s.Format)
	case s.VirtualBytes <= 0 || s.VirtualBytes%sectorBytes != 0 || s.VirtualBytes > maxVirtualBytes:
		return fmt.Errorf("virtual size %d: want a positive multiple of %d bytes up to %v", int64(s.VirtualBytes), sectorBytes, maxVirtualBytes)
	case s.Format == "raw" && s.Backing.Path != "":
		return errors.New("a raw image cannot have a backing file: make it qcow2")
	case s.Format == "raw" && strings.HasSuffix(s.Path, ".qcow2"), s.Format == "qcow2" && strings.HasSuffix(s.Path, ".raw"):
		return fmt.Errorf("the name's ending belies the format %s", s.Format)
	}
	return nil
}

// Extent is a run of an image's guest-visible bytes.
type Extent struct {
	Offset, Length int64
	// Zero runs read as zeros and hide whatever a backing image has there.
	Zero bool
}

// ImageReader reads the guest-visible bytes of an image. The caller closes it.
type ImageReader interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// Extents calls yield for each allocated run in ascending order, until
	// yield returns false. Runs that are not reported read as zeros, or as the
	// backing image when the reader was opened topOnly.
	Extents(ctx context.Context, yield func(Extent) bool) error
}

// ImageMap is what an open image also implements that knows what of it reads as
// zeros while it is written.
type ImageMap interface {
	// Allocation calls yield for the runs from off on, at least one, at most up to
	// off+length; zero says that a run reads as zeros.
	Allocation(ctx context.Context, off, length int64, yield func(length int64, zero bool)) error
}

// ImageWriter writes the guest-visible bytes of an image. The caller closes
// it; only what was written before a Flush that returned nil is durable.
type ImageWriter interface {
	io.WriterAt
	io.ReaderAt
	io.Closer
	Size() int64
	// Zero makes a run read as zeros, taking no space where the format can.
	Zero(ctx context.Context, off, length int64) error
	Flush(ctx context.Context) error
}
