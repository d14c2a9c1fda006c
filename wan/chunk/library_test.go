package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// runIndexer runs the indexer until the test or the returned function ends it.
func runIndexer(t testing.TB, l *Library) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); wg.Wait() }) }
	t.Cleanup(stop)
	return stop
}

func waitIndexed(t testing.TB, l *Library, ids ...SourceID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.WaitIndexed(ctx, ids...); err != nil {
		t.Fatal(err)
	}
}

func wantCatalogue(t testing.TB, l *Library, id SourceID, data []byte) {
	t.Helper()
	c, err := l.Catalogue(id)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(listed(t, c), fingerprints(data)) {
		t.Fatalf("the catalogue of %v is wrong", id)
	}
}

func ids(list []Source) []SourceID {
	var all []SourceID
	for _, s := range list {
		all = append(all, s.ID)
	}
	return all
}

func TestLibraryIndexes(t *testing.T) {
	dir, r := t.TempDir(), seeded(10)
	l := openLibrary(t, dir, Options{})
	golden, disk := &image{data: noise(r, 3000)[:3000*BlockBytes-100]}, &image{data: noise(r, 200)}
	gs, ds := imageSource(golden.data), imageSource(disk.data)
	ds.Kind, ds.VM = KindDisk, "vm"
	mem := noise(r, 500)
	ms := memorySource("m", "", "vm", 500)
	register := func(l *Library) {
		t.Helper()
		if err := errors.Join(l.AddImage(context.Background(), gs, golden.opener()), l.AddDisk(context.Background(), ds, disk.opener(), Kept{})); err != nil {
			t.Fatal(err)
		}
	}
	register(l)
	keep(t, l, ms, mem)
	_, err := l.Catalogue(gs.ID)
	wantKind(t, err, drover.NotFound)
	if s := l.Stats(); s.BacklogBlocks != 3700 || s.IndexedBlocks != 0 || s.Images != 1 || s.Disks != 1 || s.Memories != 1 {
		t.Errorf("stats %+v", s)
	}
	stop := runIndexer(t, l)
	waitIndexed(t, l, gs.ID, ds.ID, ms.ID)
	check := func(l *Library) {
		t.Helper()
		wantCatalogue(t, l, gs.ID, golden.data)
		wantCatalogue(t, l, ds.ID, disk.data)
		wantCatalogue(t, l, ms.ID, mem)
		if s := l.Stats(); s.BacklogBlocks != 0 || s.IndexedBlocks == 0 {
			t.Errorf("stats %+v", s)
		}
	}
	check(l)
	stop()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	// After a restart the memory is there, and catalogues are taken over with
	// a few reads.
	l = openLibrary(t, dir, Options{})
	if got := l.Sources("", "vm"); !slices.Equal(got, []Source{ms}) {
		t.Fatalf("sources after a restart: %v", got)
	}
	golden.reads.Store(0)
	register(l)
	runIndexer(t, l)
	waitIndexed(t, l, gs.ID, ds.ID, ms.ID)
	check(l)
	if n := golden.reads.Load(); n == 0 || n > samples {
		t.Errorf("%d reads to check a catalogue", n)
	}
	if !bytes.Equal(content(t, l, ms), mem) {
		t.Error("the memory is not what it was")
	}
}

