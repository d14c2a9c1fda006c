// Package namespace runs code in Linux' network namespaces. It is a leaf: the
// drivers of a site's edge, the lab and the tests stand on it.
package namespace

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// In runs f on a thread of its own that is in the network namespace, and waits
// for it. A socket that f makes stays there, wherever it is used. The error is
// f's, or says why the namespace could not be entered.
func In(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("which network namespace this is: %w", err)
			return
		}
		defer home.Close()
		if home.Equal(ns) {
			defer runtime.UnlockOSThread()
			done <- f()
			return
		}
		if err := netns.Set(ns); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		err = f()
		if back := netns.Set(home); back == nil {
			// A thread that ended here would take along the processes that it
			// has started with a death signal.
			runtime.UnlockOSThread()
		} else {
			// It stays locked, and so ends with its goroutine.
			err = errors.Join(err, fmt.Errorf("leave a network namespace: %w", back))
		}
		done <- err
	}()
	return <-done
}

// InNamed does the same in the namespace that "ip netns" knows by that name.
func InNamed(name string, f func() error) error {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	defer ns.Close()
	return In(ns, f)
}

// InProcess does the same in the namespace of a process.
func InProcess(pid int, f func() error) error {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer ns.Close()
	return In(ns, f)
}
