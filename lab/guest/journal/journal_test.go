package journal_test

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover/lab/guest/journal"
)

// disk is a disk in memory that can tear, forget and refuse writes.
type disk struct {
	data []byte
	// fate decides about the next write: how many of its bytes reach the
	// disk, and what the writer is told. nil lets it through.
	fate func(b []byte) (written int, err error)
}

func (d *disk) ReadAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > int64(len(d.data)) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(b, d.data[off:]), nil
}

func (d *disk) WriteAt(b []byte, off int64) (int, error) {
	n, err := len(b), error(nil)
	if d.fate != nil {
		n, err = d.fate(b)
	}
	copy(d.data[off:], b[:n])
	return len(b), err
}

const (
	block = 512
	slots = 8
	size  = journal.RingOffset + slots*block + 100 // the rest is not touched
)

func newDisk() *disk { return &disk{data: make([]byte, size)} }

func open(t interface{ Fatal(...any) }, d *disk, boot byte) *journal.Writer {
	w, err := journal.Open(d, size, journal.Options{BlockBytes: block, Boot: journal.ID{boot}})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func check(t interface{ Fatal(...any) }, d *disk) journal.Scan {
	s, err := journal.Check(d, size)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var errCrash = errors.New("power lost")

// TestNoAcknowledgedWriteIsLost is the property that the journal is for:
// whatever crashes and errors there are between writes, the checker finds all
// that was acknowledged.
func TestNoAcknowledgedWriteIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, acked := newDisk(), journal.Acks{}
		for boot := range rapid.IntRange(1, 5).Draw(t, "boots") {
			w := open(t, d, byte(boot+1))
			for range rapid.IntRange(0, 3*slots).Draw(t, "records") {
				seq, err := w.Append()
				if err != nil {
					t.Fatal(err)
				}
				if err := acked.Add(journal.Ack{Journal: w.Geometry().Journal, Seq: seq}); err != nil {
					t.Fatal(err)
				}
			}
			torn := rapid.IntRange(-1, block).Draw(t, "torn at") // -1: stopped cleanly
			if torn >= 0 {
				d.fate = func([]byte) (int, error) { return torn, errCrash }
				if _, err := w.Append(); !errors.Is(err, errCrash) {
					t.Fatalf("append: %v", err)
				}
				d.fate = nil
			}
			s := check(t, d)
			if v := s.Verify(acked); !v.OK || v.Present+v.Overwritten != v.Acked || v.LostCount != 0 {
				t.Fatalf("verdict %+v, scan %+v", v, s)
			}
		}
	})
}

// TestEveryHarmIsFound breaks what was acknowledged in every way that a
// faulty copy of a disk can, and wants the checker to say so.
func TestEveryHarmIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, acked := newDisk(), journal.Acks{}
		w := open(t, d, 1)
		n := uint64(rapid.IntRange(1, 3*slots).Draw(t, "records"))
		var before []byte // the disk one record earlier
		for i := range n {
			if i == n-1 {
				before = slices.Clone(d.data)
			}
			seq, _ := w.Append()
			_ = acked.Add(journal.Ack{Journal: w.Geometry().Journal, Seq: seq})
		}
		// Still on the disk, and not in the slot that comes next: that one a
		// crash may have torn.
		victim := n - uint64(rapid.IntRange(0, int(min(n, slots-1)-1)).Draw(t, "age"))
		at := journal.RingOffset + int(victim%slots)*block
		lost := victim
		switch rapid.SampledFrom([]string{"flip", "zero", "swap", "stale", "blank"}).Draw(t, "harm") {
		case "flip":
			d.data[at+rapid.IntRange(0, block-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "zero":
			clear(d.data[at : at+block])
		case "swap": // a record where another belongs
			other := journal.RingOffset + int((victim+1)%slots)*block
			copy(d.data[at:at+block], d.data[other:other+block])
		case "stale": // the newest write did not arrive
			d.data, lost = before, n
		case "blank": // nothing arrived
			clear(d.data[journal.RingOffset:])
		}
		v := check(t, d).Verify(acked)
		if v.OK || !slices.Contains(v.Lost, lost) || v.Reason == "" {
			t.Fatalf("record %d of %d harmed, verdict %+v", victim, n, v)
		}
	})
}

func TestCorruptSlotIsNeverExcusedTwice(t *testing.T) {
	d := newDisk()
	w := open(t, d, 1)
	for range 2 * slots {
		if _, err := w.Append(); err != nil {
			t.Fatal(err)
		}
	}
	for _, age := range []uint64{slots - 1, slots - 2} { // the slot that a crash may tear, and its neighbour
		d.data[journal.RingOffset+(2*slots-age)%slots*block+70] ^= 1
		s := check(t, d)
		v := s.Verify(journal.Acks{})
		if wantOK := age == slots-1; v.OK != wantOK || !s.Torn {
			t.Errorf("age %d: verdict %+v, torn %v", age, v, s.Torn)
		}
	}
}

