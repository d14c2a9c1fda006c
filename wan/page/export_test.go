package page

import "io"

// BufferBytes is for benchmarks.
const BufferBytes = bufferBytes

// HeldBytes bounds what a Reader keeps back of an element whose rest has not come.
const HeldBytes = maxCapabilities*256 + maxMachineName + PageBytes

// NewSmallReader returns a Reader whose buffer is little more than the longest
// element: it moves what is left to its front all the time.
func NewSmallReader(r io.Reader) *Reader {
	return &Reader{src: r, buf: make([]byte, HeldBytes+1<<10), parser: newParser()}
}
