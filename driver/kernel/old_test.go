package kernel

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const owner = driver.Owner("vm/5f0c1d5e-6a3e-4c8b-9a59-0d8f1c1f2a01")

var (
	guest4, guest6 = netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("2001:db8:1::5")
	both           = []netip.Addr{guest4, guest6}
	subnets        = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
	toB            = driver.MeshPath{Interface: "drover0", Remote: netip.MustParseAddr("10.99.0.2")}
	toA            = driver.MeshPath{Interface: "drover0", Remote: netip.MustParseAddr("10.99.0.1")}
)

func (w edges) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w edges) unchanged(ns, before string) {
	w.Helper()
	if diff := cmp.Diff(before, w.state(ns)); diff != "" {
		w.Errorf("%s is not as before:\n%s", ns, diff)
	}
}

// TestRenumber: sessions of the old address go on through both edges when the
// guest has moved to another segment of another site; new ones are refused.
func TestRenumber(t *testing.T) {
	for _, mesh := range []struct {
		name     string
		toA, toB netip.Addr
	}{
		{"mesh4", toA.Remote, toB.Remote},
		{"mesh6", netip.MustParseAddr("fd99::1"), netip.MustParseAddr("fd99::2")},
	} {
		t.Run(mesh.name, func(t *testing.T) {
			testRenumber(newWorld(t), driver.MeshPath{Interface: "drover0", Remote: mesh.toA}, driver.MeshPath{Interface: "drover0", Remote: mesh.toB})
		})
	}
}

