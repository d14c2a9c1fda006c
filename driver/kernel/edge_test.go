package kernel

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
)

// TestForeign: what is in the way and is not Drover's stays, and stops the call.
func TestForeign(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	before := w.state("ea")
	a := w.open("ea")
	for _, addr := range []string{"10.1.0.77", "2001:db8:1::77", "10.1.0.78", "2001:db8:1::78"} {
		err := a.Elsewhere(ctx, owner, []netip.Addr{netip.MustParseAddr(addr)}, "br-web")
		if drover.KindOf(err) != drover.Exists {
			t.Errorf("%s: %v, want an error of kind exists", addr, err)
		}
		w.ok(a.Remove(ctx, owner))
		w.unchanged("ea", before)
	}
	w.sh("ip -n ea link add dvold type bridge")
	if err := a.ForwardOld(ctx, owner, driver.OldForward{Addresses: both, Bridge: "br-web", To: toB, Limit: time.Hour}); drover.KindOf(err) != drover.Exists {
		t.Errorf("an interface of the name: %v, want an error of kind exists", err)
	}
	w.ok(a.Remove(ctx, owner))
	if !strings.Contains(w.sh("ip -n ea -br link show dvold"), "dvold") {
		t.Error("somebody else's interface was removed")
	}
	w.sh("ip -n ea link del dvold")
	w.unchanged("ea", before)
}

