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
	// spillSlots follow the last home for entries that are pushed on from it.
	// At the load allowed, one table in 10^8 needs more.
	spillSlots = 64
	// A table is filled to loadNum/loadDen at most, 16 bytes an entry; a search
	// then looks at 4.5 slots on average. It then grows by 1/growDen: 18 bytes
	// an entry at worst, 0.44 % of a block, for 9 moves of an entry over its
	// life, which are in order and cheap.
	loadNum, loadDen = 7, 8
	growDen          = 8
)

// Index finds where a block with a given fingerprint is: a hash table with
// open addressing of 16 to 18 bytes an entry, within a limit. It is safe for
// concurrent use; a Lookup waits for nobody but a writer of the same shard. It
// answers as a map does: what an Add left, unless the index was full.
//
// A fingerprint's home is its value scaled to the table, and entries that
// compete stand in ascending order, so the whole table ascends: a search ends
// at the first greater entry, and a table that grows is copied in order.
type Index struct {
	limit  int64
	bytes  atomic.Int64
	length atomic.Int64
	full   atomic.Int64
	shards [indexShards]indexShard
}

type indexShard struct {
	mu    sync.RWMutex
	used  int
	homes int // slots that are an entry's home; more follow
	// The table: fingerprints (0: free), and where each is.
	keys    []Fingerprint
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
	if ok {
		if replace {
			s.set(i, fp, r)
		}
		return
	}
	if (s.used+1)*loadDen > s.homes*loadNum {
		if !x.grow(s) {
			x.full.Add(1)
			return
		}
		i, _ = s.find(fp)
	}
	if !s.insert(i, fp, r) {
		x.full.Add(1)
		return
	}
	s.used++
	x.length.Add(1)
}

// grow gives a shard a larger table, unless the limit forbids it.
func (x *Index) grow(s *indexShard) bool {
	n := max(minSlots, s.homes+s.homes/growDen)
	more := int64(n+spillSlots-len(s.keys)) * slotBytes
	if x.bytes.Add(more) > x.limit {
		x.bytes.Add(-more)
		return false
	}
	keys, blocks, sources := s.keys, s.blocks, s.sources
	s.homes = n
	s.keys, s.blocks, s.sources = make([]Fingerprint, n+spillSlots), make([]uint32, n+spillSlots), make([]uint16, n+spillSlots)
	// In order, so that every entry goes behind the one before.
	next := 0
	for i, fp := range keys {
		if fp == 0 {
			continue
		}
		if next = max(next, s.home(fp)); next == len(s.keys) {
			s.used-- // see spillSlots
			x.length.Add(-1)
			x.full.Add(1)
			continue
		}
		s.set(next, fp, Ref{Source: sources[i], Block: blocks[i]})
		next++
	}
	return true
}

func (s *indexShard) set(i int, fp Fingerprint, r Ref) {
	s.keys[i], s.blocks[i], s.sources[i] = fp, r.Block, r.Source
}

// home returns the slot at which the search for fp begins: the bits below the
// shard's, scaled to the number of homes, which need be no power of two.
func (s *indexShard) home(fp Fingerprint) int {
	hi, _ := bits.Mul64(uint64(fp)<<indexShardBits, uint64(s.homes))
	return int(hi)
}

// find returns the slot of fp, or the one where it belongs, which is free,
// taken by a greater one, or past the table.
func (s *indexShard) find(fp Fingerprint) (int, bool) {
	i := s.home(fp)
	for ; i < len(s.keys); i++ {
		if k := s.keys[i]; k >= fp || k == 0 {
			return i, k == fp
		}
	}
	return i, false
}

// insert puts an entry at slot i, pushing on those from there to the next free
// slot. It reports false when there is none.
func (s *indexShard) insert(i int, fp Fingerprint, r Ref) bool {
	j := i
	for ; j < len(s.keys) && s.keys[j] != 0; j++ {
	}
	if j == len(s.keys) {
		return false
	}
	copy(s.keys[i+1:j+1], s.keys[i:j])
	copy(s.blocks[i+1:j+1], s.blocks[i:j])
	copy(s.sources[i+1:j+1], s.sources[i:j])
	s.set(i, fp, r)
	return true
}

// remove frees slot i and moves back those behind it that were pushed on.
func (s *indexShard) remove(i int) {
	j := i + 1
	for ; j < len(s.keys) && s.keys[j] != 0 && s.home(s.keys[j]) < j; j++ {
	}
	copy(s.keys[i:], s.keys[i+1:j])
	copy(s.blocks[i:], s.blocks[i+1:j])
	copy(s.sources[i:], s.sources[i+1:j])
	s.set(j-1, 0, Ref{})
	s.used--
}