// TestRenumberWithoutIPv6: between edges on which IPv6 is off sessions go on, too.
func TestRenumberWithoutIPv6(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.echo("g")
	for _, edge := range []string{"ea", "eb"} {
		w.sh("ip netns exec " + edge + " sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
	}
	a, b := w.open("ea"), w.open("eb")
	old := []netip.Addr{guest4}
	w.ok(a.Watch(ctx, owner, old))
	session, err := w.dial("cl", "tcp", "10.1.0.5:7")
	w.ok(err)
	defer session.Close()
	if !answers(session, 100) {
		t.Fatal("the session does not answer before the move")
	}
	w.sh(`ip -n ea link set p-g nomaster netns eb; ip -n eb link set p-g master br-new up
ip -n g addr add 10.2.0.5/24 dev eth0; ip -n g route replace default via 10.2.0.1; ip -n g neigh flush all`)
	w.ok(b.AcceptOld(ctx, owner, driver.OldAccept{Addresses: old, Bridge: "br-new", From: toA, Subnets: subnets[:1]}))
	w.ok(a.ForwardOld(ctx, owner, driver.OldForward{Addresses: old, Bridge: "br-web", To: toB, Limit: time.Hour}))
	if !answers(session, 100) {
		t.Error("the session does not go on")
	}
	w.refused("cl", "10.1.0.5:7")
}

func testRenumber(w edges, toA, toB driver.MeshPath) {
	ctx := w.Context()
	w.echo("g")
	beforeA, beforeB := w.state("ea"), w.state("eb")
	a, b := w.open("ea"), w.open("eb")
	silent, err := w.dial("cl", "tcp", "10.1.0.5:7")
	w.ok(err)
	if !answers(silent, 100) {
		w.Fatal("the silent session does not answer before the move")
	}
	w.ok(a.Watch(ctx, owner, both))

	session4, err := w.dial("cl", "tcp", "10.1.0.5:7")
	w.ok(err)
	session6, err := w.dial("cl", "tcp", "[2001:db8:1::5]:7")
	w.ok(err)
	beside, err := w.dial("n", "tcp", "10.1.0.5:7")
	w.ok(err)
	datagrams, err := w.dial("cl", "udp", "10.1.0.5:7")
	w.ok(err)
	sessions := map[string]net.Conn{"silent": silent, "IPv4": session4, "IPv6": session6, "from a neighbour": beside, "UDP": datagrams}
	for name, c := range sessions {
		if name != "silent" && !answers(c, 100) {
			w.Fatalf("the session %s does not answer before the move", name)
		}
		defer c.Close()
	}

	// The move: the same port, with a new address beside the old one.
	w.sh(`ip -n ea link set p-g nomaster netns eb; ip -n eb link set p-g master br-new up
ip -n g addr add 10.2.0.5/24 dev eth0; ip -n g addr add 2001:db8:2::5/64 dev eth0 nodad
ip -n g route replace default via 10.2.0.1; ip -n g -6 route replace default via 2001:db8:2::1; ip -n g neigh flush all`)
	w.ok(b.AcceptOld(ctx, owner, driver.OldAccept{Addresses: both, Bridge: "br-new", From: toA, Subnets: subnets}))
	forward := driver.OldForward{Addresses: both, Bridge: "br-web", To: toB, Limit: time.Hour}
	w.ok(a.ForwardOld(ctx, owner, forward))
	w.ok(a.ForwardOld(ctx, owner, forward))
	for name, c := range sessions {
		if size := map[bool]int{true: 100, false: 200_000}[name == "UDP"]; !answers(c, size) {
			w.Errorf("the session %s does not go on", name)
		}
	}
	w.refused("cl", "10.1.0.5:7", "[2001:db8:1::5]:7")
	w.refused("n", "10.1.0.5:7", "[2001:db8:1::5]:7")
	if w.pings("cl", "10.1.0.5") || w.pings("cl", "2001:db8:1::5") {
		w.Error("a ping to the old address was answered")
	}
	fresh, err := w.dial("cl", "tcp", "10.2.0.5:7")
	w.ok(err)
	defer fresh.Close()
	if !answers(fresh, 100) {
		w.Error("the new address does not answer")
	}
	// This site's edge refuses it, rather than the old one behind the tunnel.
	w.sh("ip netns exec ea nft 'table inet probe { chain c { type filter hook prerouting priority -300; iifname dvold tcp dport 9 counter; }; }'")
	w.refusedFrom("g", "10.1.0.5", "198.51.100.2:9")
	if seen := w.sh("ip netns exec ea nft list table inet probe; ip netns exec ea nft delete table inet probe"); !strings.Contains(seen, "packets 0 ") {
		w.Errorf("a new session went through the tunnel: %s", seen)
	}

	// Who has an address is asked on the bridge, and proxies are not heard.
	stations, err := b.Stations(ctx, "br-new", []netip.Addr{netip.MustParseAddr("10.2.0.5"), netip.MustParseAddr("10.2.0.99"), netip.MustParseAddr("2001:db8:2::5")})
	w.ok(err)
	mac := strings.Fields(w.sh("ip -n g -o link show eth0 | grep -o 'link/ether [^ ]*'"))[1]
	if want := []driver.AddressStation{{Address: netip.MustParseAddr("10.2.0.5"), MAC: mac}, {Address: netip.MustParseAddr("2001:db8:2::5"), MAC: mac}}; !slices.Equal(stations, want) {
		w.Errorf("stations %+v, want %+v", stations, want)
	}

	// The sessions are known, by the edge that keeps them.
	known, err := a.Sessions(ctx, both)
	w.ok(err)
	live := 0
	for _, s := range known {
		if s.Live {
			live++
		}
	}
	if live != 5 {
		w.Errorf("%d live sessions, want 5: %+v", live, known)
	}
	if mesh := w.sh("ip -n ea -s link show dvold"); !strings.Contains(mesh, "mtu 1370") && !strings.Contains(mesh, "mtu 1350") {
		w.Errorf("the tunnel's MTU: %s", mesh)
	}

	w.ok(a.Close())
	w.ok(b.Close())
	if !answers(session4, 100) || !answers(session6, 100) {
		w.Error("the sessions have ended with the drivers")
	}
	a, b = w.open("ea"), w.open("eb")
	for _, edge := range []*Addresses{a, b} {
		all, err := edge.List(ctx)
		w.ok(err)
		for _, p := range all {
			if p.Missing || p.Owner != owner {
				w.Errorf("List: %+v", p)
			}
		}
	}
	w.openOld(a, b, forward, driver.OldAccept{Addresses: both, Bridge: "br-new", From: toA, Subnets: subnets})
	w.endOld(a, forward, session4)
	w.ok(a.Remove(ctx, owner))
	w.ok(b.Remove(ctx, owner))
	w.ok(a.Remove(ctx, owner))
	w.unchanged("ea", beforeA)
	w.sh("ip -n eb link set p-g nomaster netns ea; ip -n ea link set p-g master br-web up")
	w.unchanged("eb", beforeB)
}

// TestOldGateway: a guest whose gateway is another station now hears of it, and
// does not send into the void until it has its doubts.
func TestOldGateway(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.echo("g")
	const mac = "02:00:00:00:00:02"
	w.Cleanup(func() { w.sh("ip netns del x") })
	// The guest's cable stays where it is when the guest moves.
	w.sh(`ip -n eb link set br-new address ` + mac + `
ip netns add x; ip -n x link add br-x type bridge; ip -n x link set br-x up
ip -n ea link set p-g nomaster netns x; ip -n x link set p-g master br-x up
ip -n ea link add to-x type veth peer name to-ea netns x; ip -n ea link set to-x master br-web up; ip -n x link set to-ea master br-x up
ip -n eb link add to-x type veth peer name to-eb netns x; ip -n eb link set to-x master br-new up; ip -n x link set to-eb master br-x
ip -n g route replace default via 10.1.0.1; ip -n g -6 route replace default via 2001:db8:1::1`)
	a, b := w.open("ea"), w.open("eb")
	w.ok(a.Watch(ctx, owner, both))
	session4, err := w.dial("cl", "tcp", "10.1.0.5:7")
	w.ok(err)
	defer session4.Close()
	session6, err := w.dial("cl", "tcp", "[2001:db8:1::5]:7")
	w.ok(err)
	defer session6.Close()
	if !answers(session4, 100) || !answers(session6, 100) {
		w.Fatal("the sessions do not answer before the move")
	}
	// What the guest sends to the gateway that it had is not lost, though nobody
	// has told it of another.
	w.sh("ip -n x link set to-ea down; ip -n x link set to-eb up")
	accept := driver.OldAccept{Addresses: both, Bridge: "br-new", From: toA, Subnets: subnets}
	w.ok(b.AcceptOld(ctx, owner, accept))
	w.ok(a.ForwardOld(ctx, owner, driver.OldForward{Addresses: both, Bridge: "br-web", To: toB, Limit: time.Hour}))
	w.sh(`ip -n g neigh replace 10.1.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
ip -n g neigh replace 2001:db8:1::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent`)
	if !answers(session4, 100) || !answers(session6, 100) {
		w.Error("what the guest sends to its old gateway is lost")
	}
	w.sh(`for n in 10.1.0.1 2001:db8:1::1; do ip -n g neigh change $n lladdr 02:00:00:00:00:01 dev eth0 nud reachable; done`)

	w.ok(sleep(ctx, 1200*time.Millisecond)) // Linux believes no two announcements within a second
	accept.Gateways = []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("2001:db8:1::1")}
	w.ok(b.AcceptOld(ctx, owner, accept))
	for _, gateway := range []string{"10.1.0.1", "2001:db8:1::1"} {
		known := ""
		for range 100 {
			if known = w.sh("ip -n g neigh show " + gateway); strings.Contains(known, mac) {
				break
			}
			w.ok(sleep(ctx, 30*time.Millisecond))
		}
		if !strings.Contains(known, mac) {
			w.Errorf("the guest has its gateway at %q, want %s", known, mac)
		}
	}
	if !answers(session4, 100) || !answers(session6, 100) {
		w.Error("the sessions do not go on")
	}
	accept.Gateways = []netip.Addr{netip.MustParseAddr("224.0.0.1")}
	if err := b.AcceptOld(ctx, owner, accept); drover.KindOf(err) != drover.Invalid {
		w.Errorf("a gateway that is no host: %v, want it invalid", err)
	}
}

