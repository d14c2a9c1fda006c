package libvirt_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/libvirt"
	"github.com/drover-vm/drover/lab/guest"
	"github.com/drover-vm/drover/lab/guest/control"
)

// guestWait bounds each wait for something that a guest must do; on an idle
// machine it boots in four seconds.
const guestWait = 90 * time.Second

// requestLimit bounds one request: what is lost with a cable that is out is asked
// again.
const requestLimit = 3 * time.Second

// guestHost is a host whose guests have a network: bridges that the host itself
// is on.
type guestHost struct {
	*testHost
	ns    netns.NsHandle
	sheep guest.Sheep
}

// newGuestHost starts one with bridges of these names beside br-test.
func newGuestHost(t *testing.T, name, uuid, cache string, bridges ...string) *guestHost {
	t.Helper()
	sheep, err := guest.BuildSheep(t.Context(), slog.New(slog.DiscardHandler), guest.DefaultCacheDir)
	if err != nil {
		t.Fatal(err)
	}
	h := &guestHost{testHost: newTestHost(t, name, uuid, cache), sheep: sheep}
	if h.ns, err = netns.GetFromPid(h.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.ns.Close() })
	for _, b := range bridges {
		h.run(t, "ip", "link", "add", b, "type", "bridge")
	}
	for _, b := range append(bridges, "br-test") {
		h.run(t, "ip", "link", "set", b, "up")
	}
	return h
}

// command makes a command that runs in the host's network, as one of its
// processes, so that it ends with the host at the latest.
func (h *guestHost) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(h.cmd.Process.Pid), "-n", "-p", "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (h *guestHost) run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := h.command(args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// inside calls f in the host's network. The thread goes back to its own
// afterwards: one that ended would take along the host that it has started, whose
// death signal is bound to it.
func (h *guestHost) inside(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }()
	if err := netns.Set(h.ns); err != nil {
		return err
	}
	err = f()
	if back := netns.Set(own); back != nil {
		panic("a thread of this process is left in another network: " + back.Error())
	}
	return err
}

