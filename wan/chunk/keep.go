package chunk

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/drover-vm/drover"
	"golang.org/x/sys/unix"
)

// OpenLibrary opens the folder, making it where it is not, and removes what a
// crash left unfinished. It does not read content: Run checks what was found
// before it is used. Errors: drover.Refused when another process has it open.
func OpenLibrary(dir string, o Options) (*Library, error) {
	const op = "open library"
	l := newLibrary(dir, o)
	for _, d := range []string{dir, filepath.Join(dir, memoryFolder), filepath.Join(dir, catalogueFolder)} {
		// What guests have in memory is nobody else's business.
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, diskFault(op, err)
		}
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, diskFault(op, err)
	}
	l.lock = lock
	if err := l.sweep(); err != nil {
		return nil, diskFault(op, errors.Join(err, l.Close()))
	}
	// A lower limit than before takes effect at once.
	unlock := l.lockFiles()
	l.trim()
	unlock()
	return l, nil
}

// NewMemory begins the mirror of a move. base is the memory of an earlier move
// that both ends have, or zero. Room for all of it is set aside; for that,
// what was used least recently is evicted, but nothing that is open. Errors:
// drover.Exhausted when there is no room within the limit, or the file system
// would keep less than a gigabyte (the caller goes without, or tries without
// the base, which needs room, too); drover.NotFound and drover.Refused for the
// base; drover.Invalid.
func (l *Library) NewMemory(src Source, base SourceID) (*Memory, error) {
	const op = "new memory"
	if src.Kind != KindMemory || src.ID.IsZero() || src.Blocks < 1 || src.Blocks > MaxBlocks {
		return nil, drover.Errorf(drover.Invalid, op, "a %v of %d blocks", src.Kind, src.Blocks)
	}
	m := &Memory{library: l, source: src, run: make([]byte, 0, runBlocks*BlockBytes)}
	if !base.IsZero() {
		if !l.InScope(base, src.Scope, src.VM) {
			return nil, drover.Errorf(drover.NotFound, op, "base %v", base)
		}
		h, err := l.acquire(base)
		if err != nil {
			return nil, err
		}
		if h.entry.source.Kind != KindMemory {
			return nil, errors.Join(drover.Errorf(drover.Refused, op, "the base is a %v", h.entry.source.Kind), h.Close())
		}
		m.base, m.inBase = h, min(h.entry.source.Blocks, src.Blocks)
	}
	if err := l.begin(m); err != nil {
		if m.base != nil {
			err = errors.Join(err, m.base.Close())
		}
		return nil, diskFault(op, err)
	}
	m.fresh, m.zero, m.stored = newBitmap(src.Blocks), newBitmap(src.Blocks), newBitmap(src.Blocks)
	return m, nil
}

// begin sets room aside and makes the file.
func (l *Library) begin(m *Memory) error {
	size := m.source.Blocks * BlockBytes
	unlock := l.lockFiles()
	defer unlock()
	if err := l.ctx.Err(); err != nil {
		return drover.Errorf(drover.Refused, "new memory", "the library is closed")
	}
	if err := l.makeRoom(size); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(l.dir, memoryFolder), "*"+newSuffix)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	m.file, m.path = f, f.Name()
	l.mu.Lock()
	l.memories[m] = struct{}{}
	l.mu.Unlock()
	return nil
}

// forget removes a memory that is not sealed.
func (l *Library) forget(m *Memory) error {
	unlock := l.lockFiles()
	defer unlock()
	err := os.Remove(m.path)
	l.mu.Lock()
	delete(l.memories, m)
	l.mu.Unlock()
	return err
}

// adopt makes a memory whose file is complete a source. The order matters: a
// manifest never stands beside a file that is not its own.
func (l *Library) adopt(m *Memory) error {
	id := m.source.ID
	unlock := l.lockFiles()
	defer unlock()
	fi, err := m.file.Stat()
	if err != nil {
		return err
	}
	l.mu.Lock()
	drop := l.drop(id) // the same move again
	l.mu.Unlock()
	if err := drop.run(); err != nil {
		return err
	}
	sealed := time.Now()
	if err := os.Rename(m.path, l.memoryPath(id)); err != nil {
		return err
	}
	if err := l.writeManifest(m.source, sealed.UnixNano()); err != nil {
		// Back to what it was, so that Seal may be called again.
		return errors.Join(err, os.Rename(l.memoryPath(id), m.path))
	}
	l.mu.Lock()
	delete(l.memories, m)
	l.entries[id] = &entry{
		source: m.source, scopes: map[string]bool{m.source.Scope: true}, bytes: allocated(fi),
		stamp: uint64(sealed.UnixNano()), used: sealed, seq: l.nextSeq(),
	}
	var older dropList
	for other, e := range l.entries {
		if other != id && e.source.Kind == KindMemory && e.source.VM == m.source.VM && e.source.VM != "" {
			older = append(older, l.drop(other)...)
		}
	}
	l.note()
	l.mu.Unlock()
	if err := older.run(); err != nil {
		// The new one stands; the old one's files are swept at the next open.
		l.log.Warn("an older memory could not be removed", "vm", m.source.VM, "error", err)
	}
	return nil
}

