package main

import (
	"bytes"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNetwork runs f in a network of its own with the devices eth0 and peer0, a
// cable between them.
func inNetwork(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	defer func() { _ = ns.Close() }()
	defer func() {
		if err := netns.Set(own); err != nil {
			panic(err)
		}
	}()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", HardwareAddr: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}}, PeerName: "peer0"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lo", "peer0", "eth0"} {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f()
}

// state is what iproute2 sees of eth0.
func state(t *testing.T) []string {
	t.Helper()
	var lines []string
	for _, args := range [][]string{{"-o", "address", "show", "dev", "eth0", "scope", "global"}, {"route"}, {"-6", "route"}} {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "fe80::") {
				lines = append(lines, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return lines
}

// TestIP compares the guest's ip(8) with iproute2's, by what the kernel has
// afterwards and by the exit status.
func TestIP(t *testing.T) {
	base := "address add 10.50.0.10/24 dev eth0\naddress add fd00:50::10/64 dev eth0 nodad\n" +
		"route add default via 10.50.0.1 dev eth0\nroute add default via fd00:50::1 dev eth0\n"
	for name, script := range map[string]string{
		"base":          base,
		"empty":         "\n# nothing\n\n",
		"cut short":     "a add 10.1.0.1/16 dev eth0\nr add 10.9.0.0/16 via 10.1.0.2\naddr del 10.1.0.1/16 dev eth0\n",
		"host address":  base + "address add 10.50.0.11 dev eth0\naddress add fd00::1 dev eth0 nodad\n",
		"exists":        base + "address add 10.50.0.10/24 dev eth0\naddress add 10.50.0.12/24 dev eth0\n",
		"missing":       base + "address del 10.50.0.99/24 dev eth0\n",
		"no device":     "address add 10.50.0.10/24 dev eth9\n",
		"bad address":   "address add 10.50.x/24 dev eth0\n",
		"bad word":      "address add 10.50.0.10/24 dev eth0 hello\n",
		"bad object":    base + "neigh nonsense\n",
		"no gateway":    "route add default via 10.99.0.1 dev eth0\n",
		"onlink":        "address add 10.50.0.10/32 dev eth0\nroute add default via 10.99.0.1 dev eth0 onlink src 10.50.0.10 proto 215 metric 7\n",
		"src not ours":  base + "route replace default via 10.50.0.1 dev eth0 src 10.77.0.1\n",
		"del route":     base + "route del default via 10.50.0.1 dev eth0\nroute del ::/0 via fd00:50::1 dev eth0\n",
		"lifetimes":     base + "address change fd00:50::10/64 dev eth0 nodad noprefixroute valid_lft forever preferred_lft 0\n",
		"bad lifetimes": base + "address change fd00:50::10/64 dev eth0 valid_lft 5 preferred_lft 10\n",
		"renumber": base + "address replace 10.60.0.20/24 dev eth0\naddress replace 10.50.0.10/32 dev eth0\naddress del 10.50.0.10/24 dev eth0\n" +
			"route replace 0.0.0.0/0 via 10.60.0.1 dev eth0 src 10.60.0.20 onlink proto 215\n" +
			"address replace fd00:60::20/64 dev eth0 nodad valid_lft forever preferred_lft forever\n" +
			"address replace fd00:50::10/64 dev eth0 nodad noprefixroute valid_lft forever preferred_lft 0\n" +
			"route replace ::/0 via fd00:60::1 dev eth0 src fd00:60::20 onlink proto 215 metric 1\n",
		"fails half way": base + "address add 10.60.0.20/24 dev eth0\naddress add nonsense dev eth0\naddress add 10.70.0.20/24 dev eth0\n",
	} {
		t.Run(name, func(t *testing.T) {
			var want, got []string
			var wantOK, gotOK bool
			inNetwork(t, func() {
				cmd := exec.Command("ip", "-batch", "-")
				cmd.Stdin = strings.NewReader(script)
				out, err := cmd.CombinedOutput()
				wantOK = err == nil
				t.Logf("iproute2: %v %s", err, out)
				want = state(t)
			})
			inNetwork(t, func() {
				var stdout, stderr bytes.Buffer
				code := ipCommand([]string{"-batch", "-"}, strings.NewReader(script), &stdout, &stderr)
				gotOK = code == 0
				t.Logf("the sheep's: %d %s", code, stderr.String())
				got = state(t)
			})
			if d := cmp.Diff(want, got); d != "" || wantOK != gotOK {
				t.Errorf("ok %v, want %v; kernel (-iproute2 +sheep):\n%s", gotOK, wantOK, d)
			}
		})
	}
}

func TestIPCommandLine(t *testing.T) {
	for line, want := range map[string]int{
		"-V": 0, "": ipBadUsage, "address": ipBadUsage, "-4 address add x dev lo": ipBadUsage,
		"address add 10.0.0.1/8": ipBadUsage, "address add 10.0.0.1/8 dev": ipBadUsage,
		"address add 10.0.0.1/8 dev absent": ipRefused, "route add 10.0.0.0/8 metric -1": ipBadUsage,
		"link set lo up": ipBadUsage, "address frob 10.0.0.1/8 dev lo": ipBadUsage,
	} {
		var stdout, stderr bytes.Buffer
		if got := ipCommand(strings.Fields(line), nil, &stdout, &stderr); got != want || (want != 0) != (stderr.Len() > 0) {
			t.Errorf("ip %s: %d %q, want %d", line, got, stderr.String(), want)
		}
	}
}

// TestAnnounce: a link that comes up is told of, and the segment hears of each
// address.
func TestAnnounce(t *testing.T) {
	inNetwork(t, func() {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"10.50.0.10/24", "fd00:50::10/64"} {
			if err := netlink.AddrAdd(link, address(netip.MustParsePrefix(p))); err != nil {
				t.Fatal(err)
			}
		}
		peer, err := net.InterfaceByName("peer0")
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(uint16(unix.ETH_P_ALL)<<8|uint16(unix.ETH_P_ALL)>>8))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8, Ifindex: peer.Index}); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
			t.Fatal(err)
		}
		if err := announce("eth0"); err != nil {
			t.Fatal(err)
		}
		want := map[string]bool{
			string(arpFrame(link.Attrs().HardwareAddr, net.ParseIP("10.50.0.10"))):            true,
			string(advertisementFrame(link.Attrs().HardwareAddr, net.ParseIP("fd00:50::10"))): true,
		}
		for buf := make([]byte, 2048); len(want) > 0; {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				t.Fatalf("%d announcements not seen: %v", len(want), err)
			}
			delete(want, string(buf[:n]))
		}
	})
}

