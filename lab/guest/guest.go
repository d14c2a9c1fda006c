// Package guest makes the lab's guests: kernel, initramfs and disk images,
// built once into a cache folder and named by their content, so that a change
// builds anew and concurrent builds do not collide.
//
// The small guest is the Go program in package sheep as an initramfs on
// Debian's cloud kernel; it needs 128 MiB and no disk. The Debian guest is an
// ext4 image with PostgreSQL, Redis and nginx that the same initramfs boots.
// An image of the user's own is looked at by CheckImage.
//
// Nothing is ever removed from the cache, since machines may be running on what
// an older program built: the folder may be deleted while no lab is up.
//
// Starting machines, and giving them disks and networks, is left to the lab.
// Only amd64 is supported, as in the lab.
package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
)

// DefaultCacheDir is where images are kept unless a caller names another
// folder.
const DefaultCacheDir = "/var/cache/drover"

// Sheep is the small guest. It boots with a command line like
//
//	console=ttyS0 drover.name=web1 drover.ip=10.20.0.10/24 drover.gw=10.20.0.1
type Sheep struct {
	Kernel string
	Initrd string
}

// Debian is the Debian guest. It boots with the Sheep's command line and
// root=/dev/vda, Disk being the first virtio disk. Disk is shared and must
// not be written to: machines run on an overlay or a copy.
type Debian struct {
	Kernel string
	Initrd string
	// Disk is a sparse raw image of DebianDiskBytes.
	Disk string
}

// lockPoll is how often a lock that somebody else holds is tried again.
const lockPoll = 100 * time.Millisecond

// lockCache takes the cache's lock called name, waiting for whoever builds
// the same thing, and returns its release. The lock goes with the process.
func lockCache(ctx context.Context, cacheDir, name string) (release func(), err error) {
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(cacheDir, "."+name+".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock cache: %w", err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for another build: %w", ctx.Err()), f.Close())
		case <-time.After(lockPoll):
		}
	}
}

// command runs a tool of the system and returns its standard output; its
// standard error becomes part of the error. A missing tool is reported with
// the Debian package that brings it.
func command(ctx context.Context, dir, pkg, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	// Some maintainer scripts of Debian empty /tmp while it is in use.
	cmd.Env = append(os.Environ(), "TMPDIR=/var/tmp", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, drover.Errorf(drover.Unavailable, "run "+name, "not installed: apt-get install %s", pkg)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", name, ctx.Err())
	default:
		return nil, fmt.Errorf("%s: %w: %s", name, err, lastLines(stderr.String(), 5))
	}
}

// lastLines returns the last n lines of text on one line: the part of a
// tool's output that says why it failed.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
