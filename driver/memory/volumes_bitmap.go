package memory

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// bitmap is the record of what has changed in an image since a checkpoint.
type bitmap struct {
	changed map[int64]bool // clusters
	// damaged: the hypervisor died before it wrote the record back.
	damaged bool
}

// mark notes a cluster's change in every record; the store's lock is held.
func (f *file) mark(index int64) {
	for _, b := range f.bitmaps {
		b.changed[index] = true
	}
}

// damage is what the death of whoever records leaves; the store's lock is held.
func (f *file) damage() {
	for _, b := range f.bitmaps {
		b.damaged = true
	}
}

func (f *file) checkpoints() []driver.Checkpoint {
	return slices.SortedFunc(maps.Keys(f.bitmaps), byNumber)
}

func byNumber(a, b driver.Checkpoint) int {
	if a.Owner != b.Owner {
		return strings.Compare(string(a.Owner), string(b.Owner))
	}
	return int(a.Number - b.Number)
}

// record begins to record changes; the lock is held.
func (f *file) record(c driver.Checkpoint) {
	if f.bitmaps == nil {
		f.bitmaps = map[driver.Checkpoint]*bitmap{}
	}
	f.bitmaps[c] = &bitmap{changed: map[int64]bool{}}
}

// AddBitmap begins to record an image's changes, as another program would.
func (v *Volumes) AddBitmap(path string, c driver.Checkpoint) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.files[path].record(c)
}

// tracked finds an image that can have records; the lock is held.
func (v *Volumes) tracked(path string) (*file, error) {
	f, err := v.image(path)
	if err == nil && f.format != formatQcow2 {
		err = drover.Errorf(drover.Refused, "", "its format is %s, and only qcow2 can record changes: convert it", f.format)
	}
	return f, err
}

// Bitmaps lists an image's records.
func (v *Volumes) Bitmaps(ctx context.Context, path string) ([]driver.Checkpoint, error) {
	if err := v.begin(ctx, "bitmaps", path); err != nil {
		return nil, err
	}
	defer v.mu.Unlock()
	f, err := v.tracked(path)
	if err != nil {
		return nil, wrap("bitmaps of volume "+path, err)
	}
	return f.checkpoints(), nil
}

// OpenChanges opens an image with one of its records.
func (v *Volumes) OpenChanges(ctx context.Context, path string, since driver.Checkpoint) (driver.ImageReader, error) {
	const name = "open changes"
	op := name + " of volume " + path
	if err := since.Validate(); err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	h, err := v.openImage(ctx, name, path, false)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	f, err := v.tracked(path)
	if err == nil && f.guest {
		err = errInUse()
	}
	if err == nil && (f.bitmaps[since] == nil || f.bitmaps[since].damaged) {
		err = drover.Errorf(drover.NotFound, "", "it has no bitmap %s of any use", since)
	}
	if err != nil {
		h.close()
		return nil, wrap(op, err)
	}
	return &changes{handle: h, changed: maps.Clone(f.bitmaps[since].changed)}, nil
}

// RemoveBitmap removes one.
func (v *Volumes) RemoveBitmap(ctx context.Context, path string, c driver.Checkpoint) error {
	op := "remove bitmap of volume " + path
	if err := v.begin(ctx, "remove bitmap", path); err != nil {
		return err
	}
	defer v.mu.Unlock()
	if err := c.Validate(); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	f := v.files[path]
	switch {
	case f == nil:
		return nil
	case f.guest || f.writer || f.readers > 0:
		return wrap(op, errInUse())
	}
	delete(f.bitmaps, c)
	return nil
}

// changes is an open image of which only what has changed is reported.
type changes struct {
	*handle
	changed map[int64]bool
}

// Extents are the changed clusters.
func (c *changes) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	var list []driver.Extent
	for _, i := range slices.Sorted(maps.Keys(c.changed)) {
		e := driver.Extent{Offset: i * clusterBytes, Length: min(clusterBytes, c.Size()-i*clusterBytes)}
		if n := len(list); n > 0 && list[n-1].Offset+list[n-1].Length == e.Offset {
			list[n-1].Length += e.Length
			continue
		}
		list = append(list, e)
	}
	for _, e := range list {
		if ctx.Err() != nil {
			return drover.E(drover.Canceled, "changes of volume "+c.chain[0].path, ctx.Err())
		}
		if !yield(e) {
			break
		}
	}
	return nil
}

// setGuest says whether a VM runs on an image.
func (v *Volumes) setGuest(path string, running bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if f := v.files[path]; f != nil {
		f.guest = running
	}
}

// damage spoils the records of an image.
func (v *Volumes) damage(path string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if f := v.files[path]; f != nil {
		f.damage()
	}
}

// guestWrite is a write of the VM that runs on the image.
func (v *Volumes) guestWrite(path string, off int64, p []byte) error {
	v.mu.Lock()
	chain, err := v.chain(path)
	v.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = (&handle{store: v, chain: chain, undo: map[int64]before{}}).WriteAt(p, off)
	return err
}

// freeze returns an image as it is now; with since, its changes.
func (v *Volumes) freeze(path string, since driver.Checkpoint) (driver.ImageReader, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	chain, err := v.chain(path)
	if err != nil {
		return nil, err
	}
	top := *chain[0]
	// A cluster is replaced when it is written to, never changed in place.
	top.clusters = maps.Clone(top.clusters)
	chain[0] = &top
	h := &handle{store: v, chain: chain, undo: map[int64]before{}}
	if since == (driver.Checkpoint{}) {
		return frozen{h}, nil
	}
	return frozen{&changes{handle: h, changed: maps.Clone(top.bitmaps[since].changed)}}, nil
}

// frozen has nothing to give back when it is closed.
type frozen struct{ driver.ImageReader }

// Close is fine at any time.
func (frozen) Close() error { return nil }
