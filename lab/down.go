package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
)

// lockLimit is how long Down waits for an Up of the same lab that is about to
// end, and lockPoll how often it looks.
const (
	lockLimit = 5 * time.Second
	lockPoll  = 50 * time.Millisecond
)

// errLocked means that another process works on the lab.
var errLocked = errors.New("another drover is starting this lab or taking it down; wait for it, or end it")

// lock takes the lab's lock, which goes with the process that holds it. A lab
// without a folder needs none.
func lock(dir string) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// Down takes labs down and returns their names: the named one, with an empty
// name the only one, with all every one. It leaves no process, mount, interface
// or file of theirs, in whatever state they were. With nothing to take down it
// does nothing and returns no name.
func Down(ctx context.Context, o Options, name string, all bool) ([]string, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errNotRoot
	}
	var want []string
	switch have := names(o); {
	case all || len(have) == 0 && name == "":
		want = have
	case name == "":
		one, err := only(o)
		if err != nil {
			return nil, err
		}
		want = []string{one}
	case slices.Contains(have, name):
		want = []string{name}
	case filepath.Base(name) != name || name == "." || name == "..":
		return nil, drover.Errorf(drover.Invalid, "lab down", "%q is not the name of a lab", name)
	}
	var done []string
	for _, n := range want {
		dir := filepath.Join(o.Dir, n)
		var release func()
		err := poll(ctx, lockPoll, lockLimit, func(context.Context) (err error) {
			release, err = lock(dir)
			return err
		})
		if err != nil {
			return done, drover.E(drover.Unavailable, "lab down "+n, err)
		}
		err = remove(ctx, o, dir)
		release()
		if err != nil {
			return done, drover.E(drover.Internal, "lab down "+n, err)
		}
		done = append(done, n)
	}
	return done, nil
}

// remove ends the lab's processes and deletes its folder. The caller holds the lock.
func remove(ctx context.Context, o Options, dir string) error {
	killed, err := killAll(ctx, dir)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	o.Log.Info("lab is down", "lab", filepath.Base(dir), "processes", killed)
	return nil
}

var errNotRoot = drover.Errorf(drover.Denied, "lab", "namespaces, bridges and guests need root: run this as root")
