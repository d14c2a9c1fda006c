package vxlan_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/vxlan"
	"golang.org/x/sys/unix"
)

// What fills a packet of 1,500 bytes.
const (
	full4 = 1472
	full6 = 1452
)

func TestAcross(t *testing.T) {
	w := newWorld(t, 1600)
	g1, g2 := w.guest("g1", "a", 11), w.guest("g2", "b", 12)
	a, b := w.stretched(false)
	w.pings("g1", g2.Addresses[0], 3, 56) // nobody is known: flooded
	w.know(a, b, []driver.Station{g1}, []driver.Station{g2})
	w.pings("g1", g2.Addresses[0], 3, full4)
	w.pings("g1", g2.Addresses[1], 3, full6)
	w.pings("g2", g1.Addresses[0], 3, full4)
	w.pings("g2", g1.Addresses[1], 3, full6)
	c, err := a.Counters(t.Context(), segmentName)
	w.must(err)
	for _, mac := range []string{g1.MAC, g2.MAC} {
		st := c.Stations[mac]
		// 12 full pings went each way, 1,500 bytes each, the link layer counted or not.
		if st.Sent.Bytes < 12*1500 || st.Sent.Bytes > 2*12*1520 || st.Received.Bytes < 12*1500 || st.Received.Bytes > 2*12*1520 {
			t.Errorf("counters of %s: %+v", mac, st)
		}
	}
	if c.Sent.Bytes < 12*1500 || c.Received.Bytes < 12*1500 {
		t.Errorf("counters of the tunnel: %+v", c)
	}
}

// TestAnsweredHere: who asks for a known station elsewhere is answered by the
// own edge; nothing crosses, even when nothing can.
func TestAnsweredHere(t *testing.T) {
	w := newWorld(t, 1600)
	g1, g2 := w.guest("g1", "a", 11), w.guest("g2", "b", 12)
	a, b := w.stretched(false)
	w.know(a, b, []driver.Station{g1}, []driver.Station{g2})
	w.ip("a", "link", "set", "wan", "down")
	for _, to := range g2.Addresses {
		if err := w.ping("g1", to, 1, 56); err == nil {
			t.Fatal("a ping crossed a WAN that is down")
		}
		if out := w.ip("g1", "neigh", "show", to.String()); !strings.Contains(out, "lladdr "+g2.MAC) {
			t.Errorf("%v was not resolved: %q", to, out)
		}
	}
	c, err := a.Counters(t.Context(), segmentName)
	w.must(err)
	// Only the echo requests were sent into the tunnel, both known unicast.
	if n := c.Stations[g2.MAC].Sent.Frames; n != 2 {
		t.Errorf("%d frames were sent to the station, want the 2 echo requests", n)
	}
}

// TestNoFlooding: what is for a known station goes to its edge only, floods
// are limited.
func TestNoFlooding(t *testing.T) {
	w := newWorld(t, 1600)
	g1, g2 := w.guest("g1", "a", 11), w.guest("g2", "b", 12)
	g3 := w.guest("g3", "b", 13)
	a := w.open("a", vxlan.Config{FloodFrames: 1})
	b := w.open("b", vxlan.Config{})
	ext := extensionOf(meshA, meshB)
	ext.Remotes = append(ext.Remotes, driver.Remote{Address: netip.MustParseAddr("10.99.0.3")})
	w.must(a.Extend(t.Context(), owner1, ext))
	w.must(b.Extend(t.Context(), owner1, extensionOf(meshB, meshA)))
	w.know(a, b, []driver.Station{g1}, []driver.Station{g2})
	w.ip("a", "neigh", "replace", "10.99.0.3", "lladdr", "02:00:00:00:99:03", "dev", "wan")
	w.pings("g1", g2.Addresses[0], 1, 56)
	// Nothing else in these segments is as long as these pings.
	w.run("a", "nft", "add", "table", "netdev", "spy")
	w.run("a", "nft", "add", "chain", "netdev", "spy", "out", "{ type filter hook egress device wan priority 0; }")
	w.run("a", "nft", "add", "rule", "netdev", "spy", "out", "ip", "daddr", "10.99.0.3", "meta", "length", ">", "1000", "counter")
	w.run("b", "nft", "add", "table", "bridge", "spy")
	w.run("b", "nft", "add", "chain", "bridge", "spy", "out", "{ type filter hook postrouting priority 0; }")
	w.run("b", "nft", "add", "rule", "bridge", "spy", "out", "oifname", "p-g3", "meta", "length", ">", "1000", "counter")
	w.pings("g1", g2.Addresses[0], 50, 1000)
	for edge, family := range map[string]string{"a": "netdev", "b": "bridge"} {
		if out := w.run(edge, "nft", "list", "table", family, "spy"); !strings.Contains(out, "packets 0 ") {
			t.Errorf("%s: frames to a known station went elsewhere too: %s", edge, out)
		}
	}
	// A station that is not known: its frames are flooded, within the limit.
	w.ip("g1", "neigh", "replace", g3.Addresses[0].String(), "lladdr", "52:54:00:00:00:99", "dev", "eth0")
	w.run("g1", "sh", "-c", "ping -n -q -l 300 -c 300 -w 1 "+g3.Addresses[0].String()+" || true")
	c, err := a.Counters(t.Context(), segmentName)
	w.must(err)
	// One a second and the burst of 200 may pass.
	if c.Flooded.Frames < 50 {
		t.Errorf("of 300 frames to an unknown station %d were held back", c.Flooded.Frames)
	}
}

