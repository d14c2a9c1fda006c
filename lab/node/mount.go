package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setUp turns the fresh namespaces of this process into the node: host name,
// kernel settings, loopback, mounts.
func setUp(c *Config) error {
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	// Nothing mounted here may reach the machine, and nothing the machine mounts
	// later may reach the node.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, s := range c.Sysctls {
		err := os.WriteFile(filepath.Join("/proc/sys", s.Key), []byte(s.Value), 0)
		if err != nil && (!s.Optional || !errors.Is(err, os.ErrNotExist)) {
			return fmt.Errorf("set %s to %s: %w", s.Key, s.Value, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	if err := mountAll(c.Binds); err != nil {
		return err
	}
	// Last, because the binds go through the machine's /proc.
	// The machine's control groups are below its /sys; here they would only lead
	// libvirt to look for controllers.
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// mountAll does the binds in order. All sources are opened first: a bind may
// hide the source of a later one, as /tmp does in a test.
func mountAll(binds []Bind) error {
	sources := make([]*os.File, len(binds))
	for i, b := range binds {
		fd, err := unix.Open(b.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("bind %s: open %s: %w", b.Target, b.Source, err)
		}
		sources[i] = os.NewFile(uintptr(fd), b.Source)
		defer sources[i].Close()
	}
	for i, b := range binds {
		if err := mountOne(sources[i], b); err != nil {
			return fmt.Errorf("bind %s on %s: %w", b.Source, b.Target, err)
		}
	}
	return nil
}

// mountOne mounts one file or folder, making a missing target. A file as target
// is made empty.
func mountOne(source *os.File, b Bind) error {
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(b.Target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(b.Target), 0o755); err == nil {
		var f *os.File
		if f, err = os.OpenFile(b.Target, os.O_CREATE|os.O_RDONLY, 0o644); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), b.Target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if !b.ReadOnly {
		return nil
	}
	if err := unix.Mount("", b.Target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make it read-only: %w", err)
	}
	return nil
}
