package bgp

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Names in the folder.
const (
	recordName = "routes.json"
	lockName   = "lock"
)

// recordVersion is that of the file's form.
const recordVersion = 1

// record is the file of what is announced, for whom. It is written as a whole
// and put in place by a rename, so that it is always one of the two states.
type record struct {
	dir  string
	lock *os.File

	// writing is held while the file is written, so that callers who wait for
	// it find that the one before has written their change as well.
	writing sync.Mutex
	saved   uint64
}

type recordFile struct {
	Version int           `json:"version"`
	Routes  []recordRoute `json:"routes"`
}

type recordRoute struct {
	Prefix netip.Prefix `json:"prefix"`
	Owner  driver.Owner `json:"owner"`
}

// openRecord takes the folder for this process and reads the file.
func openRecord(dir string) (*record, map[netip.Prefix]driver.Owner, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = drover.Errorf(drover.Unavailable, "", "%s is in use by another speaker: two would contradict each other at the routers", dir)
	}
	var routes map[netip.Prefix]driver.Owner
	if err == nil {
		routes, err = readRecord(filepath.Join(dir, recordName))
	}
	if err != nil {
		_ = lock.Close()
		return nil, nil, err
	}
	return &record{dir: dir, lock: lock}, routes, nil
}

// readRecord reads the file; a missing one is an empty one.
func readRecord(path string) (map[netip.Prefix]driver.Owner, error) {
	routes := map[netip.Prefix]driver.Owner{}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return routes, nil
	}
	if err != nil {
		return nil, err
	}
	var f recordFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, drover.Errorf(drover.Corrupt, "", "%s: %w", path, err)
	}
	if f.Version != recordVersion {
		return nil, drover.Errorf(drover.Corrupt, "", "%s: version %d, want %d", path, f.Version, recordVersion)
	}
	for _, r := range f.Routes {
		err := errors.Join(driver.CheckHostRoutes(r.Prefix), r.Owner.Validate())
		if _, twice := routes[r.Prefix]; twice {
			err = fmt.Errorf("%v is there twice", r.Prefix)
		}
		if err != nil {
			return nil, drover.Errorf(drover.Corrupt, "", "%s: %w", path, err)
		}
		routes[r.Prefix] = r.Owner
	}
	return routes, nil
}

// save makes the file say at least what version says. Snapshot returns the
// newest routes and their version.
func (r *record) save(version uint64, snapshot func() (map[netip.Prefix]driver.Owner, uint64)) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	if r.saved >= version {
		return nil
	}
	routes, version := snapshot()
	f := recordFile{Version: recordVersion, Routes: make([]recordRoute, 0, len(routes))}
	for _, p := range slices.SortedFunc(maps.Keys(routes), netip.Prefix.Compare) {
		f.Routes = append(f.Routes, recordRoute{Prefix: p, Owner: routes[p]})
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := r.replace(b); err != nil {
		return fmt.Errorf("keep the record of routes: %w", err)
	}
	r.saved = version
	return nil
}

func (r *record) replace(content []byte) error {
	path := filepath.Join(r.dir, recordName)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(r.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// close gives the folder back.
func (r *record) close() error { return r.lock.Close() }
