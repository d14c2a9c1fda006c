package agent

import (
	"bytes"
	"context"
	"io"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// aboveWindow is read of both images at a time; aboveBlock is the unit in
	// which they are compared, a cluster of qcow2.
	aboveWindow = 4 << 20
	aboveBlock  = 64 << 10
)

// above is a disk of which only what differs from the image below it is reported.
// A hypervisor that serves a frozen disk does not tell which image of the chain
// holds what, so it is found by comparing. Where the destination has the same
// image below, that is all it needs.
type above struct {
	driver.ImageReader
	list []driver.Extent
}

// aboveOf compares. Closing the result closes the disk.
func aboveOf(ctx context.Context, disk, below driver.ImageReader, report func(done, total int64)) (driver.ImageReader, error) {
	a := &above{ImageReader: disk}
	disks, err := windowsOf(ctx, disk)
	if err != nil {
		return nil, err
	}
	belows, err := windowsOf(ctx, below)
	if err != nil {
		return nil, err
	}
	mine, theirs := make([]byte, aboveWindow), make([]byte, aboveWindow)
	for off := int64(0); off < disk.Size(); off += aboveWindow {
		if ctx.Err() != nil {
			return nil, drover.E(drover.Canceled, "compare with the image below", ctx.Err())
		}
		w := off / aboveWindow
		if !disks[w] && !belows[w] {
			continue
		}
		n := min(aboveWindow, disk.Size()-off)
		if err := readWindow(disk, disks[w], mine[:n], off); err != nil {
			return nil, err
		}
		if err := readWindow(below, belows[w], theirs[:n], off); err != nil {
			return nil, err
		}
		a.compare(mine[:n], theirs[:n], off)
		report(off+n, disk.Size())
	}
	return a, nil
}

// windowsOf are the windows in which an image may have something other than
// zeros.
func windowsOf(ctx context.Context, img driver.ImageReader) (map[int64]bool, error) {
	windows := make(map[int64]bool)
	err := img.Extents(ctx, func(e driver.Extent) bool {
		for w := e.Offset / aboveWindow; !e.Zero && w*aboveWindow < e.Offset+e.Length; w++ {
			windows[w] = true
		}
		return true
	})
	return windows, err
}

// readWindow fills p with what the image has there, zeros beyond its end.
func readWindow(img driver.ImageReader, any bool, p []byte, off int64) error {
	have := p[:max(0, min(int64(len(p)), img.Size()-off))]
	clear(p[len(have):])
	if !any {
		clear(have)
		return nil
	}
	if n, err := img.ReadAt(have, off); n < len(have) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return drover.E(drover.Unavailable, "compare with the image below", err)
	}
	return nil
}

var zeroBlock [aboveBlock]byte

// compare adds the blocks in which the two differ.
func (a *above) compare(mine, theirs []byte, off int64) {
	for at := 0; at < len(mine); at += aboveBlock {
		end := min(at+aboveBlock, len(mine))
		block := mine[at:end]
		if bytes.Equal(block, theirs[at:end]) {
			continue
		}
		e := driver.Extent{Offset: off + int64(at), Length: int64(len(block)), Zero: bytes.Equal(block, zeroBlock[:len(block)])}
		if n := len(a.list); n > 0 && a.list[n-1].Zero == e.Zero && a.list[n-1].Offset+a.list[n-1].Length == e.Offset {
			a.list[n-1].Length += e.Length
			continue
		}
		a.list = append(a.list, e)
	}
}

// Extents are what differs.
func (a *above) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	for _, e := range a.list {
		if ctx.Err() != nil {
			return drover.E(drover.Canceled, "differences", ctx.Err())
		}
		if !yield(e) {
			break
		}
	}
	return nil
}
