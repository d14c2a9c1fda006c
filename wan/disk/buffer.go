package disk

import (
	"math/bits"
	"sync"
)

const (
	// minBuffer and maxBuffer are the smallest and largest buffers that are
	// used again, as powers of two: a block and the largest piece of a write.
	minBuffer = 12
	maxBuffer = 20
)

// buffers gives out byte slices by size, for writes on their way.
type buffers struct {
	classes [maxBuffer - minBuffer + 1]sync.Pool
}

// get returns n bytes of undefined content.
func (b *buffers) get(n int) []byte {
	class := max(bits.Len(uint(n-1)), minBuffer)
	if class > maxBuffer {
		return make([]byte, n)
	}
	if p, ok := b.classes[class-minBuffer].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return make([]byte, n, 1<<class)
}

// put takes back what get gave.
func (b *buffers) put(p []byte) {
	class := bits.Len(uint(cap(p))) - 1
	if class < minBuffer || class > maxBuffer || cap(p) != 1<<class {
		return
	}
	p = p[:0]
	b.classes[class-minBuffer].Put(&p)
}
