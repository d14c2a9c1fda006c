package chunk

import (
	"bytes"
	"context"
	"errors"
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
	time.Sleep(50 * time.Millisecond)
	if m.reads.Load() != 0 {
		t.Fatalf("%d reads while a move is under way", m.reads.Load())
	}
	// Unless that move waits for it: then it goes before what was begun.
	other := &image{data: noise(seeded(20), 20)}
	wanted := imageSource(other.data)
	if err := l.AddImage(context.Background(), wanted, other.opener()); err != nil {
		t.Fatal(err)
	}
	waitIndexed(t, l, wanted.ID)
	if m.reads.Load() != 0 {
		t.Fatalf("%d reads of another source while a move is under way", m.reads.Load())
	}
	l.Resume()
	for {
		if _, err := l.Catalogue(src.ID); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
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
