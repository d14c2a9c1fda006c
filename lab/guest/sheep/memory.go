package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/lab/guest/control"
)

const (
	pageBytes = 4096
	// memoryTick is how often the writer runs: at 10 MB/s it dirties 25
	// pages each time.
	memoryTick = 10 * time.Millisecond
	// memoryReserve is left free beside a working set: sockets and the
	// program itself need it to go on.
	memoryReserve = 12 << 20
	// memoryBatch is the number of pages between looks at the clock and at
	// a changed setting.
	memoryBatch = 256
)

// errNoMemory says that the guest is too small for a working set.
var errNoMemory = errors.New("not enough memory")

// memoryWriter dirties the distinct pages of a working set at a rate.
type memoryWriter struct {
	started chan struct{} // has a value after a start

	mu    sync.Mutex
	stat  control.MemoryStats
	set   []byte // mapped, nil when stopped
	pace  pace
	next  int64  // page to dirty
	stamp uint64 // makes every written content a new one
}

func newMemoryWriter() *memoryWriter {
	return &memoryWriter{started: make(chan struct{}, 1), stamp: uint64(time.Now().UnixNano())}
}

// start maps the working set and begins to write; a running writer is
// replaced. The counters go on.
func (w *memoryWriter) start(m control.Memory) error {
	if err := m.Validate(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	size := (m.WorkingSetBytes + pageBytes - 1) / pageBytes * pageBytes
	if size != int64(len(w.set)) {
		free, err := availableBytes()
		if err != nil {
			return err
		}
		free += int64(len(w.set)) // given back before the new one is filled
		if size > free-memoryReserve {
			return fmt.Errorf("%w: working_set_bytes %d, the guest has room for %d", errNoMemory, m.WorkingSetBytes, max(0, free-memoryReserve))
		}
		if err := w.unmap(); err != nil {
			return err
		}
		set, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return fmt.Errorf("map working set: %w", err)
		}
		w.set, w.next = set, 0
		for off := int64(0); off < size; off += pageBytes {
			w.dirty(set[off:off+pageBytes], m.Compressible) // the whole set is real before anything is measured
		}
	}
	w.pace = pace{perSecond: float64(m.RateBytesPerS) / pageBytes, last: time.Now()}
	w.stat.Memory, w.stat.Running = m, true
	select {
	case w.started <- struct{}{}:
	default:
	}
	return nil
}

func (w *memoryWriter) stop() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stat.Running = false
	return w.unmap()
}

func (w *memoryWriter) unmap() error {
	if w.set == nil {
		return nil
	}
	set := w.set
	w.set = nil
	if err := unix.Munmap(set); err != nil {
		return fmt.Errorf("unmap working set: %w", err)
	}
	return nil
}

func (w *memoryWriter) stats() control.MemoryStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stat
}

// run writes until ctx is done. A stopped writer waits without looking: an idle
// guest leaves its host alone.
func (w *memoryWriter) run(ctx context.Context) {
	for ctx.Err() == nil {
		if w.write(time.Now()) {
			sleep(ctx, memoryTick)
			continue
		}
		select {
		case <-ctx.Done():
		case <-w.started:
		}
	}
}

// write dirties the pages that are due. It reports whether the writer runs.
func (w *memoryWriter) write(now time.Time) bool {
	w.mu.Lock()
	if !w.stat.Running {
		w.mu.Unlock()
		return false
	}
	due, dropped := w.pace.take(now)
	w.stat.SkippedBytes += dropped * pageBytes
	w.mu.Unlock()
	for due > 0 {
		n := min(due, memoryBatch)
		due -= n
		w.mu.Lock()
		for range n {
			if !w.stat.Running {
				break
			}
			off := w.next * pageBytes
			w.dirty(w.set[off:off+pageBytes], w.stat.Compressible)
			w.next = (w.next + 1) % (int64(len(w.set)) / pageBytes)
			w.stat.WrittenBytes += pageBytes
		}
		w.mu.Unlock()
	}
	return true
}

// dirty gives a page a content that it did not have before: the compressible
// share repeats one 8-byte value, the rest is splitmix64 output.
func (w *memoryWriter) dirty(page []byte, compressible float64) {
	w.stamp++
	constant := int(compressible*pageBytes) &^ 7
	for i := 0; i < constant; i += 8 {
		binary.NativeEndian.PutUint64(page[i:], w.stamp)
	}
	seed := w.stamp * 0xd1342543de82ef95
	for i := constant; i < pageBytes; i += 8 {
		seed += 0x9e3779b97f4a7c15
		z := seed
		z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
		z = (z ^ (z >> 27)) * 0x94d049bb133111eb
		binary.NativeEndian.PutUint64(page[i:], z^(z>>31))
	}
}

// availableBytes returns the kernel's estimate of memory that can be had.
func availableBytes() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read free memory: %w", err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			var kib int64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				return 0, fmt.Errorf("read free memory: %q: %w", rest, err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("read free memory: /proc/meminfo does not say")
}