// TestLibraryRejects damages what a restart finds.
func TestLibraryRejects(t *testing.T) {
	r := seeded(11)
	golden, mem := &image{data: noise(r, 300)}, noise(r, 300)
	gs, ms := imageSource(golden.data), memorySource("m", "", "vm", 300)
	flip := func(path string, at int64) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text[at] ^= 1
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		damage  func(l *Library)
		memory  bool // is still there
		rebuilt bool // the golden image is read again
	}{
		{"nothing", func(l *Library) {}, true, false},
		{"section", func(l *Library) { flip(l.cataloguePath(gs.ID), 200) }, true, true},
		{"header", func(l *Library) { flip(l.cataloguePath(gs.ID), 20) }, true, true},
		{"cut", func(l *Library) { os.Truncate(l.cataloguePath(gs.ID), 1000) }, true, true},
		{"swapped", func(l *Library) { os.Rename(l.cataloguePath(ms.ID), l.cataloguePath(gs.ID)) }, true, true},
		{"image changed", func(l *Library) {
			golden = &image{data: noise(r, 300)} // under the old id
		}, true, true},
		{"memory's catalogue", func(l *Library) { flip(l.cataloguePath(ms.ID), 300) }, true, false},
		{"memory lost its blocks", func(l *Library) {
			os.Truncate(l.memoryPath(ms.ID), 0)
			os.Truncate(l.memoryPath(ms.ID), 300*BlockBytes)
		}, false, false},
		{"memory cut", func(l *Library) { os.Truncate(l.memoryPath(ms.ID), 299*BlockBytes) }, false, false},
		{"memory gone", func(l *Library) { os.Remove(l.memoryPath(ms.ID)) }, false, false},
		{"manifest", func(l *Library) { flip(l.manifestPath(ms.ID), 100) }, false, false},
		{"manifest's sum", func(l *Library) { flip(l.manifestPath(ms.ID), 0) }, false, false},
		{"manifest empty", func(l *Library) { os.Truncate(l.manifestPath(ms.ID), 0) }, false, false},
		{"manifest gone", func(l *Library) { os.Remove(l.manifestPath(ms.ID)) }, false, false},
		{"manifest of another", func(l *Library) {
			other := MemoryID("other", "vm")
			os.Rename(l.manifestPath(ms.ID), l.manifestPath(other))
			os.Rename(l.memoryPath(ms.ID), l.memoryPath(other))
		}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			l := openLibrary(t, dir, Options{})
			golden = &image{data: golden.data}
			if err := l.AddImage(context.Background(), gs, golden.opener()); err != nil {
				t.Fatal(err)
			}
			keep(t, l, ms, mem)
			stop := runIndexer(t, l)
			waitIndexed(t, l, gs.ID, ms.ID)
			stop()
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			tt.damage(l)
			l = openLibrary(t, dir, Options{})
			if err := l.AddImage(context.Background(), gs, golden.opener()); err != nil {
				t.Fatal(err)
			}
			golden.reads.Store(0)
			runIndexer(t, l)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := l.WaitIndexed(ctx, gs.ID, ms.ID); tt.memory && err != nil || !tt.memory && drover.KindOf(err) != drover.NotFound {
				t.Fatalf("wait: %v", err)
			}
			waitIndexed(t, l, gs.ID)
			wantCatalogue(t, l, gs.ID, golden.data)
			if tt.rebuilt != (golden.reads.Load()%samples != 0 || golden.reads.Load() > samples) {
				t.Errorf("%d reads of the image", golden.reads.Load())
			}
			if l.Has(ms.ID) != tt.memory {
				t.Errorf("memory is there: %v", l.Has(ms.ID))
			}
			if tt.memory {
				wantCatalogue(t, l, ms.ID, mem)
				return
			}
			// Nothing of it is left, once the removal is through.
			l.files.Lock()
			defer l.files.Unlock()
			for _, folder := range []string{memoryFolder, catalogueFolder} {
				list, err := os.ReadDir(filepath.Join(dir, folder))
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range list {
					if !strings.HasPrefix(d.Name(), gs.ID.String()) {
						t.Errorf("%s is left", d.Name())
					}
				}
			}
		})
	}
}

