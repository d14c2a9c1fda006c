package lab

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
)

// tools are the programs that a lab runs, with the Debian package of each.
var tools = [][2]string{
	{"libvirtd", "libvirt-daemon"},
	{qemuBinary, "qemu-system-x86"},
	{"qemu-img", "qemu-utils"},
	{"nsenter", "util-linux"},
	{"env", "coreutils"},
}

// maxSocketPath is the longest path of a unix socket (sun_path in unix(7), less
// its final zero).
const maxSocketPath = 107

// Memory that a lab takes besides its guests' own.
const (
	// guestOverhead is QEMU's own, translated code included.
	guestOverhead = 96 * drover.MiB
	// nodeOverhead is a holder with libvirtd and agent, measured as private memory.
	nodeOverhead = 48 * drover.MiB
)

// checkMachine checks what the machine itself must have: root, tools, devices.
func checkMachine(o Options, f *labfile.File) error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	need := slices.Clone(tools)
	need = append(need, serverTools(f)...)
	for _, t := range need {
		if _, err := exec.LookPath(t[0]); err != nil {
			return drover.Errorf(drover.Unavailable, "lab", "%s is not installed: apt-get install %s", t[0], t[1])
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return drover.Errorf(drover.Unavailable, "lab", "/dev/net/tun is missing, the WAN links need it: modprobe tun")
	}
	var sockets []string
	for _, n := range allNodes(f) {
		dir := node.Dir(filepath.Join(o.Dir, f.Name), n)
		sockets = append(sockets, dir+libvirtSock+"-ro", dir+serverSock, node.ControlSocket(dir), dir+haproxyMaster)
	}
	for _, s := range sockets {
		if len(s) > maxSocketPath {
			return drover.Errorf(drover.Invalid, "lab folder", "%q: too long a path, sockets in it would have %d characters, want at most %d",
				o.Dir, len(s), maxSocketPath)
		}
	}
	return nil
}

// serverTools are the programs that the lab's routers and servers are.
func serverTools(f *labfile.File) [][2]string {
	var need [][2]string
	if f.BGP() {
		for _, s := range []string{zebraService, staticService, bgpService} {
			need = append(need, [2]string{frrPrograms + s, "frr"})
		}
	}
	for _, d := range f.DNS {
		pkg := map[string]string{labfile.DNSBind: "bind9", labfile.DNSKnot: "knot"}[d.Software]
		need = append(need, [2]string{dnsPrograms[d.Software], pkg})
	}
	dnsmasq := slices.ContainsFunc(f.Guests, func(g labfile.Guest) bool { return g.DHCP })
	for _, d := range f.DHCP {
		if d.Software == labfile.DHCPDnsmasq {
			dnsmasq = true
			continue
		}
		need = append(need, [2]string{keaProgram4, "kea-dhcp4-server"})
		if s := f.Segment(d.Segment); s.Subnet6.IsValid() {
			need = append(need, [2]string{keaProgram6, "kea-dhcp6-server"})
		}
	}
	if dnsmasq {
		need = append(need, [2]string{dhcpServer, "dnsmasq-base"})
	}
	if len(f.Balancers) > 0 {
		need = append(need, [2]string{haproxyProgram, "haproxy"})
	}
	return need
}

func allNodes(f *labfile.File) []string {
	list := []string{labfile.ServerName}
	for _, s := range f.Sites {
		list = append(list, labfile.EdgeName(s.Name))
		if f.BGP() {
			list = append(list, labfile.RouterName(s.Name))
		}
		for _, h := range s.Hosts {
			list = append(list, h.Name)
		}
	}
	for _, c := range f.Clients {
		list = append(list, c.Name)
	}
	return list
}

// checkRoom checks that the machine has the memory and the disk for the guests.
func checkRoom(o Options, f *labfile.File) labfile.Problems {
	if len(f.Guests) == 0 {
		return nil
	}
	var memory, disk drover.Bytes
	for _, g := range f.Guests {
		if g.Starts() {
			memory += drover.Bytes(g.Memory) + guestOverhead
		}
		disk += drover.Bytes(g.Disk.Size)
	}
	memory += nodeOverhead * drover.Bytes(len(allNodes(f)))
	var ps labfile.Problems
	if free, err := memoryAvailable(); err == nil && memory > free {
		ps = append(ps, f.Problem("guests", memory.String(),
			fmt.Sprintf("the guests and nodes need that much memory, the machine has %s to spare", free)))
	}
	if free, err := diskFree(o.Dir); err == nil && disk > free {
		ps = append(ps, f.Problem("guests", disk.String(),
			fmt.Sprintf("the guests' disks can grow to that, %s has %s to spare", o.Dir, free)))
	}
	return ps
}

// memoryAvailable is the kernel's estimate of what programs can still take.
func memoryAvailable() (drover.Bytes, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return drover.Bytes(kib) * drover.KiB, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemAvailable")
}

// diskFree is what is free on the file system of dir, or of the nearest folder
// above it that exists.
func diskFree(dir string) (drover.Bytes, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return drover.Bytes(int64(st.Bavail) * st.Bsize), nil
		}
		if dir == filepath.Dir(dir) {
			return 0, err
		}
		dir = filepath.Dir(dir)
	}
}

// directIO reports whether files in dir can bypass the page cache, as QEMU's
// cache=none wants.
func directIO(dir string) bool {
	path := filepath.Join(dir, "direct")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false
	}
	return unix.Close(fd) == nil && os.Remove(path) == nil
}