// TestMending: what was taken away behind the driver's back is missing, and
// comes back with the next call.
func TestMending(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	before := w.state("ea")
	a := w.open("ea")
	w.ok(a.Elsewhere(ctx, owner, both, "br-web"))
	w.ok(a.ForwardOld(ctx, owner, driver.OldForward{Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.6")}, Bridge: "br-web", To: toB, Limit: time.Hour}))
	for _, damage := range []string{
		"ip -n ea route del 10.1.0.5", "ip -n ea -6 route del 2001:db8:1::5", "ip -n ea neigh del proxy 10.1.0.5 dev br-web",
		"ip -n ea rule del pref 21500", "ip -n ea link del dvold", "ip netns exec ea sysctl -qw net.ipv6.conf.br-web.proxy_ndp=0",
	} {
		missing := func() (n int) {
			all, err := a.List(ctx)
			w.ok(err)
			for _, p := range all {
				if p.Missing {
					n++
				}
			}
			return n
		}
		w.sh(damage)
		if n := missing(); n != 1 {
			t.Errorf("after %s: %d are missing, want 1", damage, n)
		}
		w.ok(a.Elsewhere(ctx, owner, both, "br-web"))
		if n := missing(); n != 0 {
			t.Errorf("after %s and a repeated call: %d are missing", damage, n)
		}
	}
	w.ok(a.Remove(ctx, owner))
	w.unchanged("ea", before)
}

// TestCrash: a driver that died after it had written its lines, or before it took
// them out, leaves nothing that the next one does not find.
func TestCrash(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	before := w.state("ea")
	lines := []entry{
		{owner, driver.RoleElsewhere, hostPrefix(guest4), "br-web", netip.Addr{}, 0, false},
		{owner, driver.RoleForwardOld, hostPrefix(guest6), "br-web", toB.Remote, firstTable, false},
		{owner, driver.RoleRest, subnets[1], "br-web", netip.Addr{}, 0, false},
		{owner, driver.RoleMeter, hostPrefix(guest4), "", netip.Addr{}, 0, false},
	}
	_, err := in(t, "ea", func() (any, error) {
		o, err := readOwned()
		if err != nil {
			return nil, err
		}
		return nil, write(o, nil, lines, map[string]string{"net/ipv6/conf/br-web/proxy_ndp": "0"}, map[netip.Addr]time.Duration{guest6: time.Hour})
	})
	w.ok(err)
	a := w.open("ea")
	all, err := a.List(ctx)
	w.ok(err)
	if len(all) != len(lines) || !all[0].Missing {
		t.Errorf("List: %+v", all)
	}
	w.ok(a.Remove(ctx, owner))
	w.unchanged("ea", before)
}

// TestAnnounceLatest: what was announced of an address before it came back is
// not repeated.
func TestAnnounceLatest(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	a := w.open("ea")
	w.ok(a.Elsewhere(ctx, owner, both, "br-web"))
	w.ok(a.DeliverHere(ctx, owner, driver.Delivery{Addresses: both, Bridge: "br-web"}))
	w.sh("ip -n n neigh flush all")
	if !w.pings("n", "10.1.0.5") || !w.pings("n", "2001:db8:1::5") {
		t.Fatal("the guest does not answer its neighbour")
	}
	for _, d := range announceAgain { // beyond the last repetition
		w.ok(sleep(ctx, d))
	}
	w.ok(sleep(ctx, announceAgain[0]))
	if n := w.sh("ip -n n neigh show 10.1.0.5; ip -n n neigh show 2001:db8:1::5"); strings.Count(n, "52:54:00:00:00:05") != 2 {
		t.Errorf("the neighbour knows %s", n)
	}
}

// TestCheckFinds: what would make moves fail is found.
func TestCheckFinds(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	a := w.open("ea")
	w.sh("ip -n ea link add br-four type bridge; ip -n ea addr add 10.4.0.1/24 dev br-four; ip -n ea link set dev br-four up")
	found := func(bridge string, warnings bool) (n int) {
		all, err := a.Check(ctx, bridge)
		w.ok(err)
		for _, c := range all {
			if !c.OK && (warnings || !c.Warning) {
				n++
			}
		}
		return n
	}
	bad := func() int { return found("br-web", true) }
	if n := bad(); n != 0 {
		t.Errorf("%d findings at a good edge", n)
	}
	for i, damage := range []string{
		"ip netns exec ea sysctl -qw net.ipv4.ip_forward=0", "ip netns exec ea sysctl -qw net.ipv6.conf.all.forwarding=0",
		"ip -n ea route del default", "ip netns exec ea sysctl -qw net.ipv4.conf.all.rp_filter=1", "ip -n ea link del br-web",
	} {
		w.sh(damage)
		if n := bad(); n != i+1 {
			t.Errorf("after %s: %d findings, want %d", damage, n, i+1)
		}
		// A segment without IPv6 does not care that none is forwarded.
		if n := found("br-four", false); i < 2 && n != 1 {
			t.Errorf("after %s: %d faults of a segment of IPv4 alone, want 1", damage, n)
		}
	}
	if err := a.Elsewhere(ctx, owner, []netip.Addr{guest4}, "br-web"); drover.KindOf(err) != drover.NotFound {
		t.Errorf("without the bridge: %v", err)
	}
}

// TestAddresses shares one world: each test leaves it as it was, or the next
// one finds out.
func TestAddresses(t *testing.T) {
	w := newWorld(t)
	w.sh("ip -n ea link add br-new type bridge; ip -n ea link set dev br-new up")
	w.echo("g")
	clean := w.state("ea")
	drivertest.Addresses(t, func(t *testing.T) drivertest.Edge {
		w := edges{t}
		t.Cleanup(func() {
			d, err := New(Config{Namespace: path("ea")})
			w.ok(err)
			defer d.Close()
			ctx := context.Background() // the test's own has ended
			all, err := d.List(ctx)
			w.ok(err)
			for _, p := range all {
				w.ok(d.Remove(ctx, p.Owner))
			}
			_, err = d.Forget(ctx, both)
			w.ok(err)
			w.unchanged("ea", clean)
		})
		return drivertest.Edge{
			Open:  func(*testing.T) driver.Addresses { return w.open("ea") },
			State: func(*testing.T) string { return w.state("ea") },
			Converse: func(t *testing.T) {
				c, err := w.dial("cl", "tcp", "10.1.0.5:7")
				w.ok(err)
				t.Cleanup(func() { c.Close() })
				if !answers(c, 100) {
					t.Fatal("no answer")
				}
			},
		}
	})
}