func TestMove(t *testing.T) {
	w := newWorld(t, 1600)
	g1, g2 := w.guest("g1", "a", 11), w.guest("g2", "b", 12)
	vm := w.guest("va", "a", 20) // the VM at the source
	w.guest("vb", "b", 20)       // and at the destination, paused
	w.ip("vb", "link", "set", "eth0", "down")
	a, b := w.stretched(false)
	w.know(a, b, []driver.Station{g1, vm}, []driver.Station{g2})
	w.pings("g1", vm.Addresses[0], 2, full4)
	w.pings("g2", vm.Addresses[0], 2, full4)

	// Staged: the source expects it at b.
	staged, there := vm, g2
	staged.Next, there.At = meshB, meshB
	w.must(a.SetStations(t.Context(), segmentName, []driver.Station{g1, staged, there}))
	w.pings("g1", vm.Addresses[0], 2, full4)

	// The guest resumes at b; QEMU announces it. No call has been made.
	// The port that it had at a stays up, it is the host's; only a paused guest
	// sends nothing, not even what a kernel sends of itself.
	w.run("va", "nft", "add", "table", "netdev", "paused")
	w.run("va", "nft", "add", "chain", "netdev", "paused", "out", "{ type filter hook egress device eth0 priority 0; policy drop; }")
	w.ip("vb", "link", "set", "eth0", "up")
	w.ip("vb", "addr", "replace", vm.Addresses[1].String()+"/64", "dev", "eth0", "nodad")
	w.inside("vb", func() error { return announce("eth0", vm.MAC) })
	for _, g := range []string{"g1", "g2"} {
		for i, to := range vm.Addresses {
			// The announcement is on its way when the first ping is sent.
			err := w.ping(g, to, 3, full4-20*i)
			for try := 0; err != nil && try < 3; try++ {
				err = w.ping(g, to, 3, full4-20*i)
			}
			if err != nil {
				t.Errorf("after the resume, before anybody was told: %v", err)
			}
		}
	}
	// Told: both edges know, and the move back works without a stage.
	w.know(a, b, []driver.Station{g1}, []driver.Station{g2, vm})
	w.pings("g1", vm.Addresses[0], 2, full4)
	if out := w.run("b", "bridge", "fdb", "show", "br", bridgeName); strings.Contains(out, vm.MAC+" dev dvx77") {
		t.Errorf("b still has the station behind the tunnel:\n%s", out)
	}
	if out := w.run("a", "bridge", "fdb", "show", "dev", "dvx77"); !strings.Contains(out, vm.MAC+" dst 10.99.0.2") {
		t.Errorf("a does not have the station behind the tunnel:\n%s", out)
	}
	w.ip("vb", "link", "set", "eth0", "down")
	w.run("va", "nft", "delete", "table", "netdev", "paused")
	w.know(a, b, []driver.Station{g1, vm}, []driver.Station{g2})
	w.pings("g2", vm.Addresses[0], 2, full4)
	w.pings("g1", vm.Addresses[0], 2, full4)
}

// announce sends what QEMU sends when a guest resumes: a reverse ARP request.
func announce(iface, mac string) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	frame := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frame = append(frame, hw...)
	frame = append(frame, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3)
	frame = append(append(frame, hw...), 0, 0, 0, 0)
	frame = append(append(frame, hw...), 0, 0, 0, 0)
	frame = append(frame, make([]byte, 60-len(frame))...)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6})
}

