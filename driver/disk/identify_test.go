package disk

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// TestIdentifyRemembers: an identity is computed once per version of an image
// and survives the store.
func TestIdentifyRemembers(t *testing.T) {
	dir, cache := filepath.Join(t.TempDir(), "images"), filepath.Join(t.TempDir(), "cache")
	s := newStore(t, Config{Dirs: []string{dir}, CacheDir: cache})
	base, top := filepath.Join(dir, "base.raw"), filepath.Join(dir, "top.qcow2")
	must(t, s.Create(t.Context(), driver.VolumeSpec{Path: base, Format: "raw", VirtualBytes: 4 << 20}))
	must(t, s.Create(t.Context(), driver.VolumeSpec{Path: top, Format: "qcow2", VirtualBytes: 4 << 20, Backing: drover.Backing{Path: base, Format: "raw"}}))
	put := func(text string, age time.Duration) {
		t.Helper()
		w, err := s.OpenWrite(t.Context(), base)
		must(t, err)
		_, err = w.WriteAt([]byte(text), 4096)
		must(t, err)
		must(t, w.Close())
		for _, p := range []string{base, top} {
			must(t, os.Chtimes(p, time.Time{}, time.Now().Add(-age)))
		}
	}
	identify := func(s *Store) driver.ContentID {
		t.Helper()
		id, err := s.Identify(t.Context(), top)
		must(t, err)
		return id
	}
	kept := func() int {
		list, err := os.ReadDir(cache)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return len(list)
	}

	put("first", 0)
	first := identify(s)
	if kept() != 0 {
		t.Error("an image touched just now was remembered: a write in the same tick would go unseen")
	}
	put("first", time.Hour)
	if identify(s) != first || kept() != 1 {
		t.Errorf("another identity for the same content, or %d remembered", kept())
	}
	// One that cannot open images knows the identity from memory or file.
	s.cfg.QemuNBD = "/nowhere"
	if identify(s) != first {
		t.Error("memory holds another identity")
	}
	blind := newStore(t, Config{Dirs: []string{dir}, CacheDir: cache, QemuNBD: "/nowhere"})
	if identify(blind) != first {
		t.Error("the file holds another identity")
	}
	s.cfg.QemuNBD = "qemu-nbd"

	// A change below the top image counts, although the top's file stays.
	put("other", 30*time.Minute)
	if _, err := blind.Identify(t.Context(), top); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("an outdated identity is remembered: %v", err)
	}
	if identify(s) == first {
		t.Error("the identity misses a change of the backing file")
	}
	put("first", time.Hour+time.Minute)
	if identify(s) != first {
		t.Error("the same content again has another identity")
	}

	// Damaged files are no harm.
	list, err := filepath.Glob(filepath.Join(cache, "*"))
	must(t, err)
	for i, p := range list {
		must(t, os.WriteFile(p, [][]byte{nil, []byte("drover-content-id 1 00ff\n"), []byte("drover-content-id 2 x")}[i%3], 0o600))
	}
	if fresh := newStore(t, Config{Dirs: []string{dir}, CacheDir: cache}); identify(fresh) != first {
		t.Error("a damaged file was believed")
	}
}

// TestIdentifyPrunes: the files are bounded.
func TestIdentifyPrunes(t *testing.T) {
	dir := t.TempDir()
	c := newIDCache(nil, dir)
	for i := range maxCached {
		must(t, os.WriteFile(c.file(cacheKey{byte(i), byte(i >> 8), 1}), nil, 0o600))
	}
	c.remember(cacheKey{2}, driver.ContentID{3})
	must(t, c.save(cacheKey{2}, driver.ContentID{3}))
	list, err := os.ReadDir(dir)
	must(t, err)
	if len(list) > maxCached/2+1 {
		t.Errorf("%d files", len(list))
	}
	if id, ok := c.load(cacheKey{2}); !ok || id != (driver.ContentID{3}) {
		t.Error("the newest was pruned")
	}
	for i := range maxCached + 10 {
		c.remember(cacheKey{byte(i), byte(i >> 8), 1}, driver.ContentID{})
	}
	if len(c.ids) > maxCached {
		t.Errorf("%d in memory", len(c.ids))
	}
}