// openOld lets new sessions of old addresses through, and ends that again.
func (w edges) openOld(a, b *Addresses, f driver.OldForward, o driver.OldAccept) {
	w.Helper()
	f.All, o.All = true, true
	w.ok(b.AcceptOld(w.Context(), owner, o))
	w.ok(a.ForwardOld(w.Context(), owner, f))
	for ns, addresses := range map[string][]string{"cl": {"10.1.0.5:7", "[2001:db8:1::5]:7"}, "n": {"10.1.0.5:7"}} {
		for _, addr := range addresses {
			c, err := w.dial(ns, "tcp", addr)
			w.ok(err)
			if !answers(c, 100) {
				w.Errorf("a new session from %s to %s does not answer", ns, addr)
			}
			w.ok(c.Close())
		}
	}
	all, err := a.List(w.Context())
	w.ok(err)
	for _, p := range all {
		if p.Missing || p.All != (p.Role == driver.RoleForwardOld) {
			w.Errorf("List: %+v", p)
		}
	}
	f.All, o.All = false, false
	w.ok(b.AcceptOld(w.Context(), owner, o))
	w.ok(a.ForwardOld(w.Context(), owner, f))
	w.refused("cl", "10.1.0.5:7", "[2001:db8:1::5]:7")
}

// endOld has the limit reached, and a session dropped.
func (w edges) endOld(a *Addresses, f driver.OldForward, session net.Conn) {
	w.Helper()
	f.Limit = 100 * time.Millisecond
	w.ok(a.ForwardOld(w.Context(), owner, f))
	for range 50 {
		if !answers(session, 10) {
			break
		}
		w.ok(sleep(w.Context(), 20*time.Millisecond))
	}
	if answers(session, 10) {
		w.Error("the session goes on beyond the limit")
	}
	f.Limit = time.Hour
	w.ok(a.ForwardOld(w.Context(), owner, f))
	n, err := a.Forget(w.Context(), both)
	w.ok(err)
	if n < 3 {
		w.Errorf("%d sessions forgotten, want at least the three others", n)
	}
	if left, err := a.Sessions(w.Context(), both); err != nil || len(left) != 0 {
		w.Errorf("after Forget: %+v, %v", left, err)
	}
}

