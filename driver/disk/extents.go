package disk

import (
	"context"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/nbd"
)

// flagZero of base:allocation says that a run reads as zeros.
const flagZero = 1 << 1

// topDepth of qemu:allocation-depth says that the top image itself holds a
// run, be it data or zeros that hide the backing image.
const topDepth = 1

// Extents calls yield for each run of data; opened topOnly, for each run that
// the top image holds above its backing, zeros included.
func (im *image) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	m := merger{yield: yield}
	var st nbd.Status
	for off := int64(0); off < im.Size() && !m.stopped; {
		if err := ctx.Err(); err != nil { // the server may answer all the same
			return im.fault("extents of", err)
		}
		if err := im.client.BlockStatus(ctx, off, im.Size()-off, &st); err != nil {
			return im.fault("extents of", err)
		}
		switch {
		case im.bitmap != "":
			off = changedExtents(&m, off, st.Extents[contextBitmap])
		case im.topOnly:
			off = topExtents(&m, off, st.Extents[contextAllocation], st.Extents[contextDepth])
		default:
			off = allExtents(&m, off, st.Extents[contextAllocation])
		}
	}
	m.flush()
	return nil
}

// Allocation tells what qemu-nbd says of one range.
func (im *image) Allocation(ctx context.Context, off, length int64, yield func(length int64, zero bool)) error {
	var st nbd.Status
	if err := im.client.BlockStatus(ctx, off, length, &st); err != nil {
		return im.fault("extents of", err)
	}
	for _, e := range st.Extents[contextAllocation] {
		yield(int64(e.Length), e.Flags&flagZero != 0)
	}
	return nil
}

// allExtents reports what may be other than zero. A hole that does not
// promise zeros is data.
func allExtents(m *merger, off int64, list []nbd.Extent) int64 {
	for _, e := range list {
		if e.Flags&flagZero == 0 {
			m.add(driver.Extent{Offset: off, Length: int64(e.Length)})
		}
		off += int64(e.Length)
	}
	return off
}

// topExtents walks both lists as far as the shorter reaches.
func topExtents(m *merger, off int64, alloc, depth []nbd.Extent) int64 {
	var a, d nbd.Extent
	for {
		if a.Length == 0 {
			if len(alloc) == 0 {
				return off
			}
			a, alloc = alloc[0], alloc[1:]
		}
		if d.Length == 0 {
			if len(depth) == 0 {
				return off
			}
			d, depth = depth[0], depth[1:]
		}
		n := min(a.Length, d.Length)
		if d.Flags == topDepth {
			m.add(driver.Extent{Offset: off, Length: int64(n), Zero: a.Flags&flagZero != 0})
		}
		a.Length, d.Length = a.Length-n, d.Length-n
		off += int64(n)
	}
}

// merger joins neighbours before it yields them.
type merger struct {
	yield   func(driver.Extent) bool
	last    driver.Extent
	stopped bool
}

func (m *merger) add(e driver.Extent) {
	if m.last.Length > 0 && m.last.Zero == e.Zero && m.last.Offset+m.last.Length == e.Offset {
		m.last.Length += e.Length
		return
	}
	m.flush()
	m.last = e
}

func (m *merger) flush() {
	if m.last.Length > 0 && !m.stopped {
		m.stopped = !m.yield(m.last)
	}
	m.last = driver.Extent{}
}
