package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

func ids(list []Source) []SourceID {
	var all []SourceID
	for _, s := range list {
		all = append(all, s.ID)
	}
	return all
}

// TestLibrarySealsAgain has a move that is tried twice under the same name.
func TestLibrarySealsAgain(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	r, src := seeded(22), memorySource("m", "", "vm", 300)
	runIndexer(t, l)
	for range 3 {
		data := noise(r, 300)
		keep(t, l, src, data)
		waitIndexed(t, l, src.ID)
		wantCatalogue(t, l, src.ID, data)
		if !bytes.Equal(content(t, l, src), data) {
			t.Fatal("the content is of an earlier try")
		}
	}
	if s := l.Stats(); s.Memories != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestLibraryScope(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	r := seeded(13)
	block := noise(r, 8)
	shared, foreign := &image{data: noise(r, 8)}, &image{data: noise(r, 9)}
	ss, fs := imageSource(shared.data), imageSource(foreign.data)
	add := func(src Source, scope string, m *image) {
		t.Helper()
		src.Scope = scope
		if err := l.AddImage(context.Background(), src, m.opener()); err != nil {
			t.Fatal(err)
		}
	}
	add(ss, "a", shared)
	add(ss, "b", shared)
	add(fs, "b", foreign)
	a1, a2 := memorySource("1", "a", "a1", 8), memorySource("2", "a", "a2", 8)
	b1, none := memorySource("3", "b", "b1", 8), memorySource("4", "", "n1", 8)
	for _, s := range []Source{a1, a2, b1, none} {
		keep(t, l, s, block)
	}
	for _, tt := range []struct {
		scope, vm string
		want      []SourceID
	}{
		{"a", "a1", []SourceID{a1.ID, ss.ID, a2.ID}},
		{"a", "a2", []SourceID{a2.ID, ss.ID, a1.ID}},
		{"a", "new", []SourceID{ss.ID, a2.ID, a1.ID}},
		{"b", "b1", []SourceID{b1.ID, fs.ID, ss.ID}},
		{"b", "a1", []SourceID{a1.ID, fs.ID, ss.ID, b1.ID}}, // it was given another label
		{"", "n1", []SourceID{none.ID}},
		{"", "", []SourceID{none.ID}},
		{"c", "", nil},
	} {
		got := l.Sources(tt.scope, tt.vm)
		if !slices.Equal(ids(got), tt.want) {
			t.Errorf("scope %q, VM %q: %v", tt.scope, tt.vm, got)
		}
		for _, s := range got {
			if s.Scope != tt.scope {
				t.Errorf("scope %q is told to scope %q", s.Scope, tt.scope)
			}
		}
		for _, s := range []Source{ss, fs, a1, a2, b1, none} {
			if l.InScope(s.ID, tt.scope, tt.vm) != slices.Contains(tt.want, s.ID) {
				t.Errorf("scope %q, VM %q: InScope(%v) is wrong", tt.scope, tt.vm, s)
			}
		}
	}
	// Nor is another tenant's memory a base.
	_, err := l.NewMemory(memorySource("5", "a", "a1", 8), b1.ID)
	wantKind(t, err, drover.NotFound)
}

func TestLibraryEvicts(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{LimitBytes: 100 * BlockBytes})
	r := seeded(14)
	data := make([]byte, 30*BlockBytes)
	fill(r, data)
	mem := func(i int) Source { return memorySource(fmt.Sprint(i), "", fmt.Sprint("vm", i), 30) }
	for i := range 3 {
		keep(t, l, mem(i), data)
	}
	// 0 is open, 1 was used after 2.
	c, err := l.Open(mem(0).ID)
	if err != nil {
		t.Fatal(err)
	}
	content(t, l, mem(1))
	keep(t, l, mem(3), data)
	have := func(want ...int) {
		t.Helper()
		for i := range 6 {
			if l.Has(mem(i).ID) != slices.Contains(want, i) {
				t.Fatalf("memory %d is here: %v", i, l.Has(mem(i).ID))
			}
		}
		if s := l.Stats(); s.Bytes > s.LimitBytes {
			t.Fatalf("stats %+v", s)
		}
	}
	have(0, 1, 3)
	// A base is not evicted for what stands on it.
	m, err := l.NewMemory(mem(4), mem(1).ID)
	if err != nil {
		t.Fatal(err)
	}
	have(0, 1)
	_, err = l.NewMemory(mem(5), SourceID{})
	wantKind(t, err, drover.Exhausted)
	have(0, 1) // nothing was evicted in vain
	if err := errors.Join(c.Close(), c.Close(), m.Discard()); err != nil {
		t.Fatal(err)
	}
	_, err = l.NewMemory(memorySource("big", "", "big", 101), SourceID{})
	wantKind(t, err, drover.Exhausted)
	have(0, 1)
	keep(t, l, mem(5), data)
	have(0, 1, 5)
	if s := l.Stats(); s.Evicted != 2 {
		t.Errorf("%d evicted, want 2", s.Evicted)
	}
}

