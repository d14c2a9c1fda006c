package haproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/drover-vm/drover/driver"
)

const (
	recordFile    = "haproxy.json"
	recordVersion = 1
	// maxFormer bounds the processes that reloads left behind and that are
	// looked after; more of them than this are the operator's trouble.
	maxFormer = 64
)

// record is what HAProxy itself cannot keep over a reload.
type record struct {
	Version int `json:"version"`
	// Pid is the process that was last brought up to date, Started when it was
	// started, in seconds since 1970, Boot the kernel's id of the boot.
	Pid     int    `json:"pid"`
	Started int    `json:"started_s"`
	Boot    string `json:"boot"`
	// Former are processes that a reload left behind.
	Former  []int     `json:"former,omitempty"`
	Added   []added   `json:"added,omitempty"`
	Changed []changed `json:"changed,omitempty"`
}

// added is a server of ours, as it is wanted.
type added struct {
	Owner   driver.Owner        `json:"owner"`
	Backend string              `json:"backend"`
	Name    string              `json:"name"`
	Address netip.AddrPort      `json:"address"`
	Check   *driver.ServerCheck `json:"check,omitempty"`
	setting
}

// changed is a server of HAProxy's own configuration.
type changed struct {
	Owner   driver.Owner `json:"owner"`
	Backend string       `json:"backend"`
	Name    string       `json:"name"`
	setting
	Original setting `json:"original"`
}

type setting struct {
	Weight int                `json:"weight"`
	State  driver.ServerState `json:"state"`
}

func (r *record) added(backend, name string) *added {
	for i := range r.Added {
		if a := &r.Added[i]; a.Backend == backend && a.Name == name {
			return a
		}
	}
	return nil
}

func (r *record) changed(backend, name string) *changed {
	for i := range r.Changed {
		if c := &r.Changed[i]; c.Backend == backend && c.Name == name {
			return c
		}
	}
	return nil
}

func (r *record) forget(backend, name string) {
	r.Added = slices.DeleteFunc(r.Added, func(a added) bool { return a.Backend == backend && a.Name == name })
	r.Changed = slices.DeleteFunc(r.Changed, func(c changed) bool { return c.Backend == backend && c.Name == name })
}

// replace notes the process that has replaced the one before. That may still run
// to the end of its sessions, unless it had the same id or was of another boot, of
// which nothing is left.
func (r *record) replace(now process, boot string) {
	if boot != r.Boot {
		r.Former, r.Pid = nil, 0
	}
	if r.Pid != 0 {
		r.Former = append(r.Former, r.Pid)
	}
	r.Pid, r.Started, r.Boot = now.pid, now.started, boot
	r.Former = slices.DeleteFunc(r.Former, func(pid int) bool { return pid == now.pid || !isHAProxy(pid) })
	if over := len(r.Former) - maxFormer; over > 0 {
		r.Former = slices.Delete(r.Former, 0, over)
	}
}

// bootID names the kernel's boot: process ids are of one boot.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// isHAProxy reports whether a process runs and is one of HAProxy's.
func isHAProxy(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return err == nil && strings.TrimSpace(string(b)) == "haproxy"
}

func readRecord(dir string) (record, error) {
	r := record{Version: recordVersion}
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, nil
	case err != nil:
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Join(dir, recordFile), err)
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("%s is of version %d: want %d", filepath.Join(dir, recordFile), r.Version, recordVersion)
	}
	return r, nil
}

func (r *record) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, recordFile), append(b, '\n'), 0o600)
}

// replaceFile writes a file so that a reader, or a crash, sees the old content
// or the new.
func replaceFile(path string, content []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
