package chunk

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// image is a driver.ImageReader in memory.
type image struct {
	data    []byte
	extents []driver.Extent // nil: one over all of it
	reads   atomic.Int64
	closed  atomic.Int64
	// cut, if not nil, is called before each read.
	cut func() error
}

func (m *image) Size() int64  { return int64(len(m.data)) }
func (m *image) Close() error { m.closed.Add(1); return nil }

func (m *image) ReadAt(p []byte, off int64) (int, error) {
	if m.cut != nil {
		if err := m.cut(); err != nil {
			return 0, err
		}
	}
	m.reads.Add(1)
	if off >= m.Size() {
		return 0, io.EOF
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *image) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	list := m.extents
	if list == nil {
		list = []driver.Extent{{Length: m.Size()}}
	}
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !yield(e) {
			break
		}
	}
	return nil
}

func (m *image) opener() Opener {
	return func(context.Context) (driver.ImageReader, error) { return m, nil }
}

// noise returns bytes of which about one block in four is zero.
func noise(r *rand.Rand, blocks int) []byte {
	p := make([]byte, blocks*BlockBytes)
	for b := range slices.Chunk(p, BlockBytes) {
		if r.IntN(4) > 0 {
			fill(r, b)
		}
	}
	return p
}

// fill makes one block of random bytes.
func fill(r *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// fingerprints returns what a catalogue of data should say.
func fingerprints(data []byte) []Fingerprint {
	var list []Fingerprint
	for b := range slices.Chunk(data, BlockBytes) {
		var block [BlockBytes]byte
		copy(block[:], b)
		list = append(list, FingerprintOf(block[:]))
	}
	return list
}

// listed returns what a catalogue says.
func listed(t testing.TB, c *Catalogue) []Fingerprint {
	t.Helper()
	list := make([]Fingerprint, c.Blocks())
	err := c.Each(context.Background(), func(first int64, fps []Fingerprint) error {
		copy(list[first:], fps)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func wantKind(t testing.TB, err error, want drover.Kind) {
	t.Helper()
	if err == nil || drover.KindOf(err) != want {
		t.Fatalf("got error %v (%v), want one that is %v", err, drover.KindOf(err), want)
	}
}