// refused wants a reset at once, not silence.
func (w edges) refused(ns string, addresses ...string) {
	w.Helper()
	for _, addr := range addresses {
		c, err := w.dial(ns, "tcp", addr)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			w.Errorf("a new session from %s to %s: %v, want it refused", ns, addr, err)
		}
	}
}

// refusedFrom is the same for a session that begins at a certain address.
func (w edges) refusedFrom(ns, from, to string) {
	w.Helper()
	_, err := in(w.T, ns, func() (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
		return d.DialContext(w.Context(), "tcp", to)
	})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		w.Errorf("a new session from %s to %s: %v, want it refused", from, to, err)
	}
}

// TestRoute: an address moves to the other site without its segment; neighbours
// on both sides, and the client, reach it.
func TestRoute(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.echo("g")
	beforeA, beforeB := w.state("ea"), w.state("eb")
	a, b := w.open("ea"), w.open("eb")
	w.ok(a.DeliverHere(ctx, owner, driver.Delivery{Addresses: both, Bridge: "br-web"}))
	var sessions []net.Conn
	for _, from := range []string{"cl", "n"} {
		for _, to := range []string{"10.1.0.5:7", "[2001:db8:1::5]:7"} {
			c, err := w.dial(from, "tcp", to)
			w.ok(err)
			defer c.Close()
			if !answers(c, 100) {
				t.Fatalf("%s does not answer %s before the move", to, from)
			}
			sessions = append(sessions, c)
		}
	}
	neighbours := []netip.Addr{netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("2001:db8:1::9")}
	w.sh("ip -n n addr add 10.1.0.19/24 dev eth0; ip -n ea link set p-g nomaster netns eb; ip -n eb link set p-g master br-web up")
	// The guest remembers the MACs of its neighbours. Here its cable was out for a
	// moment, at which it would have forgotten them; a guest that moves notices nothing.
	for _, addr := range []string{"10.1.0.9", "10.1.0.19", "2001:db8:1::9"} {
		w.sh("ip -n g neigh replace " + addr + " lladdr 52:54:00:00:00:09 dev eth0 nud reachable")
	}
	w.ok(b.ProxyRest(ctx, owner, subnets, "br-web"))
	w.ok(b.DeliverHere(ctx, owner, driver.Delivery{Addresses: both, Bridge: "br-web", MAC: "52:54:00:00:00:05", Neighbors: neighbours}))
	w.ok(a.Elsewhere(ctx, owner, both, "br-web"))
	// What BGP does: the router learns the host routes.
	w.sh(`ip -n r route add 10.1.0.5 via 203.0.113.6; ip -n r -6 route add 2001:db8:1::5 via 2001:db8:b0::2`)
	for i, c := range sessions {
		if !answers(c, 50_000) {
			t.Errorf("session %d does not go on", i)
		}
	}
	for _, from := range []string{"cl", "n"} {
		for _, to := range []string{"10.1.0.5", "2001:db8:1::5"} {
			if !w.pings(from, to) {
				t.Errorf("%s does not reach %s", from, to)
			}
		}
	}
	if !w.pings("g", "10.1.0.9") || !w.pings("g", "2001:db8:1::9") {
		t.Error("the guest does not reach its neighbour at the old site")
	}
	// One of whom nobody knew is told of soon, in a subnet as small as this.
	for end := time.Now().Add(patience); !w.succeeds("g", "ping -q -c 1 -W 1 10.1.0.19"); {
		if time.Now().After(end) {
			t.Fatal("the guest does not reach a neighbour of whom nobody knew")
		}
	}
	// Nobody else's address is taken: who looks for a free one finds it free.
	if n := w.sh("ip -n n neigh show 10.1.0.5; ip -n n neigh show 2001:db8:1::5"); strings.Count(n, "02:00:00:00:00:01") != 2 {
		t.Errorf("the neighbour has not learnt the gateway's MAC: %s", n)
	}

	// Home again.
	w.sh(`ip -n r route del 10.1.0.5; ip -n r -6 route del 2001:db8:1::5
ip -n eb link set p-g nomaster netns ea; ip -n ea link set p-g master br-web up; ip -n g neigh flush all`)
	w.ok(a.DeliverHere(ctx, owner, driver.Delivery{Addresses: both, Bridge: "br-web", MAC: "52:54:00:00:00:05"}))
	w.ok(b.Remove(ctx, owner))
	for i, c := range sessions {
		if !answers(c, 1000) {
			t.Errorf("session %d does not go on at home", i)
		}
	}
	if n := w.sh("ip -n n neigh show 10.1.0.5; ip -n n neigh show 2001:db8:1::5"); strings.Count(n, "52:54:00:00:00:05") != 2 {
		t.Errorf("the neighbour has not learnt the guest's MAC again: %s", n)
	}
	w.ok(a.Remove(ctx, owner))
	w.unchanged("ea", beforeA)
	w.unchanged("eb", beforeB)
}

