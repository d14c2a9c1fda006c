package chunk

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Limits of a library.
const (
	// DefaultLimitBytes suits a host with a disk of a few hundred gigabytes
	// that runs guests of up to 8 GiB: the memories of two or three of them.
	DefaultLimitBytes = 16 << 30
	// DefaultIndexRate hashes a golden image of 2 GiB in half a minute and
	// takes about 5 % of one core for it.
	DefaultIndexRate = 64 << 20
	// reserveBytes of the file system are never taken: it is the host's, too,
	// and guests whose images lie beside the library pause when it is full.
	reserveBytes = 1 << 30
	// maxSources bounds what is listed, since a Ref counts sources in 16 bits
	// and a session needs places for its own.
	maxSources = 1 << 15
)

// Options configure a Library.
type Options struct {
	// LimitBytes bounds the memories and catalogues in the folder, and the
	// remains of disks that were registered with their size. 0 means
	// DefaultLimitBytes.
	LimitBytes int64
	// IndexRate is how many bytes a second the indexer reads. 0 means
	// DefaultIndexRate.
	IndexRate int64
	// Log is told what is swept, evicted and rebuilt; nil discards.
	Log *slog.Logger
}

// Opener opens the guest-visible bytes of an image. ctx lives as long
// as the reader may be used.
type Opener func(ctx context.Context) (driver.ImageReader, error)

// Kept says what the remains of a disk take of the library's limit.
type Kept struct {
	// Bytes on the disk; 0 means that the caller keeps its own account.
	Bytes int64
	// Drop is called when the source was evicted, with no lock of the library
	// held: the caller removes the image. nil means that the source is never evicted.
	Drop func()
}

// Library is the folder in which an agent keeps what it knows of content. All
// methods are safe for concurrent use, by several moves at once. One process
// may have a folder open at a time.
type Library struct {
	dir     string
	options Options
	log     *slog.Logger
	ctx     context.Context // ends at Close
	cancel  context.CancelFunc

	// files serialises changes of the folder that belong together (content,
	// manifest, catalogue of one source). It is taken before mu.
	files sync.Mutex

	mu       sync.Mutex
	entries  map[SourceID]*entry
	memories map[*Memory]struct{} // not yet sealed
	orphans  map[SourceID]orphan  // catalogues whose source is not registered
	paused   int                  // moves under way
	changed  chan struct{}        // closed and replaced at every change the indexer or a waiter may want to know of
	evicted  int64
	seq      int64
	// callbacks are owed to owners of evicted disks; see lockFiles.
	callbacks []func()

	lock      *os.File
	running   sync.Mutex // held by Run
	job       *indexJob  // nil: none
	retryWait time.Duration
	reserve   int64
}

