package memory

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/zeebo/blake3"
)

// handle is an open image. The store's lock guards it.
type handle struct {
	store   *Volumes
	chain   []*file // top first
	topOnly bool
	write   bool
	closed  bool
	// undo is what the clusters written since the last Flush were before, for
	// CrashWriter.
	undo map[int64]before
}

// before is a cluster's earlier state: not there, data, or nil for zeros.
type before struct {
	absent bool
	data   []byte
}

var (
	_ driver.ImageReader = (*handle)(nil)
	_ driver.ImageWriter = (*handle)(nil)
)

// OpenRead opens an image for reading.
func (v *Volumes) OpenRead(ctx context.Context, path string, topOnly bool) (driver.ImageReader, error) {
	h, err := v.openImage(ctx, "open read", path, false)
	if err != nil {
		return nil, err
	}
	h.topOnly = topOnly && len(h.chain) > 1
	return h, nil
}

// OpenWrite opens an image for writing.
func (v *Volumes) OpenWrite(ctx context.Context, path string) (driver.ImageWriter, error) {
	h, err := v.openImage(ctx, "open write", path, true)
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (v *Volumes) openImage(ctx context.Context, name, path string, write bool) (*handle, error) {
	if err := v.begin(ctx, name, path); err != nil {
		return nil, err
	}
	defer v.mu.Unlock()
	chain, err := v.chain(path)
	if err != nil {
		return nil, wrap(name+" volume "+path, err)
	}
	for i, f := range chain {
		if f.writer || write && i == 0 && f.readers > 0 {
			return nil, wrap(name+" volume "+path, errInUse())
		}
	}
	h := &handle{store: v, chain: chain, write: write, undo: map[int64]before{}}
	for i, f := range chain {
		if write && i == 0 {
			f.writer = true
		} else {
			f.readers++
		}
	}
	v.open[h] = struct{}{}
	return h, nil
}

// close releases the image; the lock is held.
func (h *handle) close() {
	if h.closed {
		return
	}
	h.closed = true
	for i, f := range h.chain {
		if h.write && i == 0 {
			f.writer = false
		} else {
			f.readers--
		}
	}
	delete(h.store.open, h)
}

// Close releases the image. Closing twice is fine; a fault leaves it open.
func (h *handle) Close() error {
	if f := h.store.cfg.Fault; f != nil {
		if err := f("close", h.chain[0].path); err != nil {
			return wrap("close volume "+h.chain[0].path, err)
		}
	}
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	h.close()
	return nil
}

// CrashWriter ends an image's writer, opened by a store of this package, as the loss
// of its host would: what was written since the last Flush is undone.
func CrashWriter(w driver.ImageWriter) {
	h := w.(*handle)
	v := h.store
	v.mu.Lock()
	defer v.mu.Unlock()
	if h.closed {
		return
	}
	top := h.chain[0]
	v.used -= top.allocated()
	for i, was := range h.undo {
		if was.absent {
			delete(top.clusters, i)
		} else {
			top.clusters[i] = was.data
		}
	}
	v.used += top.allocated()
	top.damage()
	h.close()
}

// Size is the image's virtual size in bytes.
func (h *handle) Size() int64 { return h.chain[0].size }

// begin takes the store's lock unless the operation cannot begin.
func (h *handle) begin(name string, off, length int64) error {
	op := name + " volume " + h.chain[0].path
	if f := h.store.cfg.Fault; f != nil {
		if err := f(name, h.chain[0].path); err != nil {
			return wrap(op, err)
		}
	}
	if off < 0 || length < 0 || off > h.Size() || length > h.Size()-off {
		return drover.Errorf(drover.Invalid, op, "range %d+%d is outside of the image of %d bytes", off, length, h.Size())
	}
	h.store.mu.Lock()
	if h.closed {
		h.store.mu.Unlock()
		return drover.Errorf(drover.Canceled, op, "the image is closed")
	}
	return nil
}

// visible is what the guest sees of a cluster, nil or short where zeros are:
// an image in between that ends earlier hides what is below its end.
func (h *handle) visible(index int64) []byte {
	for n, f := range h.chain {
		c, ok := f.clusters[index]
		if !ok {
			continue
		}
		for _, above := range h.chain[:n+1] {
			if end := above.size - index*clusterBytes; end < int64(len(c)) {
				c = c[:max(0, end)]
			}
		}
		return c
	}
	return nil
}

// ReadAt reads guest-visible bytes.
func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	var end error
	if off >= 0 && int64(len(p)) > h.Size()-off {
		end = io.EOF
		p = p[:max(0, h.Size()-off)]
		off = min(off, h.Size())
	}
	if err := h.begin("read at", off, int64(len(p))); err != nil {
		return 0, err
	}
	defer h.store.mu.Unlock()
	h.read(p, off)
	return len(p), end
}

func (h *handle) read(p []byte, off int64) {
	for len(p) > 0 {
		index, at := off/clusterBytes, off%clusterBytes
		part := p[:min(int64(len(p)), clusterBytes-at)]
		n := 0
		if c := h.visible(index); int64(len(c)) > at {
			n = copy(part, c[at:])
		}
		clear(part[n:])
		p, off = p[len(part):], off+int64(len(part))
	}
}

// WriteAt writes guest-visible bytes.
func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	if err := h.begin("write at", off, int64(len(p))); err != nil {
		return 0, err
	}
	defer h.store.mu.Unlock()
	done := 0
	for done < len(p) {
		at := (off + int64(done)) % clusterBytes
		n := min(len(p)-done, clusterBytes-int(at))
		if err := h.put((off+int64(done))/clusterBytes, at, p[done:done+n]); err != nil {
			return done, wrap("write volume "+h.chain[0].path, err)
		}
		done += n
	}
	return done, nil
}

