package disk

import (
	"context"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/drover-vm/drover/driver"
)

const (
	// maxCached bounds the identities kept in memory and as files each: a
	// host has some tens of images worth it.
	maxCached = 4096
	// cacheMagic begins a cache file; an identity in hexadecimal follows.
	cacheMagic = "drover-content-id 1 "
	// cacheSuffix ends a cache file's name.
	cacheSuffix = ".contentid"
)

// cacheKey names a version of an image with its chain.
type cacheKey [32]byte

// idCache remembers identities, and lets one caller compute what several ask.
type idCache struct {
	log *slog.Logger
	dir string

	mu      sync.Mutex
	ids     map[cacheKey]driver.ContentID
	running map[cacheKey]chan struct{} // closed when the computation ends
}

func newIDCache(log *slog.Logger, dir string) *idCache {
	return &idCache{log: log, dir: dir, ids: map[cacheKey]driver.ContentID{}, running: map[cacheKey]chan struct{}{}}
}

// get returns the identity for the key that current yields, and computes it
// when it is not known. It is kept if the key is the same afterwards and was
// settled, which current says, to begin with.
func (c *idCache) get(ctx context.Context, current func() (key cacheKey, settled bool, err error),
	compute func() (driver.ContentID, error),
) (driver.ContentID, error) {
	for {
		key, settled, err := current()
		if err != nil {
			return driver.ContentID{}, err
		}
		c.mu.Lock()
		if id, ok := c.ids[key]; ok && settled {
			c.mu.Unlock()
			return id, nil
		}
		if wait, ok := c.running[key]; ok {
			c.mu.Unlock()
			select {
			case <-wait:
				continue // it may have failed, for reasons of its own
			case <-ctx.Done():
				return driver.ContentID{}, ctx.Err()
			}
		}
		done := make(chan struct{})
		c.running[key] = done
		c.mu.Unlock()
		id, err := c.fill(key, settled, current, compute)
		c.mu.Lock()
		delete(c.running, key)
		c.mu.Unlock()
		close(done)
		return id, err
	}
}

func (c *idCache) fill(key cacheKey, settled bool, current func() (cacheKey, bool, error),
	compute func() (driver.ContentID, error),
) (driver.ContentID, error) {
	if settled {
		if id, ok := c.load(key); ok {
			c.remember(key, id)
			return id, nil
		}
	}
	id, err := compute()
	if err != nil {
		return id, err
	}
	after, _, err := current()
	if err != nil {
		return id, err
	}
	if after != key {
		return driver.ContentID{}, errChanged()
	}
	if settled {
		c.remember(key, id)
		if err := c.save(key, id); err != nil {
			c.log.Warn("identity not kept", "dir", c.dir, "err", err)
		}
	}
	return id, nil
}

func (c *idCache) remember(key cacheKey, id driver.ContentID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ids) >= maxCached {
		for k := range c.ids { // any will do: it is in a file or computed again
			delete(c.ids, k)
			break
		}
	}
	c.ids[key] = id
}

func (c *idCache) file(key cacheKey) string {
	return filepath.Join(c.dir, hex.EncodeToString(key[:])+cacheSuffix)
}

// load reads a cache file; one that is damaged counts as missing.
func (c *idCache) load(key cacheKey) (id driver.ContentID, ok bool) {
	if c.dir == "" {
		return id, false
	}
	b, err := os.ReadFile(c.file(key))
	if err != nil {
		return id, false
	}
	line, found := strings.CutPrefix(string(b), cacheMagic)
	raw, err := hex.DecodeString(strings.TrimSuffix(line, "\n"))
	if !found || err != nil || len(raw) != len(id) {
		return id, false
	}
	return driver.ContentID(raw), true
}

// save writes a cache file under a passing name and then renames it, so that
// no reader sees half of one.
func (c *idCache) save(key cacheKey, id driver.ContentID) error {
	if c.dir == "" {
		return nil
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(c.dir, tempPrefix+"*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = fmt.Fprintf(f, "%s%x\n", cacheMagic, id)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), c.file(key))
	}
	if err == nil {
		err = c.prune()
	}
	return err
}

// prune removes the oldest half of the cache files when there are too many.
func (c *idCache) prune() error {
	list, err := os.ReadDir(c.dir)
	if err != nil || len(list) <= maxCached {
		return err
	}
	infos := make([]fs.FileInfo, 0, len(list))
	for _, e := range list {
		if fi, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), cacheSuffix) {
			infos = append(infos, fi)
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, fi := range infos[:len(infos)/2] {
		if err := os.Remove(filepath.Join(c.dir, fi.Name())); err != nil {
			return err
		}
	}
	return nil
}
