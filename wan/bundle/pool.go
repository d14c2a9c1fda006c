package bundle

import (
	"math/bits"
	"sync"

	"github.com/drover-vm/drover/wan/frame"
)

const (
	// Buffers come in powers of two, so that at most half of one is empty, from
	// minBuffer up to the longest message.
	minBufferBits = 9
	maxBufferBits = 20
	// headroom is room for the headers of a buffer's frames.
	headroom = frame.MaxFragments * frame.HeaderBytes
)

// pool keeps buffers and messages that are done with.
type pool struct {
	buffers [maxBufferBits - minBufferBits + 1]sync.Pool
	out     sync.Pool
	in      sync.Pool
}

// buffer is a slice with its place in the pool.
type buffer struct {
	b     []byte
	class int
}

// get returns a buffer for a message of n bytes and its headers; its length
// is what it has room for.
func (p *pool) get(n int) *buffer {
	class := max(0, bits.Len(uint(max(n, 1)-1))-minBufferBits)
	if v, ok := p.buffers[class].Get().(*buffer); ok {
		return v
	}
	return &buffer{make([]byte, 1<<(class+minBufferBits)+headroom), class}
}

func (p *pool) put(b *buffer) {
	if b != nil {
		p.buffers[b.class].Put(b)
	}
}
