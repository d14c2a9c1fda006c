package libvirt

import (
	"context"
	"net"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/nbd"
)

// backupDial bounds connecting to QEMU's NBD server, which listens already.
const backupDial = 10 * time.Second

// flagZero of base:allocation says that a run reads as zeros, flagChanged of a
// dirty bitmap that it has changed (QEMU, docs/interop/nbd.rst).
const (
	flagZero    = 1 << 1
	flagChanged = 1 << 0
)

// backupJob is a backup that this process began.
type backupJob struct {
	h    *Hypervisor
	name string
	spec driver.BackupSpec
}

// End ends the backup.
func (b *backupJob) End(ctx context.Context) error {
	return b.h.EndBackup(ctx, b.name, b.spec.Checkpoint.Owner)
}

// Open connects to QEMU's server of the disk.
func (b *backupJob) Open(ctx context.Context, target string) (driver.ImageReader, error) {
	op := "open backup of " + b.name + ": " + target
	ctx, cancel := context.WithTimeout(ctx, backupDial)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", b.spec.Socket)
	if err != nil {
		return nil, drover.E(drover.Unavailable, op, err)
	}
	im := &backupImage{what: op, since: b.spec.Since != driver.Checkpoint{}}
	contextName := "base:allocation"
	if im.since {
		contextName = "qemu:dirty-bitmap:" + exportBitmap
	}
	im.client, err = nbd.New(ctx, conn, nbd.Options{Export: target, Contexts: []string{contextName}})
	if err != nil {
		return nil, drover.E(drover.Unavailable, op, err)
	}
	if !im.client.HasContext(0) {
		_ = im.client.Close()
		return nil, drover.Errorf(drover.Unavailable, op, "QEMU does not report %s", contextName)
	}
	return im, nil
}

// backupImage is a disk as QEMU serves it.
type backupImage struct {
	what   string
	since  bool
	client *nbd.Client
}

var _ driver.ImageReader = (*backupImage)(nil)

// Size is the disk's size in bytes.
func (im *backupImage) Size() int64 { return im.client.Size() }

// ReadAt reads the disk as it was at the checkpoint.
func (im *backupImage) ReadAt(p []byte, off int64) (int, error) { return im.client.ReadAt(p, off) }

// Close ends the connection.
func (im *backupImage) Close() error { return im.client.Close() }

// Extents are the runs that are not zeros, or that have changed.
func (im *backupImage) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	wanted := func(flags uint64) bool { return flags&flagZero == 0 }
	if im.since {
		wanted = func(flags uint64) bool { return flags&flagChanged != 0 }
	}
	var st nbd.Status
	var last driver.Extent
	for off := int64(0); off < im.Size(); {
		if err := im.client.BlockStatus(ctx, off, im.Size()-off, &st); err != nil {
			if ctx.Err() != nil {
				return drover.E(drover.Canceled, im.what, ctx.Err())
			}
			return drover.E(drover.Unavailable, im.what, err)
		}
		for _, e := range st.Extents[0] {
			run := driver.Extent{Offset: off, Length: int64(e.Length)}
			off += run.Length
			switch {
			case !wanted(e.Flags):
			case last.Length > 0 && last.Offset+last.Length == run.Offset:
				last.Length += run.Length
			default:
				if last.Length > 0 && !yield(last) {
					return nil
				}
				last = run
			}
		}
	}
	if last.Length > 0 {
		yield(last)
	}
	return nil
}
