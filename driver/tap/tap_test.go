package tap

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
)

// host is a bridge with an uplink, of which the test has the other end, and a
// port for the suite's station, of which it is the QEMU.
type host struct {
	*testing.T
	uplink *os.File // bound to the uplink's far end
	qemu   *os.File // the tap's descriptor
}

const stationPort = "vnet0"

func run(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, script, out)
	}
	return string(out)
}

func newHost(t *testing.T) *host {
	t.Helper()
	run(t, `
ip link add br0 type bridge; ip link set br0 up
ip link add up0 type veth peer name far0; ip link set up0 master br0 up; ip link set far0 up
sysctl -qw net.ipv6.conf.br0.disable_ipv6=1 net.ipv6.conf.up0.disable_ipv6=1 net.ipv6.conf.far0.disable_ipv6=1
`)
	t.Cleanup(func() { run(t, "ip link del up0; ip link del br0") })
	h := &host{T: t, uplink: rawOn(t, "far0")}
	h.qemu = newTap(t, stationPort)
	run(t, "ip link set vnet0 address fe"+strings.TrimPrefix(drivertest.CatchMAC, "52")+" master br0 up; sysctl -qw net.ipv6.conf.vnet0.disable_ipv6=1")
	return h
}

// newTap makes a tap interface that lasts as long as the file.
func newTap(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return f
}

// rawOn is a packet socket on an interface, with offloads, for all frames.
func rawOn(t *testing.T, name string) *os.File {
	t.Helper()
	i, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := packetSocket()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: i.Index}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (h *host) send(offload, frame []byte) {
	h.Helper()
	if _, err := h.uplink.Write(append(bytes.Clone(offload), frame...)); err != nil {
		h.Fatal(err)
	}
}

// received is the next frame that QEMU reads.
func (h *host) received() []byte {
	h.Helper()
	if err := h.qemu.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		h.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, err := h.qemu.Read(buf)
	if err != nil {
		h.Fatal(err)
	}
	return buf[:n]
}

func TestTaps(t *testing.T) {
	drivertest.Catcher(t, func(t *testing.T) drivertest.CatchHost {
		h := newHost(t)
		return drivertest.CatchHost{
			Catcher: New(slog.New(slog.DiscardHandler)),
			Send: func(t *testing.T, frame []byte) {
				(&host{T: t, uplink: h.uplink}).send(nothing[:], frame)
			},
			Received: func(t *testing.T) []byte { return (&host{T: t, qemu: h.qemu}).received() },
			Unplug:   func(*testing.T) { h.qemu.Close() },
		}
	})
}

// A packet that is longer than the MTU, and whose checksum was left to the
// network card, arrives in pieces that fit, with their checksums.
func TestOffload(t *testing.T) {
	h := newHost(t)
	c, err := New(nil).Catch(t.Context(), driver.CaughtStation{MAC: drivertest.CatchMAC})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Start(time.Now()); err != nil {
		t.Fatal(err)
	}
	const payload, segment = 4000, 1400
	packet := tcpPacket(payload)
	offload := make([]byte, driver.OffloadBytes)
	offload[0], offload[1] = 1, 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4
	for i, v := range []uint16{54, segment, 34, 16} {
		binary.LittleEndian.PutUint16(offload[2+2*i:], v)
	}
	h.send(offload, packet)
	frames, err := c.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(frames) != 1 || len(frames[0].Data) != len(packet) || frames[0].Offload[1] != 1 {
		t.Fatalf("caught %d frames, %d bytes, offload %v", len(frames), len(frames[0].Data), frames[0].Offload)
	}
	p, err := New(nil).Port(t.Context(), drivertest.CatchMAC)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Give(frames[0]); err != nil {
		t.Fatal(err)
	}
	var pieces [][]byte
	for total := 0; total < 2*payload; { // once by the bridge, once by the port
		f := h.received()
		if !bytes.Equal(f[:6], packet[:6]) {
			continue // the kernel's own, to everybody
		}
		if len(f) > 54+segment {
			t.Fatalf("a piece of %d bytes", len(f))
		}
		if sum := tcpSum(f); sum != 0xffff {
			t.Errorf("a piece's checksum is wrong: %#x", sum)
		}
		pieces, total = append(pieces, f[54:]), total+len(f)-54
	}
	if got, want := bytes.Join(pieces, nil), append(bytes.Clone(packet[54:]), packet[54:]...); !bytes.Equal(got, want) {
		t.Error("the pieces are not what was sent")
	}
}