// TestAdvertisementChecksum: the sum over what is summed is all ones.
func TestAdvertisementChecksum(t *testing.T) {
	ip := net.ParseIP("fd00:50::10")
	f := advertisementFrame(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, ip)
	sum := uint32(32 + unix.IPPROTO_ICMPV6)
	for i := 22; i < len(f); i += 2 { // both addresses and the message
		sum += uint32(f[i])<<8 | uint32(f[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	if sum != 0xffff || len(f) != 86 {
		t.Errorf("sum %#x over %d bytes", sum, len(f))
	}
}

func TestProcAddress(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1",
		"0A00320A:0050":                         "10.50.0.10",
		"500000FD000000000000000010000000:1F90": "fd00:50::10",
		"0000000000000000FFFF00000A00320A:1F90": "10.50.0.10",
		"x":                                     "invalid IP",
		"0A00320A0A:0050":                       "invalid IP",
		"":                                      "invalid IP",
	} {
		if got, _ := procAddress(text); got.String() != want {
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}

// TestSessionsByAddress counts a connection at both of its ends.
func TestSessionsByAddress(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.7:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 8)}, Timeout: 10 * time.Second}
	conn, err := dialer.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	count, err := sessionsByAddress()
	if err != nil || count[netip.MustParseAddr("127.0.0.7")] != 1 || count[netip.MustParseAddr("127.0.0.8")] != 1 {
		t.Errorf("%v, %v: want one at each end", count, err)
	}
	_ = conn.Close()
}