func newLibrary(dir string, o Options) *Library {
	if o.LimitBytes == 0 {
		o.LimitBytes = DefaultLimitBytes
	}
	if o.IndexRate == 0 {
		o.IndexRate = DefaultIndexRate
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Library{
		dir: dir, options: o, log: o.Log, retryWait: indexRetryWait, reserve: reserveBytes, changed: make(chan struct{}),
		entries: make(map[SourceID]*entry), memories: make(map[*Memory]struct{}), orphans: make(map[SourceID]orphan),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// nextSeq numbers sources as they come. mu is held, or the library is not
// open yet.
func (l *Library) nextSeq() int64 {
	l.seq++
	return l.seq
}

// pin keeps a source from being evicted, and notes that it is used.
func (l *Library) pin(id SourceID) (*entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[id]
	if e == nil {
		return nil, drover.Errorf(drover.NotFound, "open source", "source %v", id)
	}
	e.pins++
	l.touch(e)
	return e, nil
}

func (l *Library) unpin(e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.pins--
}

// touch notes that a source is used; the time of its manifest or catalogue
// carries it over a restart. Losing that costs the wrong eviction at worst, so
// errors do not count. mu is held.
func (l *Library) touch(e *entry) {
	e.used = time.Now()
	path := l.cataloguePath(e.source.ID)
	if e.open == nil {
		path = l.manifestPath(e.source.ID)
	}
	_ = os.Chtimes(path, e.used, e.used)
}

// entry is a source in the library.
type entry struct {
	source Source
	scopes map[string]bool // tenants whose VMs use the source
	open   Opener          // nil: a memory
	kept   Kept
	seq    int64 // in which order they came
	bytes  int64 // of the content in the folder
	stamp  uint64
	used   time.Time
	pins   int // handles, which memories built on it have, too
	wanted int // who waits for its catalogue
	shared shared

	catalogue catalogueState
}

// orphan is a catalogue file that no registered source has.
type orphan struct {
	bytes int64
	used  time.Time
}

// keptBytes returns what evicting the entry would give back.
func (e *entry) keptBytes() int64 { return e.bytes + e.kept.Bytes + e.catalogue.bytes }

// inScope reports whether a VM of that scope may know of the source.
func (e *entry) inScope(scope, vm string) bool {
	return e.scopes[scope] || (vm != "" && e.source.VM == vm)
}

// note wakes who waits for a change. mu is held.
func (l *Library) note() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Close ends the library; contents that are open stay open until they are
// closed. Run must have returned. Memories that were not sealed are discarded.
func (l *Library) Close() error {
	l.files.Lock() // no memory begins after this
	closed := l.ctx.Err() != nil
	l.cancel()
	l.files.Unlock()
	if closed {
		return nil
	}
	l.mu.Lock()
	var open []*Memory
	for m := range l.memories {
		open = append(open, m)
	}
	l.mu.Unlock()
	var all error
	for _, m := range open {
		all = errors.Join(all, m.Discard())
	}
	return errors.Join(all, l.lock.Close())
}

// AddImage registers an image for VMs of src.Scope; more scopes may register
// the same one. Only its catalogue is kept, and made in the background by Run.
// The image has to stay what it is as long as it is registered. Errors:
// drover.Invalid, drover.Exhausted when too many sources are registered.
func (l *Library) AddImage(ctx context.Context, src Source, open Opener) error {
	if src.Kind != KindImage || src.VM != "" {
		return drover.Errorf(drover.Invalid, "add image", "a %v of VM %q is no image", src.Kind, src.VM)
	}
	return l.register(ctx, "add image", src, open, Kept{})
}

// AddDisk registers what remains of a VM's disk. The caller registers it again
// after a restart, and removes it before the image is written to. Errors as
// AddImage.
func (l *Library) AddDisk(ctx context.Context, src Source, open Opener, kept Kept) error {
	if src.Kind != KindDisk || src.VM == "" {
		return drover.Errorf(drover.Invalid, "add disk", "a %v of VM %q is no disk", src.Kind, src.VM)
	}
	return l.register(ctx, "add disk", src, open, kept)
}

// Has reports whether the source is here and readable.
func (l *Library) Has(id SourceID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[id] != nil
}

// InScope reports whether a session of that VM and scope may use the source:
// exactly when Sources would list it.
func (l *Library) InScope(id SourceID, scope, vm string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[id]
	return e != nil && e.inScope(scope, vm)
}

// Sources returns what may be advertised to a VM's session: every readable
// source of the scope, and those of the VM itself whatever its label was then.
// The VM's own come first, then images, then the others; each the most
// recently used first. Nothing of another scope is in it.
func (l *Library) Sources(scope, vm string) []Source {
	l.mu.Lock()
	var list []*entry
	for _, e := range l.entries {
		if e.inScope(scope, vm) {
			list = append(list, e)
		}
	}
	rank := func(e *entry) int {
		switch {
		case vm != "" && e.source.VM == vm:
			return 0
		case e.source.Kind == KindImage:
			return 1
		default:
			return 2
		}
	}
	slices.SortFunc(list, func(a, b *entry) int {
		if r := rank(a) - rank(b); r != 0 {
			return r
		}
		if t := b.used.Compare(a.used); t != 0 {
			return t
		}
		return slices.Compare(a.source.ID[:], b.source.ID[:])
	})
	sources := make([]Source, len(list))
	for i, e := range list {
		sources[i] = e.source
		sources[i].Scope = scope
	}
	l.mu.Unlock()
	return sources
}

// Stats is what a library holds.
type Stats struct {
	// Bytes counts against the limit: memories, catalogues, remains of disks
	// registered with their size, and the room set aside for unsealed memories.
	Bytes, LimitBytes int64
	Images            int
	Memories          int
	Disks             int
	// Unsealed memories belong to moves under way.
	Unsealed int
	// IndexedBlocks are non-zero blocks in complete catalogues.
	IndexedBlocks int64
	// BacklogBlocks have still to be looked at by the indexer.
	BacklogBlocks int64
	// Evicted sources since the library was opened.
	Evicted int64
}

// Stats returns what the library holds now.
func (l *Library) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{Bytes: l.keptBytes(), LimitBytes: l.options.LimitBytes, Unsealed: len(l.memories), Evicted: l.evicted}
	for _, e := range l.entries {
		switch e.source.Kind {
		case KindImage:
			s.Images++
		case KindMemory:
			s.Memories++
		case KindDisk:
			s.Disks++
		}
		if e.catalogue.ready != nil {
			s.IndexedBlocks += e.catalogue.ready.indexed
		} else if !e.catalogue.failed {
			s.BacklogBlocks += e.source.Blocks - e.catalogue.at
		}
	}
	return s
}