// tcpPacket is a TCP segment to the station, its checksum the pseudo header's.
func tcpPacket(payload int) []byte {
	f := append([]byte{}, 0x52, 0x54, 0, 0, 0, 5, 0x52, 0x54, 0, 0, 0, 9, 8, 0)
	f = append(f, 0x45, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(40+payload))
	f = append(f, 0, 1, 0, 0, 64, 6, 0, 0, 10, 1, 0, 9, 10, 1, 0, 5)
	binary.BigEndian.PutUint16(f[24:], ^sum16(f[14:34], 0))
	f = append(f, 0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(f[50:], sum16(f[26:34], uint32(6+20+payload)))
	for i := range payload {
		f = append(f, byte(i*7))
	}
	return f
}

// tcpSum is 0xffff where the checksum of a TCP packet is right.
func tcpSum(f []byte) uint16 {
	return sum16(append(bytes.Clone(f[26:34]), f[34:]...), uint32(6+len(f)-34))
}

func sum16(b []byte, sum uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// Nothing is left when a catch has ended.
func TestNothingStays(t *testing.T) {
	newHost(t)
	look := func() string {
		return run(t, "ip -d link show br0 | grep -o 'promiscuity [0-9]*'; ls /sys/class/net; bridge fdb show br br0 | grep -v '^33:33\\|^01:00'")
	}
	before := look()
	c, err := New(nil).Catch(t.Context(), driver.CaughtStation{MAC: drivertest.CatchMAC})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(time.Now()); err != nil {
		t.Fatal(err)
	}
	if during := look(); !strings.Contains(during, "promiscuity 1") {
		t.Errorf("the bridge is not heard:\n%s", during)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if after := look(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// A bridge that filters VLANs, or none, leaves the port to be heard.
func TestWithoutBridge(t *testing.T) {
	for name, script := range map[string]string{
		"no bridge":       "ip link set vnet0 nomaster",
		"VLANs filtered":  "ip link set br0 type bridge vlan_filtering 1",
		"in a fe:… world": "ip link set vnet0 address fa:00:00:00:00:01",
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(name, "VLANs") && exec.Command("sh", "-c", "ip link add brx type bridge vlan_filtering 1 && ip link del brx").Run() != nil {
				t.Skip("this kernel's bridges know no VLANs")
			}
			h := newHost(t)
			run(t, script)
			mac, card := drivertest.CatchMAC, net.HardwareAddr{0x52, 0x54, 0, 0, 0, 5}
			if strings.HasPrefix(name, "in a") {
				mac, card = "fe:00:00:00:00:01", net.HardwareAddr{0xfe, 0, 0, 0, 0, 1}
			}
			c, err := New(nil).Catch(t.Context(), driver.CaughtStation{MAC: mac})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Start(time.Now()); err != nil {
				t.Fatal(err)
			}
			frame := append(bytes.Clone(card), make([]byte, 54)...)
			copy(frame[6:], []byte{0x52, 0x54, 0, 0, 0, 9, 0x88, 0xb5})
			if strings.HasPrefix(name, "no bridge") {
				h.uplink = rawOn(t, "vnet0") // the host itself sends to it
			}
			h.send(nothing[:], frame)
			frames, err := c.Next(t.Context())
			if err != nil || len(frames) != 1 || !bytes.Equal(frames[0].Data, frame) {
				t.Errorf("%v, %v", frames, err)
			}
		})
	}
}