// TestLibraryCataloguesOfOthers puts the catalogue of an image in the place of
// one that begins alike and is longer: no sample can tell.
func TestLibraryCataloguesOfOthers(t *testing.T) {
	dir := t.TempDir()
	l := openLibrary(t, dir, Options{})
	long := noise(seeded(21), 200)
	short := long[:100*BlockBytes]
	open := func(data []byte) Source {
		t.Helper()
		src := imageSource(data)
		if err := l.AddImage(context.Background(), src, (&image{data: data}).opener()); err != nil {
			t.Fatal(err)
		}
		return src
	}
	src := open(short)
	stop := runIndexer(t, l)
	waitIndexed(t, l, src.ID)
	stop()
	if err := errors.Join(l.Close(), os.Rename(l.cataloguePath(src.ID), l.cataloguePath(imageSource(long).ID))); err != nil {
		t.Fatal(err)
	}
	l = openLibrary(t, dir, Options{})
	src = open(long)
	runIndexer(t, l)
	waitIndexed(t, l, src.ID)
	wantCatalogue(t, l, src.ID, long)
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

// TestLibraryDistrusts damages a catalogue that is in use.
func TestLibraryDistrusts(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	m := &image{data: noise(seeded(12), 100)}
	src := imageSource(m.data)
	if err := l.AddImage(context.Background(), src, m.opener()); err != nil {
		t.Fatal(err)
	}
	runIndexer(t, l)
	waitIndexed(t, l, src.ID)
	c, err := l.Catalogue(src.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(l.cataloguePath(src.ID), 500); err != nil {
		t.Fatal(err)
	}
	wantKind(t, NewIndex(1<<20).AddCatalogue(context.Background(), 0, c), drover.Corrupt)
	waitIndexed(t, l, src.ID)
	wantCatalogue(t, l, src.ID, m.data)
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

func TestIndexerPauses(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	m := &image{data: noise(seeded(18), 200)}
	src := imageSource(m.data)
	l.Pause()
	l.Pause()
	if err := l.AddImage(context.Background(), src, m.opener()); err != nil {
		t.Fatal(err)
	}
	runIndexer(t, l)
	l.Resume()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := l.WaitIndexed(ctx, src.ID); !errors.Is(err, context.DeadlineExceeded) || m.reads.Load() != 0 {
		t.Fatalf("%v after %d reads while a move is under way", err, m.reads.Load())
	}
	l.Resume()
	waitIndexed(t, l, src.ID)
}

func TestIndexerGivesUp(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	l.retryWait = time.Millisecond
	m := &image{data: noise(seeded(19), 20)}
	src := imageSource(m.data)
	tries, busy := 0, errors.New("busy")
	open := func(context.Context) (driver.ImageReader, error) {
		if tries++; tries <= maxIndexAttempts {
			return nil, busy
		}
		return m, nil
	}
	if err := l.AddImage(context.Background(), src, open); err != nil {
		t.Fatal(err)
	}
	runIndexer(t, l)
	wantKind(t, l.WaitIndexed(context.Background(), src.ID), drover.Unavailable)
	if err := l.AddImage(context.Background(), src, open); err != nil {
		t.Fatal(err)
	}
	waitIndexed(t, l, src.ID)
	if tries != maxIndexAttempts+1 {
		t.Errorf("%d tries", tries)
	}
	wantKind(t, l.Run(context.Background()), drover.Refused)
}

// TestRemoveWaitsForIndexer removes a disk in the middle of its indexing, as
// an agent does before the image is written to again.
func TestRemoveWaitsForIndexer(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	reading := make(chan struct{}, 100)
	m := &image{data: noise(seeded(23), 1000), cut: func() error {
		reading <- struct{}{}
		time.Sleep(20 * time.Millisecond)
		return nil
	}}
	src := imageSource(m.data)
	src.Kind, src.VM = KindDisk, "vm"
	if err := l.AddDisk(context.Background(), src, m.opener(), Kept{}); err != nil {
		t.Fatal(err)
	}
	runIndexer(t, l)
	<-reading
	if err := l.Remove(src.ID); err != nil {
		t.Fatal(err)
	}
	if m.closed.Load() != 1 {
		t.Error("the image is still open")
	}
	if left, err := os.ReadDir(filepath.Join(l.dir, catalogueFolder)); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
