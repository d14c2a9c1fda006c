package dhcp

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/vishvananda/netlink"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
)

// daemonScript is process 1 of a PID namespace: it lays folders of its own over
// the machine's and starts libvirtd once for each line it reads. It reaps the
// dnsmasqs, which become daemons.
const daemonScript = `
set -e
mount --make-rprivate /
for d in /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt; do mkdir -p $d; done
mount --bind $1/run /run
mount --bind $1/log /var/log/libvirt
for d in /var/lib/libvirt /var/cache/libvirt /etc/libvirt; do mount -t tmpfs tmpfs $d; done
echo 'auth_unix_rw = "none"' >/etc/libvirt/libvirtd.conf
mount -t proc proc /proc
set +e
while read -r _; do
	rm -f /run/libvirtd.pid
	libvirtd >>/var/log/libvirt/console 2>&1
	echo ended
done
`

// daemon is a libvirtd of a test's own, in the test's network namespace.
type daemon struct {
	folder  string
	cmd     *exec.Cmd
	lines   io.WriteCloser
	answers *bufio.Reader
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	folder, err := os.MkdirTemp("", "drvnet") // short, for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	for _, sub := range []string{"run", "log"} {
		if err := os.MkdirAll(filepath.Join(folder, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := &daemon{folder: folder, cmd: exec.Command("/bin/bash", "-c", daemonScript, "daemon", folder)}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	var problems strings.Builder
	d.cmd.Stderr = &problems
	if d.lines, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.answers = bufio.NewReader(out)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		if t.Failed() {
			console, _ := os.ReadFile(filepath.Join(folder, "log/console"))
			t.Logf("libvirtd: %s\n%s", problems.String(), console[max(0, len(console)-3000):])
		}
	})
	d.start(t)
	return d
}

func (d *daemon) socket() string { return filepath.Join(d.folder, "run/libvirt/libvirt-sock") }

func (d *daemon) start(t *testing.T) {
	t.Helper()
	_ = os.Remove(d.socket())
	if _, err := io.WriteString(d.lines, "start\n"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(d.socket()); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("libvirtd does not listen")
		}
	}
}

// stop kills libvirtd; its dnsmasqs run on.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	first := strconv.Itoa(d.cmd.Process.Pid)
	children, err := os.ReadFile(filepath.Join("/proc", first, "task", first, "children"))
	if err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(children)) {
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil || strings.TrimSpace(string(name)) != "libvirtd" {
			continue
		}
		number, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(number, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if line, err := d.answers.ReadString('\n'); err != nil || line != "ended\n" {
		t.Fatalf("libvirtd: %q, %v", line, err)
	}
}

// do runs f on a connection, as an administrator's virsh does.
func (d *daemon) do(t *testing.T, f func(*golibvirt.Libvirt) error) {
	t.Helper()
	admin := &Networks{socket: d.socket()}
	if err := admin.with(context.WithoutCancel(t.Context()), f); err != nil {
		t.Fatal(err)
	}
}

// define makes a segment's network and starts it. Its mode is the one without
// firewall rules: libvirt makes those anew at each change of a host entry,
// which takes it half a second.
func (d *daemon) define(t *testing.T, c clients, segment, name string) {
	t.Helper()
	s, p := testSegments[segment], testPool(segment, drivertest.LeasesPool)
	host := ""
	if segment == "blue" {
		host = fmt.Sprintf("<host mac='%s' name='%s' ip='%s'/>", testStatic.MAC, testStatic.Hostname, testStatic.Addresses[0])
	}
	text := fmt.Sprintf(`<network xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0'>
  <name>%[1]s</name>
  <metadata><their:note xmlns:their='urn:their'>kept</their:note></metadata>
  <forward mode='open'/>
  <bridge name='%[1]s' stp='off' delay='0'/>
  <dns enable='no'/>
  <ip address='%[2]v' prefix='24'><dhcp><range start='%[3]v' end='%[4]v'/>%[5]s</dhcp></ip>
  <ip family='ipv6' address='%[6]v' prefix='64'><dhcp><range start='%[7]v' end='%[8]v'/></dhcp></ip>
  <dnsmasq:options><dnsmasq:option value='no-ping'/></dnsmasq:options>
</network>`, name, s.Subnet4.Addr().Next(), p[0], p[drivertest.LeasesPool-1], host,
		s.Subnet6.Addr().Next(), p[drivertest.LeasesPool], p[2*drivertest.LeasesPool-1])
	d.do(t, func(rpc *golibvirt.Libvirt) error {
		net, err := rpc.NetworkDefineXML(text)
		if err != nil {
			return err
		}
		return rpc.NetworkCreate(net)
	})
	link := c.plug(t, "v-"+name, segment)
	bridge, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		t.Fatal(err)
	}
}

// testNetworks are a test's networks and their clients.
func (d *daemon) testNetworks(t *testing.T) (clients, map[string]string) {
	t.Helper()
	c, segments := newClients(t), make(map[string]string)
	for _, segment := range []string{"blue", "green"} {
		name := fmt.Sprintf("%s%d", segment, c.number)
		segments[segment] = name
		t.Cleanup(func() {
			d.do(t, func(rpc *golibvirt.Libvirt) error {
				net, err := rpc.NetworkLookupByName(name)
				if err != nil {
					return err
				}
				text, err := rpc.NetworkGetXMLDesc(net, xmlInactive)
				if err != nil {
					return err
				}
				if !strings.Contains(text, ">kept<") || segment == "blue" && !strings.Contains(text, testStatic.MAC) {
					t.Errorf("what an administrator had put into the network is gone:\n%s", text)
				}
				if err := rpc.NetworkDestroy(net); err != nil {
					return err
				}
				return rpc.NetworkUndefine(net)
			})
		})
		d.define(t, c, segment, name)
	}
	return c, segments
}

// known returns when libvirt knows of the leases: dnsmasq tells it a moment
// after it has told the client.
func (d *daemon) known(t *testing.T, name string, want []netip.Addr) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		missing := len(want)
		d.do(t, func(rpc *golibvirt.Libvirt) error {
			net, err := readNetwork(rpc, "", name)
			if err != nil {
				return err
			}
			for _, l := range net.leases {
				if slices.ContainsFunc(want, func(a netip.Addr) bool { return a.String() == l.Ipaddr }) {
					missing--
				}
			}
			return nil
		})
		if missing == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("libvirt does not know of %v", want)
		}
	}
}

func (d *daemon) open(t *testing.T, segments map[string]string) *Networks {
	t.Helper()
	n, err := NewNetworks(logTo(t), NetworksConfig{Socket: d.socket(), Segments: segments})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestNetworks runs the suite on a real libvirtd and its dnsmasqs with real
// clients.
func TestNetworks(t *testing.T) {
	d := newDaemon(t)
	drivertest.Leases(t, func(t *testing.T) drivertest.LeasesService {
		c, segments := d.testNetworks(t)
		return drivertest.LeasesService{
			Pool:   testPool("blue", drivertest.LeasesPool),
			Static: testStatic,
			Open:   func(t *testing.T) driver.Leases { return d.open(t, segments) },
			Ask: func(t *testing.T, segment, mac string) []netip.Addr {
				got := c.ask(t, segment, mac)
				d.known(t, segments[segment], got)
				return got
			},
			Stop:  d.stop,
			Start: d.start,
		}
	})
}
