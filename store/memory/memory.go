// Package memory is the in-memory twin of the stores: for tests, where it can
// be made to fail, and for the simulator. It passes the same suite as
// store/etcd. Records go through the same document, so what does not survive a
// real store does not survive this one.
//
// It forgets everything with its process; keeping is left to store/etcd.
package memory

import (
	"context"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
)

// Op names a call, for faults.
type Op string

// The calls that can be made to fail.
const (
	OpCreate Op = "create"
	OpGet    Op = "get"
	OpList   Op = "list"
	OpUpdate Op = "update"
	OpPut    Op = "put"
	OpDelete Op = "delete"
)

// Fault decides about one call. It is called twice: before the call takes
// effect, where an error keeps it from doing so, and after it, where an error
// is returned though it did (a lost reply). It may be called concurrently. The
// name is the move's or the key.
type Fault func(op Op, name string, after bool) error

// Store is a Journal and an Inventory. The zero value is not usable; see New.
type Store struct {
	store.Inventory

	mu       sync.Mutex
	revision int64
	entries  map[string]entry
	// log is every change, in order of revision; Compact shortens it.
	log       []logged
	compacted int64
	// changed is closed, and replaced, at each change.
	changed chan struct{}
	fault   Fault
	last    store.Record // as Update returned it
}

// entry is a value with the revision of its last change.
type entry struct {
	value    []byte
	revision int64
}

// logged is one change; value is nil when the key was deleted.
type logged struct {
	key      string
	value    []byte
	revision int64
}

var (
	_ store.Journal   = (*Store)(nil)
	_ store.Inventory = (*Store)(nil)
)

// New returns an empty store.
func New() *Store {
	s := &Store{entries: make(map[string]entry), changed: make(chan struct{})}
	s.Inventory = store.NewInventory(s)
	return s
}

// SetFault makes calls fail as f says; nil ends it.
func (s *Store) SetFault(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Compact forgets the changes so far: watching from an earlier revision then
// gives drover.NotFound.
func (s *Store) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log, s.compacted = nil, s.revision
}

// maxLog bounds the changes kept for watchers, so that a long simulation does
// not fill the memory; one that is further behind has to list again.
const maxLog = 1 << 16

// Keys of the one map that holds everything.
const (
	moveKey    = "move/"
	lockKey    = "lock/"
	requestKey = "request/"
)

// guard runs f with the store locked, between the two calls of the fault.
func (s *Store) guard(ctx context.Context, op Op, name string, f func() error) error {
	if err := ctx.Err(); err != nil {
		return drover.E(drover.Canceled, string(op)+" "+name, err)
	}
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	if fault == nil {
		fault = func(Op, string, bool) error { return nil }
	}
	if err := fault(op, name, false); err != nil {
		return err
	}
	s.mu.Lock()
	err := f()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return fault(op, name, true)
}

