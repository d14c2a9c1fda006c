package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// snapshot copies a library's folder as it is at some moment while others
// write to it, which is what a crash of the process leaves.
func snapshot(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // renamed or removed just now
		} else if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), text, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLibraryCrash copies the folder at random moments of a busy life, opens
// the copies, and checks that everything offered is what it should be.
func TestLibraryCrash(t *testing.T) {
	const blocks, moves, copies = 200, 60, 40
	r, dir := seeded(20), t.TempDir()
	live := filepath.Join(dir, "live")
	l := openLibrary(t, live, Options{LimitBytes: 8 * blocks * BlockBytes})
	golden := &image{data: noise(r, blocks)}
	gs := imageSource(golden.data)
	if err := l.AddImage(context.Background(), gs, golden.opener()); err != nil {
		t.Fatal(err)
	}
	runIndexer(t, l)

	contents := make(map[SourceID][]byte) // filled before a memory begins
	var mu sync.Mutex
	var wg sync.WaitGroup
	for v := range 2 {
		wg.Go(func() {
			r, vm := seeded(uint64(100+v)), fmt.Sprint("vm", v)
			var base SourceID
			var data []byte
			for move := range moves {
				src := memorySource(fmt.Sprint(move/2), "", vm, blocks) // every id twice
				next := bytes.Clone(data)
				if next == nil || !l.Has(base) || base == src.ID {
					base, next = SourceID{}, make([]byte, blocks*BlockBytes)
				}
				m, err := l.NewMemory(src, base)
				if err != nil {
					t.Error(err)
					return
				}
				if move%2 == 1 { // a try that failed: its content never counts
					if err := errors.Join(m.Write(3, golden.data[:BlockBytes]), m.Discard()); err != nil {
						t.Error(err)
					}
					base = SourceID{}
					continue
				}
				for range 100 {
					b := r.Int64N(blocks)
					at := next[b*BlockBytes:][:BlockBytes]
					fill(r, at)
					if err := m.Write(b, at); err != nil {
						t.Error(err)
					}
				}
				mu.Lock()
				contents[src.ID] = next
				mu.Unlock()
				if err := m.Seal(context.Background()); err != nil {
					t.Error(err)
					return
				}
				data, base = next, src.ID
				time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
			}
		})
	}
	seen := 0
	for i := range copies {
		to := filepath.Join(dir, fmt.Sprint(i))
		snapshot(t, live, to)
		c := openLibrary(t, to, Options{})
		if err := c.AddImage(context.Background(), gs, golden.opener()); err != nil {
			t.Fatal(err)
		}
		stop := runIndexer(t, c)
		for _, s := range c.Sources("", "") {
			waitIndexed(t, c, s.ID)
			mu.Lock()
			want := contents[s.ID]
			mu.Unlock()
			if s.Kind == KindImage {
				want = golden.data
			}
			wantCatalogue(t, c, s.ID, want)
			if !bytes.Equal(content(t, c, s), want) {
				t.Fatalf("copy %d: %v is not what it was", i, s.ID)
			}
			seen++
		}
		stop()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(to, memoryFolder, "*"+newSuffix)); len(left) > 0 {
			t.Errorf("copy %d: %v was not swept", i, left)
		}
		os.RemoveAll(to)
	}
	wg.Wait()
	if seen < 2*copies {
		t.Errorf("only %d sources in %d copies: the test sees too little", seen, copies)
	}
}
