package chunk

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/drover-vm/drover"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// The folder:
//
//	lock                  held while a process has the library open
//	memory/<id>.mem       a sealed memory: the plain bytes, sparse
//	memory/<id>.json      its manifest, which makes it one
//	memory/*.new          a memory that is not sealed: swept at open
//	catalogue/<id>.cat    a complete catalogue
//	catalogue/<id>.part   one that is being built
const (
	memoryFolder    = "memory"
	catalogueFolder = "catalogue"
	memorySuffix    = ".mem"
	manifestSuffix  = ".json"
	newSuffix       = ".new"
	catSuffix       = ".cat"
	// orphanAge is how long the catalogue of an image that is gone is kept: a
	// VM may be away for a holiday.
	orphanAge = 30 * 24 * time.Hour
	// manifestBytes is more than any manifest has.
	manifestBytes = 64 << 10
)

// manifest is what makes a memory file a source. On the disk it is a line with
// the BLAKE3-256 of the rest in hexadecimal, then JSON.
type manifest struct {
	Format int    `json:"format"` // 1
	ID     string `json:"id"`
	Blocks int64  `json:"blocks"`
	Scope  string `json:"scope"`
	VM     string `json:"vm"`
	// Sealed, in nanoseconds since 1970, is also the stamp of its catalogue.
	Sealed int64 `json:"sealed"`
}

func (l *Library) memoryPath(id SourceID) string {
	return filepath.Join(l.dir, memoryFolder, id.String()+memorySuffix)
}

func (l *Library) manifestPath(id SourceID) string {
	return filepath.Join(l.dir, memoryFolder, id.String()+manifestSuffix)
}

func (l *Library) cataloguePath(id SourceID) string {
	return filepath.Join(l.dir, catalogueFolder, id.String()+catSuffix)
}

// writeManifest makes the memory file of that id a source, durably.
func (l *Library) writeManifest(src Source, sealed int64) error {
	body, err := json.Marshal(manifest{Format: 1, ID: src.ID.String(), Blocks: src.Blocks, Scope: src.Scope, VM: src.VM, Sealed: sealed})
	if err != nil {
		return err
	}
	if len(body) > manifestBytes/2 {
		return drover.Errorf(drover.Invalid, "write manifest", "scope or VM are too long: %d bytes", len(body))
	}
	sum := blake3.Sum256(body)
	text := append(append([]byte(hex.EncodeToString(sum[:])), '\n'), body...)
	return writeDurably(l.manifestPath(src.ID), text)
}

// writeDurably writes a file that is there whole or not at all, and is still
// there after a power failure.
func writeDurably(path string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "*"+newSuffix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	return err
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readManifest reads and checks the manifest of the memory with that id.
func (l *Library) readManifest(id SourceID) (src Source, sealed int64, err error) {
	const op = "read manifest"
	text, err := os.ReadFile(l.manifestPath(id))
	if err != nil {
		return src, 0, err
	}
	sum, body, ok := bytes.Cut(text, []byte{'\n'})
	want := blake3.Sum256(body)
	if !ok || len(text) > manifestBytes || string(sum) != hex.EncodeToString(want[:]) {
		return src, 0, drover.Errorf(drover.Corrupt, op, "the checksum is wrong")
	}
	var m manifest
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return src, 0, drover.E(drover.Corrupt, op, err)
	}
	if m.Format != 1 || m.ID != id.String() || m.Blocks < 1 || m.Blocks > MaxBlocks {
		return src, 0, drover.Errorf(drover.Corrupt, op, "format %d, id %s, %d blocks", m.Format, m.ID, m.Blocks)
	}
	return Source{ID: id, Kind: KindMemory, Blocks: m.Blocks, Scope: m.Scope, VM: m.VM}, m.Sealed, nil
}

// sweep reads the folder: it takes up what is whole and removes the rest.
func (l *Library) sweep() error {
	err := l.eachFile(memoryFolder, func(id SourceID, suffix, path string, _ fs.FileInfo) bool {
		switch suffix {
		case memorySuffix:
			_, err := os.Stat(l.manifestPath(id))
			return err == nil
		case manifestSuffix:
			if err := l.takeMemory(id); err != nil {
				l.log.Warn("a kept memory is not usable and goes", "source", id, "error", err)
				os.Remove(l.memoryPath(id))
				return false
			}
			return true
		}
		return false
	})
	if err != nil {
		return err
	}
	return l.eachFile(catalogueFolder, func(id SourceID, suffix, path string, fi fs.FileInfo) bool {
		if suffix != catSuffix && suffix != catSuffix+partSuffix {
			return false
		}
		if e := l.entries[id]; e != nil {
			e.catalogue.found = e.catalogue.found || suffix == catSuffix
			e.catalogue.bytes += fi.Size()
			return true
		}
		if !orphanOfUse(path, fi.ModTime()) {
			return false
		}
		o := l.orphans[id]
		o.bytes += fi.Size()
		if fi.ModTime().After(o.used) {
			o.used = fi.ModTime()
		}
		l.orphans[id] = o
		return true
	})
}

// orphanOfUse reports whether a catalogue whose source is not registered (yet)
// may be of use again: images and disks are registered after the start, lost
// memories never, and what was not used for long is not waited for.
func orphanOfUse(path string, used time.Time) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	h, _, err := readHeader(f)
	return err == nil && h.kind != KindMemory && time.Since(used) < orphanAge
}

// eachFile calls keep for each file of a folder whose name is an id and a
// suffix, and removes those that are none or that keep does not want.
func (l *Library) eachFile(folder string, keep func(id SourceID, suffix, path string, fi fs.FileInfo) bool) error {
	list, err := os.ReadDir(filepath.Join(l.dir, folder))
	if err != nil {
		return err
	}
	for _, d := range list {
		path := filepath.Join(l.dir, folder, d.Name())
		fi, err := d.Info()
		if err != nil {
			continue // removed by the step before
		}
		name, suffix, _ := strings.Cut(d.Name(), ".")
		raw, err := hex.DecodeString(name)
		if err == nil && len(raw) == len(SourceID{}) && fi.Mode().IsRegular() && keep(SourceID(raw), "."+suffix, path, fi) {
			continue
		}
		l.log.Info("swept", "file", path)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// takeMemory takes up a sealed memory from the folder.
func (l *Library) takeMemory(id SourceID) error {
	src, sealed, err := l.readManifest(id)
	if err != nil {
		return err
	}
	fi, err := os.Stat(l.memoryPath(id))
	if err != nil {
		return err
	}
	if fi.Size() != src.Blocks*BlockBytes {
		return drover.Errorf(drover.Corrupt, "open memory", "%d bytes, want %d blocks", fi.Size(), src.Blocks)
	}
	used := time.Unix(0, sealed)
	if fi, err := os.Stat(l.manifestPath(id)); err == nil {
		used = fi.ModTime() // moved on at each use
	}
	l.entries[id] = &entry{
		source: src, scopes: map[string]bool{src.Scope: true}, bytes: allocated(fi),
		stamp: uint64(sealed), used: used, seq: l.nextSeq(),
	}
	return nil
}

// allocated returns what a file takes of the disk.
func allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// lockFolder takes the library's folder for this process.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, drover.Errorf(drover.Refused, "lock library", "%s is open in another process: %w", dir, err)
	}
	return f, nil
}