// write makes changes under one new revision; a nil value deletes. s.mu is
// held.
func (s *Store) write(changes ...logged) int64 {
	s.revision++
	for _, c := range changes {
		c.revision = s.revision
		if c.value == nil {
			delete(s.entries, c.key)
		} else {
			s.entries[c.key] = entry{c.value, c.revision}
		}
		s.log = append(s.log, c)
	}
	if len(s.log) > maxLog {
		drop := len(s.log) - maxLog/2
		s.compacted = s.log[drop-1].revision
		s.log = slices.Clone(s.log[drop:])
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return s.revision
}

// record reads one; s.mu is held.
func (s *Store) record(name string) (store.Record, error) {
	e, ok := s.entries[moveKey+name]
	if !ok {
		return store.Record{}, store.NoMove(name)
	}
	r, err := store.DecodeRecord(e.value)
	r.Revision = e.revision
	return r, err
}

// Create implements store.Journal.
func (s *Store) Create(ctx context.Context, r store.Record) (kept store.Record, created bool, err error) {
	if err := store.CheckCreate(r); err != nil {
		return store.Record{}, false, err
	}
	b, err := store.EncodeRecord(r)
	if err != nil {
		return store.Record{}, false, err
	}
	err = s.guard(ctx, OpCreate, r.Move.Name, func() error {
		if r.RequestID != "" {
			if e, ok := s.entries[requestKey+r.RequestID]; ok {
				kept, err = s.record(string(e.value))
				return err
			}
		}
		if e, ok := s.entries[lockKey+r.Move.VMUUID]; ok {
			return store.Locked(r, string(e.value))
		}
		if _, ok := s.entries[moveKey+r.Move.Name]; ok {
			return store.NameTaken(r)
		}
		changes := []logged{
			{key: moveKey + r.Move.Name, value: b},
			{key: lockKey + r.Move.VMUUID, value: []byte(r.Move.Name)},
		}
		if r.RequestID != "" {
			changes = append(changes, logged{key: requestKey + r.RequestID, value: []byte(r.Move.Name)})
		}
		s.write(changes...)
		created = true
		kept, err = s.record(r.Move.Name)
		return err
	})
	if err != nil {
		return store.Record{}, false, err
	}
	return kept, created, nil
}

// Get implements store.Journal.
func (s *Store) Get(ctx context.Context, name string) (r store.Record, err error) {
	err = s.guard(ctx, OpGet, name, func() error {
		r, err = s.record(name)
		return err
	})
	return r, err
}

// List implements store.Journal.
func (s *Store) List(ctx context.Context, f store.Filter) (records []store.Record, revision int64, err error) {
	err = s.guard(ctx, OpList, "moves", func() error {
		revision = s.revision
		for key, e := range s.entries {
			if !strings.HasPrefix(key, moveKey) {
				continue
			}
			r, err := store.DecodeRecord(e.value)
			if err != nil {
				return err
			}
			r.Revision = e.revision
			if f.Match(r.Move) {
				records = append(records, r)
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(records, store.Oldest)
	return records, revision, nil
}

// Update implements store.Journal.
func (s *Store) Update(ctx context.Context, r store.Record) (kept store.Record, err error) {
	b, err := store.EncodeRecord(r)
	if err != nil {
		return store.Record{}, err
	}
	err = s.guard(ctx, OpUpdate, r.Move.Name, func() error {
		before, err := s.head(r.Move.Name)
		if err != nil {
			return err
		}
		if string(s.entries[moveKey+r.Move.Name].value) == string(b) {
			kept, err = s.record(r.Move.Name)
			return err // made already
		}
		if err := store.CheckUpdate(before, r); err != nil {
			return err
		}
		changes := []logged{{key: moveKey + r.Move.Name, value: b}}
		if r.Move.State.Final() {
			changes = append(changes, logged{key: lockKey + r.Move.VMUUID})
		}
		s.write(changes...)
		kept, err = s.record(r.Move.Name)
		s.last = kept
		return err
	})
	if err != nil {
		return store.Record{}, err
	}
	return kept, nil
}

// head returns what is kept of a move, for comparing only: reading the document of the record that was written last
// once more is what the executor's tests would spend a third of their time with.
func (s *Store) head(name string) (store.Record, error) {
	if e, ok := s.entries[moveKey+name]; ok && s.last.Move.Name == name && s.last.Revision == e.revision {
		return s.last, nil
	}
	return s.record(name)
}

// Watch implements store.Journal.
func (s *Store) Watch(ctx context.Context, after int64) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		for c, err := range s.changes(ctx, moveKey, after) {
			if err != nil {
				yield(store.Record{}, err)
				return
			}
			r, err := store.DecodeRecord(c.value)
			r.Revision = c.revision
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// changes yields what changed below prefix after the revision.
func (s *Store) changes(ctx context.Context, prefix string, after int64) iter.Seq2[logged, error] {
	return func(yield func(logged, error) bool) {
		for {
			s.mu.Lock()
			if after < s.compacted {
				s.mu.Unlock()
				yield(logged{}, store.Compacted(after))
				return
			}
			i, _ := slices.BinarySearchFunc(s.log, after+1, func(c logged, rev int64) int { return int(c.revision - rev) })
			batch := slices.Clone(s.log[i:])
			after = max(after, s.revision)
			changed := s.changed
			s.mu.Unlock()
			for _, c := range batch {
				if strings.HasPrefix(c.key, prefix) && (ctx.Err() != nil || !yield(c, nil)) {
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}
