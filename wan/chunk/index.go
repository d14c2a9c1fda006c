package chunk

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
)

// Ref names a block of a source within one session.
type Ref struct {
	// Source is the place in the destination's advertised list; sources of
	// the session itself come after.
	Source uint16
	Block  uint32
}

// The shape of an index.
const (
	// indexShards spreads the locks, and bounds what is twice in memory while
	// a table grows to 1/64 of the index.
	indexShards    = 1 << indexShardBits
	indexShardBits = 6
	// slotBytes is what a slot costs: a fingerprint of 8 bytes, a block of 4,
	// a source of 2, in three arrays so that nothing is lost to alignment.
	slotBytes = 14
	// minSlots is a shard's first table.
	minSlots = 64
	// A table is filled to loadNum/loadDen at most: 17 bytes an entry, and a
	// vain search that looks at 15 slots, two cache lines, on average. It then
	// grows by 1/growDen: 19.4 bytes an entry at worst, which is 0.5 % of a
	// block, for 9 moves of an entry over its life.
	loadNum, loadDen = 13, 16
	growDen          = 8
)

// Index finds where a block with a given fingerprint is: a hash table with
// open addressing of at most 20 bytes an entry (14 to 17 % of that are free
// slots), within a limit. It is safe for concurrent use; a Lookup waits for
// nobody but a writer of the same shard. It answers as a map does: what an Add
// left, unless the index was full.
type Index struct {
	limit  int64
	bytes  atomic.Int64
	length atomic.Int64
	full   atomic.Int64
	shards [indexShards]indexShard
}

type indexShard struct {
	mu      sync.RWMutex
	used    int
	keys    []Fingerprint // 0: free
	blocks  []uint32
	sources []uint16
}

// NewIndex returns an empty index that takes at most limitBytes of memory. It
// starts small.
func NewIndex(limitBytes int64) *Index { return &Index{limit: limitBytes} }

// Add notes that r has content with the fingerprint; an earlier note of the
// same fingerprint is replaced, since the newer place is likelier to be still
// what it was. Fingerprint 0 is not stored. A full index keeps what it has and
// drops what is new: what the destination advertised is worth more than a
// session's latest pages.
func (x *Index) Add(fp Fingerprint, r Ref) { x.put(fp, r, true) }

// AddCatalogue notes all blocks of a catalogue under the given source.
// Fingerprints that are already known keep their place, so that sources added
// first are preferred. An error of the catalogue leaves the blocks that were
// read before it: they are as good as any, since every use is verified.
func (x *Index) AddCatalogue(ctx context.Context, source uint16, c *Catalogue) error {
	return c.Each(ctx, func(first int64, fps []Fingerprint) error {
		for i, fp := range fps {
			x.put(fp, Ref{Source: source, Block: uint32(first + int64(i))}, false)
		}
		return nil
	})
}

// Lookup returns where a block with the fingerprint is, if anywhere.
func (x *Index) Lookup(fp Fingerprint) (Ref, bool) {
	if fp == 0 {
		return Ref{}, false
	}
	s := x.shard(fp)
	s.mu.RLock()
	i, ok := s.find(fp)
	var r Ref
	if ok {
		r = Ref{Source: s.sources[i], Block: s.blocks[i]}
	}
	s.mu.RUnlock()
	return r, ok
}

// Forget removes a fingerprint if it still points to r: for a reference that
// turned out not to hold.
func (x *Index) Forget(fp Fingerprint, r Ref) {
	if fp == 0 {
		return
	}
	s := x.shard(fp)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.find(fp)
	if ok && s.sources[i] == r.Source && s.blocks[i] == r.Block {
		s.remove(i)
		x.length.Add(-1)
	}
}

// Len returns how many fingerprints are stored.
func (x *Index) Len() int64 { return x.length.Load() }

// Bytes returns the memory that the index takes.
func (x *Index) Bytes() int64 { return x.bytes.Load() }

// Dropped returns how many new fingerprints were not taken because the index
// was full.
func (x *Index) Dropped() int64 { return x.full.Load() }

func (x *Index) shard(fp Fingerprint) *indexShard { return &x.shards[fp>>(64-indexShardBits)] }

func (x *Index) put(fp Fingerprint, r Ref, replace bool) {
	if fp == 0 {
		return
	}
	s := x.shard(fp)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.find(fp)
	switch {
	case ok && !replace:
		return
	case ok:
		s.set(i, fp, r)
		return
	case (s.used+1)*loadDen > len(s.keys)*loadNum:
		if !x.grow(s) {
			x.full.Add(1)
			return
		}
		i, _ = s.find(fp)
	}
	s.set(i, fp, r)
	s.used++
	x.length.Add(1)
}

// grow gives a shard a larger table, unless the limit forbids it.
func (x *Index) grow(s *indexShard) bool {
	n := max(minSlots, len(s.keys)+len(s.keys)/growDen)
	more := int64(n-len(s.keys)) * slotBytes
	if x.bytes.Add(more) > x.limit {
		x.bytes.Add(-more)
		return false
	}
	old := indexShard{keys: s.keys, blocks: s.blocks, sources: s.sources}
	s.keys, s.blocks, s.sources = make([]Fingerprint, n), make([]uint32, n), make([]uint16, n)
	for i, fp := range old.keys {
		if fp != 0 {
			j, _ := s.find(fp)
			s.set(j, fp, Ref{Source: old.sources[i], Block: old.blocks[i]})
		}
	}
	return true
}

func (s *indexShard) set(i int, fp Fingerprint, r Ref) {
	s.keys[i], s.blocks[i], s.sources[i] = fp, r.Block, r.Source
}

// home returns the slot at which the search for fp begins: the bits below the
// shard's, scaled to the table's length, which need be no power of two.
func (s *indexShard) home(fp Fingerprint) int {
	hi, _ := bits.Mul64(uint64(fp)<<indexShardBits, uint64(len(s.keys)))
	return int(hi)
}

// find returns the slot of fp, or the free one where it belongs. There always
// is a free one, because of the load limit, once there is a table.
func (s *indexShard) find(fp Fingerprint) (int, bool) {
	if len(s.keys) == 0 {
		return 0, false
	}
	for i := s.home(fp); ; {
		switch s.keys[i] {
		case fp:
			return i, true
		case 0:
			return i, false
		}
		if i++; i == len(s.keys) {
			i = 0
		}
	}
}

// remove frees slot i and moves back what stood behind it only because the
// slot was taken, so that no search ends early.
func (s *indexShard) remove(i int) {
	n := len(s.keys)
	for j := i; ; {
		if j++; j == n {
			j = 0
		}
		if s.keys[j] == 0 {
			break
		}
		// The entry at j may go to i if its home is not between the two.
		if dist(s.home(s.keys[j]), j, n) >= dist(i, j, n) {
			s.set(i, s.keys[j], Ref{Source: s.sources[j], Block: s.blocks[j]})
			i = j
		}
	}
	s.set(i, 0, Ref{})
	s.used--
}

// dist returns how many steps forward it is from slot a to slot b of n.
func dist(a, b, n int) int {
	if b < a {
		return b + n - a
	}
	return b - a
}