// TestLocalEgress: each site has the same gateway; nobody sees the other.
func TestLocalEgress(t *testing.T) {
	w := newWorld(t, 1600)
	for _, edge := range []string{"a", "b"} {
		w.ip(edge, "addr", "add", gateway4+"/24", "dev", bridgeName)
		w.ip(edge, "addr", "add", gateway6+"/64", "dev", bridgeName, "nodad")
	}
	g1, g2 := w.guest("g1", "a", 11), w.guest("g2", "b", 12)
	a, b := w.stretched(true)
	w.know(a, b, []driver.Station{g1}, []driver.Station{g2})
	gateways := []netip.Addr{netip.MustParseAddr(gateway4), netip.MustParseAddr(gateway6)}
	for _, g := range gateways {
		w.pings("g1", g, 2, 56)
		w.pings("g2", g, 2, 56)
	}
	// The far gateway does not stand in when the own is away.
	w.ip("b", "addr", "del", gateway4+"/24", "dev", bridgeName)
	w.ip("b", "addr", "del", gateway6+"/64", "dev", bridgeName)
	w.ip("g2", "neigh", "flush", "all")
	for _, g := range gateways {
		if w.ping("g2", g, 1, 56) == nil {
			t.Errorf("%v answered from the other site", g)
		}
		// Nor is its MAC told, which is the same at both.
		if out := w.ip("g2", "neigh", "show", g.String()); strings.Contains(out, "lladdr") {
			t.Errorf("%v was resolved by the other site: %s", g, out)
		}
	}
	// What comes in at a for a station at b still reaches it, and is answered
	// by b's own edge: here the gateway at b is the only way back.
	w.ip("b", "addr", "add", gateway4+"/24", "dev", bridgeName)
	w.ip("a", "addr", "add", "203.0.113.1/32", "dev", "lo")
	w.ip("b", "route", "add", "203.0.113.1/32", "via", "10.99.0.1")
	w.ip("g2", "route", "add", "default", "via", gateway4)
	for _, edge := range []string{"a", "b"} {
		w.run(edge, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
	}
	w.run("a", "ping", "-n", "-q", "-c", "2", "-i", "0.1", "-w", "10", "-I", "203.0.113.1", g2.Addresses[0].String())
	c, err := a.Counters(t.Context(), segmentName)
	w.must(err)
	d, err := b.Counters(t.Context(), segmentName)
	w.must(err)
	if c.Gateway.Frames+d.Gateway.Frames == 0 {
		t.Error("nothing was kept at its site")
	}
	// Taken back, the gateway is reached through the tunnel again.
	w.must(b.Extend(t.Context(), owner1, extensionOf(meshB, meshA)))
	w.must(a.Extend(t.Context(), owner1, extensionOf(meshA, meshB)))
	list, err := a.List(t.Context())
	w.must(err)
	if len(list) != 1 || list[0].LocalEgress || !list[0].Gateway.IsZero() {
		t.Errorf("local egress was not taken back: %+v", list)
	}
}

func TestLoop(t *testing.T) {
	w := newWorld(t, 1600)
	a, b := w.open("a", vxlan.Config{}), w.open("b", vxlan.Config{})
	w.must(a.Extend(t.Context(), owner1, extensionOf(meshA, meshB)))
	// Another wire between the two bridges.
	w.ip("", "link", "add", "wire", "netns", w.prefix+"a", "type", "veth", "peer", "name", "wire", "netns", w.prefix+"b")
	w.ip("a", "link", "set", "wire", "master", bridgeName, "up")
	w.ip("b", "link", "set", "wire", "master", bridgeName, "up")
	if err := b.Extend(t.Context(), owner1, extensionOf(meshB, meshA)); drover.KindOf(err) != drover.Refused {
		t.Fatalf("a second way was not refused: %v", err)
	}
	list, err := b.List(t.Context())
	w.must(err)
	if len(list) != 0 {
		t.Errorf("a refused extension left %+v", list)
	}
	if out := w.run("b", "nft", "list", "ruleset"); strings.Contains(out, "drover") {
		t.Errorf("a refused extension left %s", out)
	}
	w.ip("a", "link", "del", "wire")
	w.must(b.Extend(t.Context(), owner1, extensionOf(meshB, meshA)))
	// A tunnel of somebody else to an address of the remote.
	w.ip("b", "link", "add", "vx-other", "type", "vxlan", "id", "5", "local", "10.99.0.2", "remote", "10.99.0.1", "dstport", "4790")
	w.ip("b", "link", "set", "vx-other", "master", bridgeName, "up")
	if err := b.Extend(t.Context(), owner2, extensionOf(meshB, meshA)); drover.KindOf(err) != drover.Refused {
		t.Fatalf("a tunnel of somebody else to the remote was not refused: %v", err)
	}
	w.ip("b", "link", "del", "vx-other")
}

// TestLoopLater: a way that is made after the tunnel was opened shuts it.
func TestLoopLater(t *testing.T) {
	w := newWorld(t, 1600)
	a, b := w.stretched(false)
	w.ip("", "link", "add", "wire", "netns", w.prefix+"a", "type", "veth", "peer", "name", "wire", "netns", w.prefix+"b")
	w.ip("a", "link", "set", "wire", "master", bridgeName, "up")
	w.ip("b", "link", "set", "wire", "master", bridgeName, "up")
	for edge, s := range map[string]*vxlan.Segments{"a": a, "b": b} {
		w.waitFault(s, "by another way")
		if out := w.ip(edge, "link", "show", "dvx77"); strings.Contains(out, ",UP") {
			t.Errorf("%s: the tunnel is still open: %s", edge, out)
		}
	}
	if err := a.Extend(t.Context(), owner1, extensionOf(meshA, meshB)); drover.KindOf(err) != drover.Refused {
		t.Errorf("opened again in spite of the loop: %v", err)
	}
	w.ip("a", "link", "del", "wire")
	w.must(a.Extend(t.Context(), owner1, extensionOf(meshA, meshB)))
	w.waitFault(a, "")
}
