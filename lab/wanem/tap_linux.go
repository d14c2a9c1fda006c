package wanem

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a link: the TAP device that Open creates.
type End struct {
	// Name is what the end is called in a Status, such as the site's name.
	Name string
	// NetNS is the path of the network namespace that the device appears in,
	// such as /proc/PID/ns/net; "" is the caller's own.
	NetNS string
	// Interface is the device's name there, at most 15 bytes.
	Interface string
	// MAC is the device's address; nil leaves the choice to the kernel.
	MAC net.HardwareAddr
}

// offloads are what the TAPs take from the kernel unfinished. TCP with ECN and
// UDP segmentation are not among them: the kernel then does those itself.
const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6

// txQueueLen is how many packets a TAP holds until they are read, four times
// the kernel's default: 80 ms of full-size packets without offload at 622
// Mbit/s, in which a busy machine may leave this process without a core. It is
// no second queue: what can be read is read at once.
const txQueueLen = 4096

// openTAP creates the device of an end and returns its descriptor, which stays
// valid in every namespace. Closing it removes the device.
func openTAP(e End, mtu int) (fd int, err error) {
	err = inNetNS(e.NetNS, func() error {
		fd, err = createTAP(e.Interface)
		if err != nil {
			return err
		}
		if err := configure(e, mtu); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		return nil
	})
	return fd, err
}

func createTAP(name string) (int, error) {
	// The kernel would choose a name for an empty one, and fill in a % itself.
	ifr, err := unix.NewIfreq(name)
	if err != nil || name == "" || strings.ContainsAny(name, "%/: \t\n") {
		return 0, fmt.Errorf("%w: want a name of 1 to %d bytes without %% / : or spaces", unix.EINVAL, unix.IFNAMSIZ-1)
	}
	// O_NONBLOCK: the pump asks poll when there is nothing to read.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	fail := func(what string, err error) (int, error) {
		return 0, errors.Join(fmt.Errorf("%s: %w", what, err), unix.Close(fd))
	}
	// TUN_EXCL refuses a device that exists instead of joining it.
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fail("create", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetLen); err != nil {
		return fail("set virtio-net header size", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil {
		return fail("set virtio-net byte order", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		return fail("offer offloads", err)
	}
	return fd, nil
}

func configure(e End, mtu int) error {
	link, err := netlink.LinkByName(e.Interface)
	if err != nil {
		return fmt.Errorf("find: %w", err)
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set mtu %d: %w", mtu, err)
	}
	if err := netlink.LinkSetTxQLen(link, txQueueLen); err != nil {
		return fmt.Errorf("set txqueuelen: %w", err)
	}
	if e.MAC != nil {
		if err := netlink.LinkSetHardwareAddr(link, e.MAC); err != nil {
			return fmt.Errorf("set mac %s: %w", e.MAC, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// inNetNS runs f with its thread in the network namespace at path. A thread
// that cannot be brought back is left locked, so that it ends with its
// goroutine instead of serving others in the wrong namespace; f therefore runs
// on a goroutine of its own.
func inNetNS(path string, f func() error) error {
	if path == "" {
		return f()
	}
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer target.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("own network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace %s: %w", path, err)
			return
		}
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
