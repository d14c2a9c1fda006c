package chunk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func imageSource(data []byte) Source {
	return Source{ID: idOf("test", string(data)), Kind: KindImage, Blocks: blocksOf(int64(len(data)))}
}

// TestCatalogueProperty builds catalogues of random images with random,
// unaligned extents, cut short at random and gone on with.
func TestCatalogueProperty(t *testing.T) {
	dir := t.TempDir()
	stop := errors.New("cut")
	rapid.Check(t, func(t *rapid.T) {
		r := seeded(rapid.Uint64().Draw(t, "seed"))
		// Data in islands, so that there are gaps shorter and longer than maxGap.
		m := &image{data: make([]byte, rapid.IntRange(0, 300*BlockBytes).Draw(t, "size"))}
		m.extents = []driver.Extent{}
		for at := int64(0); at < m.Size(); {
			e := driver.Extent{Offset: at, Length: min(1+r.Int64N(20*BlockBytes), m.Size()-at), Zero: r.IntN(4) == 0}
			if r.IntN(3) > 0 {
				m.extents = append(m.extents, e)
				if !e.Zero && r.IntN(4) > 0 {
					fill(r, m.data[e.Offset:e.Offset+e.Length])
				}
			}
			at += e.Length
		}
		src, path := imageSource(m.data), filepath.Join(dir, "c")
		left := 0
		m.cut = func() error {
			if left--; left < 0 {
				return stop
			}
			return nil
		}
		var c *Catalogue
		for {
			left = rapid.IntRange(1, 40).Draw(t, "reads before a cut")
			var err error
			if c, err = BuildCatalogue(context.Background(), path, src, m, BuildOptions{}); err == nil {
				break
			} else if !errors.Is(err, stop) {
				t.Fatal(err)
			}
			m.cut = nil // sections are larger than these images: the second try reads all
		}
		again, err := OpenCatalogue(path)
		if err != nil {
			t.Fatal(err)
		}
		want := fingerprints(m.data)
		for _, c := range []*Catalogue{c, again} {
			got := make([]Fingerprint, c.Blocks())
			var indexed int64
			if err := c.Each(context.Background(), func(first int64, fps []Fingerprint) error {
				copy(got[first:], fps)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			for _, fp := range got {
				if fp != 0 {
					indexed++
				}
			}
			if diff := cmp.Diff(want, got); diff != "" && len(want) > 0 {
				t.Fatal(diff)
			}
			if indexed != c.Indexed() {
				t.Fatalf("%d indexed, and it says %d", indexed, c.Indexed())
			}
		}
	})
}

// TestCatalogueGoesOn cuts a build of 64 MiB and counts what is read again.
func TestCatalogueGoesOn(t *testing.T) {
	for name, zeros := range map[string]bool{"data": false, "zeros": true} {
		t.Run(name, func(t *testing.T) {
			m := &image{data: make([]byte, 64<<20)}
			for i := 0; i < len(m.data) && !zeros; i += BlockBytes {
				m.data[i] = byte(i >> 12)
				m.data[i+1] = byte(i>>20) + 1
			}
			src, path := imageSource(m.data[:8192]), filepath.Join(t.TempDir(), "c")
			src.Blocks = blocksOf(m.Size())
			ctx, cancel := context.WithCancel(context.Background())
			m.cut = func() error {
				if m.reads.Load() == 200 { // 50 MiB
					cancel()
				}
				return nil
			}
			if _, err := BuildCatalogue(ctx, path, src, m, BuildOptions{}); !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v, want a canceled build", err)
			}
			if _, err := OpenCatalogue(path); drover.KindOf(err) != drover.NotFound {
				t.Fatalf("a half-built catalogue is offered: %v", err)
			}
			m.reads.Store(0)
			m.cut = nil
			c, err := BuildCatalogue(context.Background(), path, src, m, BuildOptions{})
			if err != nil {
				t.Fatal(err)
			}
			// 14 MiB that were left, and up to 16 MiB and one read again.
			if n := m.reads.Load() * readBytes; n > 31<<20 {
				t.Errorf("%d bytes read after the restart", n)
			}
			if got := listed(t, c); !slices.Equal(got, fingerprints(m.data)) {
				t.Error("the catalogue is wrong")
			}
		})
	}
}

// TestCatalogueDamage flips, cuts and extends a catalogue everywhere: it is
// never read as good with other content.
func TestCatalogueDamage(t *testing.T) {
	m := &image{data: noise(seeded(3), 50)}
	src, path := imageSource(m.data), filepath.Join(t.TempDir(), "c")
	c, err := BuildCatalogue(context.Background(), path, src, m, BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func(text []byte) error {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := OpenCatalogue(path)
		if err == nil {
			err = o.Each(context.Background(), func(int64, []Fingerprint) error { return nil })
		}
		return err
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1 << (i % 8)
		wantKind(t, read(bad), drover.Corrupt)
		wantKind(t, read(good[:i]), drover.Corrupt)
	}
	// The catalogue that was opened before notices as well.
	told := 0
	c.onCorrupt = func() { told++ }
	wantKind(t, c.Each(context.Background(), func(int64, []Fingerprint) error { return nil }), drover.Corrupt)
	if told != 1 {
		t.Errorf("the owner was told %d times", told)
	}
	if err := read(good); err != nil {
		t.Error(err)
	}
	// A damaged part is not gone on with.
	for i := 0; i < len(good); i += 7 {
		bad := slices.Clone(good)
		bad[i] ^= 4
		if err := os.WriteFile(path+partSuffix, bad[:len(bad)-32], 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := BuildCatalogue(context.Background(), path, src, m, BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(listed(t, c), fingerprints(m.data)) {
			t.Fatalf("byte %d of the part damaged: wrong catalogue", i)
		}
	}
	// Nor one of an older content, or with another stamp.
	if err := os.WriteFile(path+partSuffix, good[:len(good)-32], 0o600); err != nil {
		t.Fatal(err)
	}
	m.reads.Store(0)
	if _, err := BuildCatalogue(context.Background(), path, src, m, BuildOptions{Stamp: 1}); err != nil {
		t.Fatal(err)
	}
	if m.reads.Load() == 0 {
		t.Error("a part with another stamp was taken over")
	}
}

func TestCatalogueOfWrongSize(t *testing.T) {
	m := &image{data: noise(seeded(4), 4)}
	src := imageSource(m.data)
	src.Blocks = 5
	_, err := BuildCatalogue(context.Background(), filepath.Join(t.TempDir(), "c"), src, m, BuildOptions{})
	wantKind(t, err, drover.Invalid)
}

func TestIndexOfCatalogues(t *testing.T) {
	r := seeded(5)
	first, second := noise(r, 100), noise(r, 100)
	copy(second[:50*BlockBytes], first[:50*BlockBytes])
	x, dir := NewIndex(1<<20), t.TempDir()
	for i, data := range [][]byte{first, second} {
		c, err := BuildCatalogue(context.Background(), filepath.Join(dir, "c"), imageSource(data), &image{data: data}, BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := x.AddCatalogue(context.Background(), uint16(i), c); err != nil {
			t.Fatal(err)
		}
	}
	for i, data := range [][]byte{first, second} {
		for b, fp := range fingerprints(data) {
			got, ok := x.Lookup(fp)
			want := Ref{uint16(i), uint32(b)}
			if b < 50 {
				want.Source = 0
			}
			if ok != (fp != 0) || ok && got != want {
				t.Fatalf("source %d block %d: got %v %v", i, b, got, ok)
			}
		}
	}
}