// dial connects from inside the host's network.
func (h *guestHost) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.inside(func() error {
		dialer := net.Dialer{Timeout: requestLimit}
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// control reaches a guest by the link-local address of its network card, which
// stays whatever happens to the others.
func (h *guestHost) control(t *testing.T, bridge, mac string) *control.Client {
	t.Helper()
	handle, err := netlink.NewHandleAt(h.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(bridge)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(fmt.Sprintf("%s%%%d", linkLocal(t, mac), link.Attrs().Index), strconv.Itoa(control.HTTPPort))
	return &control.Client{Base: "http://guest", HTTP: &http.Client{Timeout: requestLimit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return h.dial(ctx, "tcp", address)
		},
	}}}
}

// linkLocal is the address that Linux makes of a MAC (RFC 4291, appendix A).
func linkLocal(t *testing.T, text string) netip.Addr {
	t.Helper()
	mac, err := net.ParseMAC(text)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrFrom16([16]byte{
		0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	})
}

// guestXML is a sheep on a bridge, with a port for its agent if asked.
func (h *guestHost) guestXML(name, uuid, mac, bridge, settings string, channel bool) driver.Definition {
	port := ""
	if channel {
		port = `<channel type='unix'><source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`
	}
	return driver.Definition(fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name><uuid>%s</uuid>
  <memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>%s</kernel><initrd>%s</initrd>
    <cmdline>console=ttyS0 quiet drover.name=%s %s</cmdline></os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/>
    <interface type='bridge'><mac address='%s'/><source bridge='%s'/><model type='virtio'/></interface>
    <serial type='file'><source path='/var/log/libvirt/%s.log' append='on'/><target port='0'/></serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>%s
  </devices></domain>`, name, uuid, h.sheep.Kernel, h.sheep.Initrd, name, settings, mac, bridge, name, port))
}

// boot defines and starts a guest and shows its console when the test fails.
func (h *guestHost) boot(t *testing.T, hv driver.Hypervisor, def driver.Definition) {
	t.Helper()
	name, err := hv.Define(t.Context(), def)
	if err != nil {
		t.Fatal(err)
	}
	if err := hv.Start(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(h.folder, "log", name+".log"))
			t.Logf("console of %s:\n%s", name, tail(string(b), 3000))
		}
	})
}

// until waits for something that must come.
func until(t *testing.T, what string, seen func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(guestWait); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = seen(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not seen: %v", what, err)
}

// leases runs a DHCP server for IPv4 and IPv6 on a bridge that gives a network
// card these addresses and is the gateway.
func (h *guestHost) leases(t *testing.T, bridge, mac string, gateway4, four, six netip.Addr) (stop func()) {
	t.Helper()
	args := []string{
		"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file=", "--leasefile-ro",
		"--log-facility=-", "--log-dhcp", "--interface=" + bridge, "--bind-interfaces", "--except-interface=lo", "--dhcp-authoritative",
		"--dhcp-range=" + four.String() + ",static", "--dhcp-option=option:router," + gateway4.String(),
		"--dhcp-range=" + six.String() + ",static,64",
		fmt.Sprintf("--dhcp-host=%s,%s,[%s]", mac, four, six),
	}
	cmd := h.command(args...)
	log, err := os.Create(filepath.Join(t.TempDir(), "dnsmasq"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start dnsmasq: %v; run make deps", err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		// What nsenter has started ends first, and nsenter with it.
		nsenter := strconv.Itoa(cmd.Process.Pid)
		children, _ := os.ReadFile(filepath.Join("/proc", nsenter, "task", nsenter, "children"))
		for _, pid := range strings.Fields(string(children)) {
			if n, err := strconv.Atoi(pid); err == nil {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("dnsmasq: %s", tail(string(b), 3000))
		}
		_ = log.Close()
	}
	t.Cleanup(stop)
	return stop
}

func (h *guestHost) guests(t *testing.T) *libvirt.Guests {
	log := slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return libvirt.NewGuests(log.With("host", h.name), h.socket())
}

// relay joins a unix socket of one host to that of the same path on another, as
// often as somebody connects, until the test ends.
func relay(t *testing.T, from, to *guestHost, path string) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(from.folder, path))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("unix", filepath.Join(to.folder, path))
			if err != nil {
				_ = a.Close()
				continue
			}
			back := make(chan struct{})
			go func() {
				defer close(back)
				_, _ = io.Copy(a, b)
				_ = a.Close()
			}()
			_, _ = io.Copy(b, a)
			_ = b.Close()
			<-back
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-ended
	})
}

// listen opens a bridge's frames; heard waits for one of them.
func (h *guestHost) listen(t *testing.T, bridge string) (heard func(t *testing.T, what string, is func(frame []byte) bool)) {
	t.Helper()
	var fd int
	if err := h.inside(func() error {
		link, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in the network's order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(guestWait / time.Second)}))
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func(t *testing.T, what string, is func([]byte) bool) {
		t.Helper()
		frame := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, frame, 0)
			if err != nil {
				t.Fatalf("%s: not heard: %v", what, err)
			}
			if is(frame[:n]) {
				return
			}
		}
	}
}

// guestAddresses asks a guest for its addresses, until it answers.
func guestAddresses(t *testing.T, c *control.Client) (list []control.Address) {
	t.Helper()
	until(t, "the guest says its addresses", func() (err error) {
		list, err = c.Addresses(t.Context())
		return err
	})
	return list
}

// sources asks a guest where its new connections come from.
func sources(t *testing.T, c *control.Client) []netip.Addr {
	t.Helper()
	var out [2]netip.Addr
	for _, a := range guestAddresses(t, c) {
		if a.Primary && a.Prefix.Addr().Is4() {
			out[0] = a.Prefix.Addr()
		} else if a.Primary {
			out[1] = a.Prefix.Addr()
		}
	}
	return out[:]
}

// virsh asks the host's libvirtd.
func (h *guestHost) virsh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("virsh", append([]string{"-c", "qemu+unix:///system?socket=" + h.socket()}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// linkState reads whether a network card's cable is in, as libvirt has it.
func linkState(t *testing.T, h *guestHost, vm drivertest.GuestVM) bool {
	t.Helper()
	return strings.HasSuffix(h.virsh(t, "domif-getlink", vm.Name, vm.MAC), " up")
}

// hostname asks what a guest calls itself.
func hostname(t *testing.T, h *guestHost, vm drivertest.GuestVM) string {
	t.Helper()
	var reply struct {
		Return struct {
			Name string `json:"host-name"`
		} `json:"return"`
	}
	text := h.virsh(t, "qemu-agent-command", vm.Name, `{"execute":"guest-get-host-name"}`)
	if err := json.Unmarshal([]byte(text), &reply); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return reply.Return.Name
}

// smallVM is what Retarget is tried on.
func smallVM(t *testing.T) drover.VM {
	return drover.VM{VCPUs: 1, MemoryBytes: 32 * drover.MiB, Machine: machine(t), Accelerator: "tcg"}
}
