package reduce

import (
	"context"
	"io"
	"sync"
)

const (
	// fetchBytes is what is read from QEMU at a time: what it writes at a time.
	fetchBytes = 256 << 10
	// fetchAhead is how much may be read before it is looked at, while most of the memory is still to come: QEMU's
	// socket alone holds some 200 KiB, so that QEMU and this end would take turns.
	fetchAhead = 4 << 20
	// fetchShare is what part of the memory still to come in the first round may be.
	fetchShare = 32
)

// fetcher reads what QEMU writes ahead of whoever looks at it. It is the io.Reader of one
// goroutine.
type fetcher struct {
	src io.Reader

	mu      sync.Mutex
	limit   int64
	held    int64
	chunks  [][]byte
	free    [][]byte
	err     error // after the chunks
	changed chan struct{}

	rest, chunk []byte // of the reader: what is left of the chunk it reads
}

func newFetcher(src io.Reader) *fetcher {
	return &fetcher{src: src, limit: fetchBytes, changed: make(chan struct{})}
}

// allow changes how much may be ahead.
func (f *fetcher) allow(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limit = max(bytes, fetchBytes)
	f.wake()
}

// wake tells those that wait. mu is held.
func (f *fetcher) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// run reads until the source ends or fails, or ctx ends, on which the source has to be closed.
func (f *fetcher) run(ctx context.Context) {
	for {
		f.mu.Lock()
		full, changed := f.held > 0 && f.held+fetchBytes > f.limit, f.changed
		var buf []byte
		if n := len(f.free); n > 0 && !full {
			buf, f.free = f.free[n-1], f.free[:n-1]
		}
		f.mu.Unlock()
		if full {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				f.end(context.Cause(ctx))
				return
			}
		}
		if buf == nil {
			buf = make([]byte, fetchBytes)
		}
		n, err := f.src.Read(buf)
		f.mu.Lock()
		if n > 0 {
			f.chunks = append(f.chunks, buf[:n])
			f.held += int64(n)
			f.wake()
		}
		f.mu.Unlock()
		if err != nil {
			f.end(err)
			return
		}
	}
}

func (f *fetcher) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	f.wake()
}

// ready reports whether Read would not wait.
func (f *fetcher) ready() bool {
	if len(f.rest) > 0 {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.chunks) > 0 || f.err != nil
}

// Read implements io.Reader.
func (f *fetcher) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		f.mu.Lock()
		if f.chunk != nil {
			f.free = append(f.free, f.chunk[:fetchBytes])
			f.chunk = nil
		}
		if len(f.chunks) > 0 {
			f.chunk = f.chunks[0]
			f.chunks = f.chunks[1:]
			f.rest = f.chunk
			f.held -= int64(len(f.chunk))
			f.wake()
			f.mu.Unlock()
			break
		}
		err, changed := f.err, f.changed
		f.mu.Unlock()
		if err != nil {
			return 0, err
		}
		<-changed
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}