// register adds or renews an image or a disk.
func (l *Library) register(ctx context.Context, op string, src Source, open Opener, kept Kept) error {
	if src.ID.IsZero() || src.Blocks < 0 || src.Blocks > MaxBlocks || open == nil {
		return drover.Errorf(drover.Invalid, op, "%d blocks of %v", src.Blocks, src.ID)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock := l.lockFiles()
	defer unlock()
	l.mu.Lock()
	e, used := l.entries[src.ID], time.Now()
	switch {
	case e == nil && len(l.entries) >= maxSources:
		l.mu.Unlock()
		return drover.Errorf(drover.Exhausted, op, "%d sources are registered", maxSources)
	case e == nil:
		e = &entry{source: src, scopes: map[string]bool{}, seq: l.nextSeq()}
		if o, ok := l.orphans[src.ID]; ok {
			delete(l.orphans, src.ID)
			e.catalogue.bytes, used = o.bytes, o.used
			_, err := os.Stat(l.cataloguePath(src.ID))
			e.catalogue.found = err == nil
		}
		l.entries[src.ID] = e
	case e.source.Kind != src.Kind, e.source.Blocks != src.Blocks, e.source.VM != src.VM:
		l.mu.Unlock()
		return drover.Errorf(drover.Invalid, op, "%v is known as a %v of %d blocks", src.ID, e.source.Kind, e.source.Blocks)
	}
	e.scopes[src.Scope] = true
	e.open, e.kept, e.used = open, kept, used
	e.catalogue.failed, e.catalogue.attempts, e.catalogue.retry = false, 0, time.Time{}
	l.note()
	l.mu.Unlock()
	l.trim()
	return nil
}

// Remove forgets a source, and deletes what the folder has of it. Whoever has
// it open through Open goes on reading; the indexer has let go of it when
// Remove returns, so that an image may be opened for writing then. Removing
// what is not there does nothing.
func (l *Library) Remove(id SourceID) error {
	unlock := l.lockFiles()
	l.mu.Lock()
	e, job := l.entries[id], l.job
	drop := l.drop(id)
	l.note()
	l.mu.Unlock()
	err := drop.run()
	unlock()
	if e != nil && job != nil && job.entry == e {
		job.cancel()
		<-job.done
	}
	return diskFault("remove source", err)
}

// dropList are the rest of removals that left the maps: run deletes files,
// manifests first, since a manifest makes a source.
type dropList []func() error

func (d dropList) run() error {
	var all error
	for _, f := range d {
		all = errors.Join(all, f())
	}
	return all
}

// drop takes a source out of the maps. mu and files are held.
func (l *Library) drop(id SourceID) dropList {
	e := l.entries[id]
	delete(l.entries, id)
	delete(l.orphans, id)
	paths := []string{l.cataloguePath(id), l.cataloguePath(id) + partSuffix}
	if e != nil && e.open == nil {
		paths = append([]string{l.manifestPath(id), l.memoryPath(id)}, paths...)
	}
	return dropList{func() error {
		var all error
		for _, p := range paths {
			if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				all = errors.Join(all, err)
			}
		}
		return all
	}}
}

// keptBytes returns what counts against the limit. mu is held.
func (l *Library) keptBytes() int64 {
	var n int64
	for _, e := range l.entries {
		n += e.keptBytes()
	}
	for _, o := range l.orphans {
		n += o.bytes
	}
	for m := range l.memories {
		n += m.source.Blocks * BlockBytes
	}
	return n
}

// free returns what the file system has left once the memories under way are
// full. mu is held.
func (l *Library) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(l.dir, &st); err != nil {
		return 0, err
	}
	free := int64(st.Bavail) * st.Bsize
	for m := range l.memories {
		free -= m.source.Blocks * BlockBytes
		if fi, err := os.Stat(m.path); err == nil {
			free += allocated(fi)
		}
	}
	return free, nil
}
