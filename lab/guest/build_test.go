package guest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestModulesFollowWhatTheyNeed(t *testing.T) {
	k, err := buildKernel(t.Context(), slog.New(slog.DiscardHandler), DefaultCacheDir)
	if err != nil {
		t.Fatal(err)
	}
	var loaded []string
	for _, file := range k.modules {
		needs, err := moduleNeeds(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range needs {
			if !slices.Contains(loaded, n) {
				t.Errorf("%s is loaded before %s, which it needs", file, n)
			}
		}
		name := strings.TrimSuffix(filepath.Base(file), ".ko")
		loaded = append(loaded, strings.ReplaceAll(name, "-", "_"))
	}
	for _, want := range wantModules {
		if !slices.Contains(loaded, want) {
			t.Errorf("%s is not loaded", want)
		}
	}
	if slices.Index(loaded, "virtio_ring") > slices.Index(loaded, "virtio_pci") || !slices.Contains(loaded, "virtio_ring") {
		t.Errorf("virtio_ring is not loaded before virtio_pci: %v", loaded)
	}
	if _, err := orderModules(filepath.Dir(k.modules[0]), []string{"no_such"}); err == nil || !strings.Contains(err.Error(), "no_such") {
		t.Errorf("a module that does not exist: %v", err)
	}
}

// TestConcurrentBuildsAgree builds the small guest four times at once into
// one cache.
func TestConcurrentBuildsAgree(t *testing.T) {
	if _, err := buildKernel(t.Context(), slog.New(slog.DiscardHandler), DefaultCacheDir); err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	if err := os.Symlink(filepath.Join(DefaultCacheDir, "kernel"), filepath.Join(cache, "kernel")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	built := make([]Sheep, 4)
	for i := range built {
		wg.Go(func() {
			var err error
			if built[i], err = BuildSheep(t.Context(), slog.New(slog.DiscardHandler), cache); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	left, err := filepath.Glob(filepath.Join(cache, "*sheep-*"))
	if err != nil || !slices.Equal(left, []string{built[0].Initrd}) {
		t.Errorf("cache holds %v (%v), want %s alone", left, err, built[0].Initrd)
	}
	for _, b := range built[1:] {
		if b != built[0] {
			t.Errorf("built %v and %v", built[0], b)
		}
	}
	if hidden, _ := filepath.Glob(filepath.Join(cache, ".sheep-*")); len(hidden) > 0 {
		t.Errorf("left behind: %v", hidden)
	}
}

func TestLockCacheGivesUpWithContext(t *testing.T) {
	dir := t.TempDir()
	release, err := lockCache(t.Context(), dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := lockCache(ctx, dir, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: %v", err)
	}
	release()
	release, err = lockCache(t.Context(), dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestCommandNamesThePackage(t *testing.T) {
	_, err := command(t.Context(), "", "some-package", "no-such-tool")
	if err == nil || !strings.Contains(err.Error(), "apt-get install some-package") {
		t.Errorf("missing tool: %v", err)
	}
	_, err = command(t.Context(), "", "bash", "bash", "-c", "echo one >&2; echo two >&2; exit 3")
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "one; two") {
		t.Errorf("failing tool: %v, want one line with what it said", err)
	}
}
