package page_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/drover-vm/drover/wan/page"
)

// loop delivers the first bytes once and the others for ever.
type loop struct {
	b  []byte
	at int // where to begin again
	n  int
}

func (l *loop) Read(p []byte) (int, error) {
	if l.n == len(l.b) {
		l.n = l.at
	}
	n := copy(p, l.b[l.n:])
	l.n += n
	return n, nil
}

// benchStream is a round of pages without an end.
func benchStream(kind page.Kind) *loop {
	const pages = 512 // little enough for a processor's cache
	s := newStream("pc-q35-10.0").ram(1, page.Block{Name: "pc.ram", Bytes: pages * page.PageBytes})
	s.part().page(page.Record{Kind: page.Zero})
	at := len(s.b)
	content := bytes.Repeat([]byte{0xa5}, page.PageBytes)
	for i := range uint64(pages) {
		s.page(page.Record{Kind: kind, Addr: i * page.PageBytes, Continue: true, Data: content})
	}
	return &loop{b: s.b, at: at}
}

// BenchmarkNext is the speed of parsing alone, of a stream that lies in memory; an
// operation is a page.
func BenchmarkNext(b *testing.B) {
	for _, kind := range []page.Kind{page.Page, page.Zero} {
		for _, asks := range []bool{false, true} {
			name := kind.String()
			if asks {
				name += "-buffered"
			}
			b.Run(name, func(b *testing.B) {
				r := page.NewReader(benchStream(kind))
				b.SetBytes(page.PageBytes)
				b.ReportAllocs()
				for b.Loop() {
					if asks && r.Buffered() < 0 {
						b.Fatal("nothing can be less than nothing")
					}
					if _, err := r.Next(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	// The same bytes only copied into a buffer of the same size.
	b.Run("bare-copy", func(b *testing.B) {
		src := benchStream(page.Page)
		buf := make([]byte, page.BufferBytes)
		b.SetBytes(page.PageBytes)
		left := 0
		for b.Loop() {
			if left < page.PageBytes {
				n, err := io.ReadAtLeast(src, buf, page.PageBytes)
				if err != nil {
					b.Fatal(err)
				}
				left += n
			}
			left -= page.PageBytes + 8
		}
	})
}