// TestMeter: bytes are counted by their way, and what goes back into a tunnel
// is the hairpin.
func TestMeter(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.echo("g")
	before := w.state("ea")
	a := w.open("ea")
	w.ok(a.Meter(ctx, owner, both))
	w.ok(a.Meter(ctx, owner, both))
	c, err := w.dial("cl", "tcp", "10.1.0.5:7")
	w.ok(err)
	defer c.Close()
	if !answers(c, 100_000) {
		t.Fatal("no answer")
	}
	all, err := a.Metered(ctx, []netip.Addr{guest4})
	w.ok(err)
	if len(all) != 1 || all[0].To.RouterBridge < 100_000 || all[0].From.BridgeRouter < 100_000 || all[0].From.RouterBridge != 0 ||
		hairpin(all[0], false) != 0 || hairpin(all[0], true) != all[0].To.RouterBridge+all[0].From.BridgeRouter {
		t.Errorf("a guest at home: %+v", all)
	}
	// A tunnel takes the guest's place.
	w.sh(`ip -n ea link add dvtest type veth peer name eth1 netns g; ip -n ea link set dvtest up; ip -n g link set eth1 up
ip -n g addr add 10.3.0.2/24 dev eth1; ip -n ea addr add 10.3.0.1/24 dev dvtest; ip -n ea route add 10.1.0.5 via 10.3.0.2
ip -n g route add 198.51.100.0/24 via 10.3.0.1`)
	if !answers(c, 100_000) {
		t.Fatal("no answer through the tunnel")
	}
	all, err = a.Metered(ctx, nil)
	w.ok(err)
	if len(all) != 2 || hairpin(all[0], false) < 200_000 || all[0].To.RouterTunnel < 100_000 || all[0].From.TunnelRouter < 100_000 {
		t.Errorf("a guest behind a tunnel: %+v", all)
	}
	w.sh("ip -n ea route del 10.1.0.5; ip -n ea link del dvtest")
	w.ok(a.Remove(ctx, owner, driver.RoleMeter))
	w.unchanged("ea", before)
}

