package driver

import (
	"context"

	"github.com/drover-vm/drover"
)

// DiskCopier copies a disk of a running VM into another image while the guest writes
// to it, and has the guest go on with the copy.
//
//	CopyDisk ─▶ copying ─▶ ready (every write goes to both) ─▶ EndDiskCopy, pivot
//
// A copy belongs to the VM: it outlives who began it, and ends with the VM's
// execution, which then leaves the disk where it was. One that the hypervisor has
// given up, as when the new image's file system is full, is not there any more. A VM
// or a disk that does not exist gives drover.NotFound; a VM that is off has no copies.
type DiskCopier interface {
	// CopyDisk begins to copy a disk into an image, which exists, has the disk's
	// virtual size and reads as zeros. A copy of the same disk to the same path
	// that is under way is fine; one to another path gives drover.Refused, and so
	// does a VM that is off.
	CopyDisk(ctx context.Context, name string, c DiskCopy) error
	// DiskCopyState observes a copy; none gives drover.NotFound.
	DiskCopyState(ctx context.Context, name, target string) (DiskCopyState, error)
	// SetDiskCopyRate changes how fast it copies, zero is unlimited; no copy gives
	// drover.NotFound. What the guest writes is not held back.
	SetDiskCopyRate(ctx context.Context, name, target string, rate drover.BitRate) error
	// EndDiskCopy ends a copy. With pivot, which has to be ready (drover.Refused
	// otherwise), the guest goes on with it, in its persistent definition too, and
	// the old disk is not touched any more; no copy gives drover.NotFound. Without,
	// the guest stays where it was; no copy is fine then.
	EndDiskCopy(ctx context.Context, name, target string, pivot bool) error
}

// DiskCopy is a copy to begin.
type DiskCopy struct {
	Target string // "vda"
	// Path and Format ("qcow2", "raw") are the new image's.
	Path, Format string
	// Rate bounds the copying, zero is unlimited.
	Rate drover.BitRate
}

// DiskCopyState is how far a copy is.
type DiskCopyState struct {
	// Path of the new image.
	Path string
	// DoneBytes of TotalBytes; what the guest writes meanwhile adds to both.
	DoneBytes, TotalBytes drover.Bytes
	// Ready says that the two are the same, and stay so.
	Ready bool
}