// put writes into one cluster.
func (h *handle) put(index, at int64, p []byte) error {
	top := h.chain[0]
	old, present := top.clusters[index]
	if old == nil {
		if err := h.store.take(clusterBytes); err != nil {
			return err
		}
	}
	h.remember(index, old, present)
	top.mark(index)
	c := make([]byte, clusterBytes)
	if present {
		copy(c, old)
	} else {
		copy(c, h.visible(index)) // copy on write
	}
	copy(c[at:], p)
	top.clusters[index] = c
	return nil
}

func (h *handle) remember(index int64, old []byte, present bool) {
	if _, known := h.undo[index]; !known {
		h.undo[index] = before{absent: !present, data: old}
	}
}

// Zero makes a run read as zeros; whole clusters are given back.
func (h *handle) Zero(ctx context.Context, off, length int64) error {
	if ctx.Err() != nil {
		return drover.E(drover.Canceled, "zero volume "+h.chain[0].path, ctx.Err())
	}
	if err := h.begin("zero", off, length); err != nil {
		return err
	}
	defer h.store.mu.Unlock()
	for length > 0 {
		index, at := off/clusterBytes, off%clusterBytes
		n := min(length, clusterBytes-at)
		if err := h.zero(index, at, n); err != nil {
			return wrap("zero volume "+h.chain[0].path, err)
		}
		off, length = off+n, length-n
	}
	return nil
}

func (h *handle) zero(index, at, n int64) error {
	top := h.chain[0]
	old, present := top.clusters[index]
	if n < clusterBytes && index*clusterBytes+at+n < top.size || at > 0 {
		if h.visible(index) == nil {
			return nil
		}
		return h.put(index, at, make([]byte, n))
	}
	if present && old == nil {
		return nil
	}
	h.remember(index, old, present)
	top.mark(index)
	if old != nil {
		h.store.used -= clusterBytes
	}
	if len(h.chain) > 1 {
		top.clusters[index] = nil
	} else {
		delete(top.clusters, index)
	}
	return nil
}

// Flush makes what was written survive a Crash.
func (h *handle) Flush(ctx context.Context) error {
	if ctx.Err() != nil {
		return drover.E(drover.Canceled, "flush volume "+h.chain[0].path, ctx.Err())
	}
	if err := h.begin("flush", 0, 0); err != nil {
		return err
	}
	defer h.store.mu.Unlock()
	clear(h.undo)
	return nil
}

// Extents reports the clusters of the whole chain that hold data, or those
// that the top image holds itself.
func (h *handle) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	if err := h.begin("extents", 0, 0); err != nil {
		return err
	}
	list := h.extents()
	h.store.mu.Unlock() // yield may read
	for _, e := range list {
		if ctx.Err() != nil {
			return drover.E(drover.Canceled, "extents of volume "+h.chain[0].path, ctx.Err())
		}
		if !yield(e) {
			return nil
		}
	}
	return drover.E(drover.Canceled, "extents of volume "+h.chain[0].path, ctx.Err())
}

func (h *handle) extents() []driver.Extent {
	indexes := map[int64]bool{}
	for _, f := range h.chain {
		for i := range f.clusters {
			indexes[i] = true
		}
		if h.topOnly {
			break
		}
	}
	var list []driver.Extent
	for _, i := range slices.Sorted(maps.Keys(indexes)) {
		e := driver.Extent{Offset: i * clusterBytes, Length: min(clusterBytes, h.Size()-i*clusterBytes)}
		e.Zero = h.visible(i) == nil
		if e.Length <= 0 || e.Zero && !h.topOnly {
			continue
		}
		if n := len(list); n > 0 && list[n-1].Zero == e.Zero && list[n-1].Offset+list[n-1].Length == e.Offset {
			list[n-1].Length += e.Length
			continue
		}
		list = append(list, e)
	}
	return list
}

// Identify digests an image's guest-visible content by the definition in
// package disk, afresh each time.
func (v *Volumes) Identify(ctx context.Context, path string) (driver.ContentID, error) {
	if v.cfg.Fault != nil {
		if err := v.cfg.Fault("identify", path); err != nil {
			return driver.ContentID{}, wrap("identify volume "+path, err)
		}
	}
	h, err := v.openImage(ctx, "open read", path, false)
	if err != nil {
		return driver.ContentID{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	defer h.close()
	const block = 1 << 20
	root := blake3.New()
	var num [8]byte
	fmt.Fprint(root, "drover content 1\n")
	binary.LittleEndian.PutUint64(num[:], uint64(h.Size()))
	root.Write(num[:])
	blocks := map[int64]bool{}
	for _, e := range h.extents() {
		for i := e.Offset / block; i*block < e.Offset+e.Length; i++ {
			blocks[i] = true
		}
	}
	buf, zero := make([]byte, block), string(make([]byte, block))
	for _, i := range slices.Sorted(maps.Keys(blocks)) {
		b := buf[:min(block, h.Size()-i*block)]
		h.read(b, i*block)
		if string(b) == zero[:len(b)] {
			continue
		}
		binary.LittleEndian.PutUint64(num[:], uint64(i))
		root.Write(num[:])
		sum := blake3.Sum256(b)
		root.Write(sum[:])
	}
	return driver.ContentID(root.Sum(nil)), nil
}