func TestForeignAcknowledgementsAreLost(t *testing.T) {
	d := newDisk()
	w := open(t, d, 1)
	seq, err := w.Append()
	if err != nil {
		t.Fatal(err)
	}
	var acked journal.Acks
	if err := acked.Add(journal.Ack{Journal: journal.ID{9}, Seq: seq}); err != nil {
		t.Fatal(err)
	}
	if v := check(t, d).Verify(acked); v.OK || v.LostCount != 1 {
		t.Errorf("verdict %+v", v)
	}
	if err := acked.Add(journal.Ack{Journal: w.Geometry().Journal, Seq: 2}); err == nil {
		t.Error("acknowledgements of two journals were mixed")
	}
}

func TestOpen(t *testing.T) {
	opt := journal.Options{BlockBytes: block}
	with := func(f func(*journal.Options)) journal.Options { o := opt; f(&o); return o }
	for name, tc := range map[string]struct {
		prepare func(*disk)
		size    int64
		opt     journal.Options
		want    error // nil: any
	}{
		"block size":   {nil, size, with(func(o *journal.Options) { o.BlockBytes = 500 }), nil},
		"ring size":    {nil, size, with(func(o *journal.Options) { o.RingBytes = size }), nil},
		"small disk":   {nil, journal.RingOffset, opt, journal.ErrTooSmall},
		"foreign data": {func(d *disk) { d.data[journal.RingOffset+5] = 1 }, size, opt, journal.ErrForeign},
		"geometry": {func(d *disk) {
			if _, err := journal.Open(d, size, with(func(o *journal.Options) { o.RingBytes = 4 * block })); err != nil {
				t.Fatal(err)
			}
		}, size, opt, journal.ErrGeometry},
		"superblock": {func(d *disk) {
			if _, err := journal.Open(d, size, opt); err != nil {
				t.Fatal(err)
			}
			d.data[journal.SuperblockOffset+30] ^= 1
		}, size, opt, nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk()
			if tc.prepare != nil {
				tc.prepare(d)
			}
			before := slices.Clone(d.data)
			_, err := journal.Open(d, tc.size, tc.opt)
			if err == nil || (tc.want != nil && !errors.Is(err, tc.want)) {
				t.Fatalf("error %v, want %v", err, tc.want)
			}
			if !slices.Equal(before, d.data) {
				t.Error("a refused open has changed the disk")
			}
		})
	}
}

func TestFormatStartsOver(t *testing.T) {
	d := newDisk()
	w := open(t, d, 1)
	for range slots {
		if _, err := w.Append(); err != nil {
			t.Fatal(err)
		}
	}
	w, err := journal.Open(d, size, journal.Options{BlockBytes: block, Format: true})
	if err != nil {
		t.Fatal(err)
	}
	if seq, err := w.Append(); err != nil || seq != 1 {
		t.Fatalf("first record %d, %v", seq, err)
	}
	// The old journal's records are neither the new one's nor corrupt.
	if s := check(t, d); s.Records != 1 || s.Corrupt != 0 || s.MaxSeq != 1 {
		t.Errorf("scan %+v", s)
	}
}

func TestAcksAreASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a journal.Acks
		model := map[uint64]bool{}
		for _, seq := range rapid.SliceOf(rapid.Uint64Range(1, 40)).Draw(t, "seqs") {
			if err := a.Add(journal.Ack{Seq: seq}); err != nil {
				t.Fatal(err)
			}
			model[seq] = true
		}
		want := slices.Sorted(maps.Keys(model))
		got := slices.Collect(a.All())
		if !slices.Equal(got, want) || a.Count() != uint64(len(want)) {
			t.Fatalf("%v, want %v", got, want)
		}
		for i := 1; i < len(a.Ranges); i++ {
			if a.Ranges[i].First <= a.Ranges[i-1].Last+1 {
				t.Fatalf("ranges %v overlap or touch", a.Ranges)
			}
		}
		if len(want) > 0 && a.Max() != want[len(want)-1] {
			t.Fatalf("max %d, want %d", a.Max(), want[len(want)-1])
		}
	})
}

// FuzzCheck reads disks of any content: an error or a scan, never a panic.
func FuzzCheck(f *testing.F) {
	d := newDisk()
	w := open(f, d, 1)
	for range slots + 2 {
		if _, err := w.Append(); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(d.data[journal.SuperblockOffset:journal.SuperblockOffset+64], d.data[journal.RingOffset:])
	f.Fuzz(func(t *testing.T, super, ring []byte) {
		d := newDisk()
		copy(d.data[journal.SuperblockOffset:journal.RingOffset], super)
		copy(d.data[journal.RingOffset:], ring)
		s, err := journal.Check(d, size)
		if err != nil {
			return
		}
		if s.Records+s.Corrupt > s.Slots {
			t.Errorf("scan %+v counts more slots than there are", s)
		}
		s.Verify(journal.Acks{Journal: s.Journal, Ranges: []journal.Range{{First: 1, Last: rand.Uint64N(100) + 1}}})
	})
}
