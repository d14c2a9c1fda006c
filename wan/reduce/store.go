package reduce

import "sync"

const (
	// segmentBlocks is how many blocks share one allocation: 256 KiB, so that a batch of a
	// few blocks holds little and one of many needs few.
	segmentBlocks = 64
	segmentBytes  = segmentBlocks * BlockBytes
	// maxFreeSegments bounds the memory kept for the batches to come at 8 MiB: what is in
	// use at a time when nothing has to be retained.
	maxFreeSegments = 32
)

// segmentPool keeps segments that are not in use. The zero value is ready.
type segmentPool struct {
	mu   sync.Mutex
	free [][]byte
}

func (p *segmentPool) get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		s := p.free[n-1]
		p.free = p.free[:n-1]
		return s
	}
	return make([]byte, segmentBytes)
}

func (p *segmentPool) put(segments [][]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range segments {
		if len(p.free) < maxFreeSegments {
			p.free = append(p.free, s)
		}
	}
}

// blockStore holds the contents of a batch's blocks one behind the other.
type blockStore struct {
	pool     *segmentPool
	segments [][]byte
	n        int
}

// add returns the place for one block more. Its content is undefined.
func (s *blockStore) add() []byte {
	if s.n == len(s.segments)*segmentBlocks {
		s.segments = append(s.segments, s.pool.get())
	}
	s.n++
	return s.at(s.n - 1)
}

// at returns block i.
func (s *blockStore) at(i int) []byte {
	off := i % segmentBlocks * BlockBytes
	return s.segments[i/segmentBlocks][off : off+BlockBytes : off+BlockBytes]
}

// run returns the blocks from i on, n at most, that lie together.
func (s *blockStore) run(i, n int) []byte {
	first := i % segmentBlocks
	n = min(n, segmentBlocks-first, s.n-i)
	off := first * BlockBytes
	return s.segments[i/segmentBlocks][off : off+n*BlockBytes : off+n*BlockBytes]
}

// bytes returns the memory that is held.
func (s *blockStore) bytes() int64 { return int64(len(s.segments)) * segmentBytes }

// drop empties the store and gives the memory back.
func (s *blockStore) drop() {
	s.pool.put(s.segments)
	clear(s.segments)
	s.segments, s.n = s.segments[:0], 0
}