// TestLibraryEvictsDisks counts the remains of disks, and tells their owner.
func TestLibraryEvictsDisks(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{LimitBytes: 100 * BlockBytes})
	r := seeded(15)
	var dropped []string
	disk := func(name string, bytes int64) Source {
		m := &image{data: noise(r, 40)}
		src := Source{ID: DiskID(name, "vm", "vda"), Kind: KindDisk, Blocks: 40, VM: "vm"}
		err := l.AddDisk(context.Background(), src, m.opener(), Kept{Bytes: bytes, Drop: func() {
			dropped = append(dropped, name)
			if err := l.Remove(src.ID); err != nil { // it may call back
				t.Error(err)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		return src
	}
	disk("1", 40*BlockBytes)
	disk("own", 0)
	disk("2", 40*BlockBytes)
	disk("3", 40*BlockBytes)
	if !slices.Equal(dropped, []string{"1"}) {
		t.Errorf("dropped %v", dropped)
	}
	keep(t, l, memorySource("m", "", "vm", 50), noise(r, 50))
	if !slices.Equal(dropped, []string{"1", "2"}) {
		t.Errorf("dropped %v", dropped)
	}
}

func TestLibraryLimitAtOpen(t *testing.T) {
	dir := t.TempDir()
	l := openLibrary(t, dir, Options{})
	data := make([]byte, 30*BlockBytes)
	fill(seeded(16), data)
	for i := range 3 {
		keep(t, l, memorySource(fmt.Sprint(i), "", fmt.Sprint("vm", i), 30), data)
		time.Sleep(2 * time.Millisecond) // the files' times tell them apart
	}
	content(t, l, memorySource("0", "", "vm0", 30))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLibrary(t, dir, Options{LimitBytes: 70 * BlockBytes})
	if got, want := ids(l.Sources("", "")), []SourceID{MemoryID("0", "vm0"), MemoryID("2", "vm2")}; !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
}

func TestLibraryOneProcess(t *testing.T) {
	dir := t.TempDir()
	l := openLibrary(t, dir, Options{})
	_, err := OpenLibrary(dir, Options{})
	wantKind(t, err, drover.Refused)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	openLibrary(t, dir, Options{})
}

// TestLibraryShares opens a content several times at once.
func TestLibraryShares(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	m := &image{data: noise(seeded(17), 64)}
	src := imageSource(m.data)
	opened := 0
	err := l.AddImage(context.Background(), src, func(ctx context.Context) (driver.ImageReader, error) {
		opened++
		time.Sleep(5 * time.Millisecond)
		return m, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	first, err := l.Open(src.ID)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			c, err := l.Open(src.ID)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			p := make([]byte, 2*BlockBytes)
			for i := range int64(64) {
				b := (i + int64(w)*8) % 63
				if err := c.ReadBlocks(b, p); err != nil || !bytes.Equal(p, m.data[b*BlockBytes:][:len(p)]) {
					t.Errorf("block %d: %v", b, err)
				}
			}
		})
	}
	wg.Wait()
	if opened != 1 || m.closed.Load() != 0 {
		t.Errorf("opened %d times, closed %d", opened, m.closed.Load())
	}
	// Removed, it can still be read by who has it.
	if err := l.Remove(src.ID); err != nil {
		t.Fatal(err)
	}
	_, err = l.Open(src.ID)
	wantKind(t, err, drover.NotFound)
	p := make([]byte, 2*BlockBytes)
	if err := first.ReadBlocks(63, p); err != nil || !bytes.Equal(p[:BlockBytes], m.data[63*BlockBytes:]) || !IsZero(p[BlockBytes:]) {
		t.Errorf("across the end: %v", err)
	}
	wantKind(t, first.ReadBlocks(-1, p), drover.Invalid)
	wantKind(t, first.ReadBlocks(0, p[1:]), drover.Invalid)
	if err := first.Close(); err != nil || m.closed.Load() != 1 {
		t.Errorf("closed %d times, %v", m.closed.Load(), err)
	}
}