func hairpin(t driver.AddressTraffic, extended bool) drover.Bytes {
	to, from := t.Hairpin(extended)
	return to + from
}

// TestMeterRouted: what an edge gets from its router for a VM that was routed
// away goes back there, and is counted apart from what neighbours send.
func TestMeterRouted(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	a := w.open("ea")
	w.ok(a.Meter(ctx, owner, both))
	w.ok(a.Elsewhere(ctx, owner, both, "br-web"))
	w.sh("ip -n ea link set p-g down")
	// Nobody answers: the router sends all of it back here, four times.
	const ping = "ping -q -c 1 -s 972 -W 1 "
	if w.succeeds("cl", ping+"-t 8 10.1.0.5") || w.succeeds("n", ping+"-t 2 10.1.0.5") {
		t.Fatal("somebody answers")
	}
	all, err := a.Metered(ctx, both)
	w.ok(err)
	if len(all) != 2 || all[0].To.RouterRouter < 3000 || all[0].To.BridgeRouter != 1000 || all[0].Neighbors() != 1000 ||
		hairpin(all[0], false) != all[0].To.RouterRouter || all[0].For[0] != (driver.MeteredFor{Owner: owner, Role: driver.RoleElsewhere}) {
		t.Errorf("%+v", all)
	}
}

// TestSessions: what is reported of a session is true.
func TestSessions(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.echo("g")
	a := w.open("ea")
	w.ok(a.Watch(ctx, owner, both))
	c, err := w.dial("cl", "tcp", "[2001:db8:1::5]:7")
	w.ok(err)
	if !answers(c, 10_000) {
		t.Fatal("no answer")
	}
	all, err := a.Sessions(ctx, both)
	w.ok(err)
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	if len(all) != 1 {
		t.Fatalf("%+v, want one session", all)
	}
	s := all[0]
	if s.Address != netip.AddrPortFrom(guest6, 7) || s.Peer != local || s.Outgoing || s.Protocol != "tcp" || s.State != "established" || !s.Live ||
		s.Received < 10_000 || s.Sent < 10_000 || s.Expires < time.Minute || s.Idle > time.Minute || s.Age <= 0 || s.Age > time.Minute {
		t.Errorf("%+v", s)
	}
	if same, err := a.Sessions(ctx, []netip.Addr{local.Addr()}); err != nil || len(same) != 1 || !same[0].Outgoing || same[0].Address != local || same[0].Sent != s.Received {
		t.Errorf("from the other end: %+v, %v", same, err)
	}
	c.Close()
	for range 100 {
		if all, err = a.Sessions(ctx, both); err == nil && len(all) == 1 && !all[0].Live {
			break
		}
		w.ok(sleep(ctx, 20*time.Millisecond))
	}
	if len(all) != 1 || all[0].Live {
		t.Errorf("a session that has ended: %+v", all)
	}
}
