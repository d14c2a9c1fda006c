package bgp

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
)

// has waits until the router's kernel has exactly these routes.
func (r *router) has(want map[netip.Prefix]netip.Addr) {
	r.t.Helper()
	eventually(r.t, func() string {
		got := r.table()
		if maps.Equal(got, want) {
			return ""
		}
		return fmt.Sprintf("the router has %v, want %v", got, want)
	})
}

// via are the routes of the test's VM through an edge.
func via(l link) map[netip.Prefix]netip.Addr {
	return map[netip.Prefix]netip.Addr{web4: l.edge, web6: l.edge6}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	cfg := r.config(0, t.TempDir())
	before := r.edges[0].run("ip route; ip -6 route")
	drivertest.Routes(t, drivertest.RoutesSetup{
		Open: func(t *testing.T) driver.Routes {
			s, err := Open(slog.New(slog.DiscardHandler), cfg)
			must(t, err)
			return s
		},
		Table: func(*testing.T) map[netip.Prefix]netip.Addr { return r.table() },
		Session: func(_ *testing.T, up bool) {
			no := map[bool]string{true: "no "}[up]
			r.run("vtysh -c 'configure terminal' -c 'router bgp 65000' -c '" + no + "neighbor 10.91.1.2 shutdown'")
		},
		NextHop4: links[0].edge, NextHop6: links[0].edge6,
	})
	if after := r.edges[0].run("ip route; ip -6 route"); after != before {
		t.Errorf("the edge's own routes were\n%s\nand are\n%s", before, after)
	}
}

// TestThereAndBack: an address goes from edge A to edge B and back again.
func TestThereAndBack(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	a, b := open(t, r.config(0, t.TempDir())), open(t, r.config(1, t.TempDir()))
	r.noTransit(b)
	must(t, a.Announce(t.Context(), web, web4, web6))
	r.has(via(links[0]))
	here, there := a, b
	for i := range 4 {
		must(t, there.Announce(t.Context(), web, web4, web6))
		must(t, here.Withdraw(t.Context(), web, web4, web6))
		here, there = there, here
		r.has(via(links[(i+1)%2]))
	}
	// Each marks its own, by the kind of community that fits its AS.
	for _, w := range []struct {
		s    *Speaker
		mark string
	}{{a, "Community: 65001:215"}, {b, "Large Community: 4200000002:215:0"}} {
		must(t, a.Withdraw(t.Context(), web, web4))
		must(t, b.Withdraw(t.Context(), web, web4))
		must(t, w.s.Announce(t.Context(), web, web4))
		eventually(t, func() string {
			said := r.run("vtysh -c 'show bgp ipv4 unicast " + web4.String() + "'")
			if strings.Contains(said, w.mark) {
				return ""
			}
			return fmt.Sprintf("no %q in %s", w.mark, said)
		})
	}
}

// noTransit checks that what the second edge has learnt of the other router
// does not leave for the first, nor the other way round.
func (r *router) noTransit(s *Speaker) {
	r.t.Helper()
	eventually(r.t, func() string {
		said, _ := r.try("vtysh --vty_socket /run/frr/other -d bgpd -c 'show bgp ipv4 unicast neighbors fd91:2::2 advertised-routes'")
		if strings.Contains(said, "10.91.0.0/16") {
			return ""
		}
		return "the other router has not sent its own route: " + said
	})
	// A route of ours that is sent after it has come after it, too.
	must(r.t, s.Announce(r.t.Context(), web, web4))
	r.has(map[netip.Prefix]netip.Addr{web4: links[1].edge})
	said := r.run("vtysh -c 'show bgp ipv4 unicast neighbors 10.91.2.2 routes'")
	if !strings.Contains(said, "Displayed  1 routes") {
		r.t.Errorf("the edge sends more than its own: %s", said)
	}
	list, err := s.Neighbors(r.t.Context())
	must(r.t, err)
	for _, n := range list {
		if n.Advertised != 1 {
			r.t.Errorf("%+v: want the edge's own route alone", n)
		}
	}
	must(r.t, s.Withdraw(r.t.Context(), web, web4))
	r.has(map[netip.Prefix]netip.Addr{})
}

// watch notes which routes the router's kernel loses until the end is called,
// which says which.
func (r *router) watch() (end func() string) {
	r.run("ip monitor route >/run/frr/monitor 2>&1 & echo $! >/run/frr/monitor.pid")
	probe := func() {
		r.run("ip route add blackhole 203.0.113.99; ip route del blackhole 203.0.113.99")
		eventually(r.t, func() string { // it is listening, and has read all before
			said := r.run("cat /run/frr/monitor")
			if strings.Contains(said, "Deleted blackhole 203.0.113.99") {
				return ""
			}
			return "ip monitor says " + said
		})
	}
	eventually(r.t, func() string {
		r.run("ip route add blackhole 203.0.113.98; ip route del blackhole 203.0.113.98")
		if strings.Contains(r.run("cat /run/frr/monitor"), "203.0.113.98") {
			return ""
		}
		return "ip monitor says nothing"
	})
	return func() string {
		probe()
		r.run("kill $(cat /run/frr/monitor.pid)")
		var lost []string
		for line := range strings.Lines(r.run("cat /run/frr/monitor")) {
			if strings.HasPrefix(line, "Deleted ") && !strings.Contains(line, "203.0.113.") {
				lost = append(lost, strings.TrimSpace(line))
			}
		}
		return strings.Join(lost, "\n")
	}
}

// child is the process id of a speaker's child.
func (r *router) child(i int) int {
	r.t.Helper()
	var pid int
	eventually(r.t, func() string {
		inode, err := os.Readlink(r.edges[i].namespace())
		must(r.t, err)
		entries, err := os.ReadDir("/proc")
		must(r.t, err)
		for _, e := range entries {
			n, err := strconv.Atoi(e.Name())
			if err != nil || n == r.edges[i].cmd.Process.Pid {
				continue
			}
			ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n))
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", n))
			if self, _ := os.Executable(); ns == inode && exe == self {
				pid = n
				return ""
			}
		}
		return "no child"
	})
	return pid
}

// TestChildKilled: another child is started, announces everything, and the
// router has not dropped a route meanwhile.
func TestChildKilled(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	s := open(t, r.config(0, t.TempDir()))
	must(t, s.Announce(t.Context(), web, web4, web6))
	r.has(via(links[0]))
	end := r.watch()
	first := r.child(0)
	must(t, syscall.Kill(first, syscall.SIGKILL))
	fault(t, s, 0, "killed")
	wantKind(t, s.Announce(t.Context(), web, web4), drover.Unavailable)
	waitEstablished(t, s)
	if second := r.child(0); second == first {
		t.Fatalf("the child is still %d", second)
	}
	// Told again in the new session, after which the router drops what it
	// was not told.
	must(t, s.Announce(t.Context(), web, web4, web6))
	r.flushed()
	r.has(via(links[0]))
	if lost := end(); lost != "" {
		t.Errorf("the router dropped\n%s", lost)
	}
}

// flushed waits until the router has had the end of the table from the first
// edge's new session, upon which it removes stale routes.
func (r *router) flushed() {
	r.t.Helper()
	eventually(r.t, func() string {
		said := r.run("vtysh -c 'show bgp neighbors 10.91.1.2'")
		if strings.Contains(said, "End-of-RIB received: IPv4 Unicast, IPv6 Unicast") {
			return ""
		}
		return said
	})
}

// TestReopened: a restart of the agent leaves the router's routes alone, but
// for those that were withdrawn without a session.
func TestReopened(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	cfg := r.config(0, t.TempDir())
	s := open(t, cfg)
	gone := netip.MustParsePrefix("192.0.2.99/32")
	must(t, s.Announce(t.Context(), web, web4, web6, gone))
	want := via(links[0])
	want[gone] = links[0].edge
	r.has(want)
	end := r.watch()
	must(t, s.Close())
	r.has(want)
	s, err := Open(slog.New(slog.DiscardHandler), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	wantKind(t, s.Withdraw(t.Context(), web, gone), drover.Unavailable)
	waitEstablished(t, s)
	r.has(via(links[0]))
	r.flushed()
	if lost := end(); !strings.HasPrefix(lost, "Deleted 192.0.2.99 ") || strings.Contains(lost, "\n") {
		t.Errorf("the router dropped %q, want 192.0.2.99 alone", lost)
	}
}

// TestRouterKilled: a router whose bgpd died learns everything again.
func TestRouterKilled(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	s := open(t, r.config(0, t.TempDir()))
	must(t, s.Announce(t.Context(), web, web4, web6))
	r.has(via(links[0]))
	r.run("kill -9 $(cat /run/frr/bgpd.pid)")
	r.has(map[netip.Prefix]netip.Addr{})
	r.start("bgpd")
	r.has(via(links[0]))
	waitEstablished(t, s)
	must(t, s.Announce(t.Context(), web, web4, web6))
}

// TestRefusedSessions: what keeps a session from coming up is said.
func TestRefusedSessions(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	for _, c := range []struct {
		name, fault string
		change      func(*Config)
	}{
		{"another password", "timeout", func(c *Config) { c.Neighbors = []Neighbor{{Address: links[0].router, AS: routerAS, Password: "wrong"}} }},
		{"another AS of ours", "refuses the session", func(c *Config) { c.AS = 65009 }},
		{"another AS of the router's", "bad peer as", func(c *Config) {
			c.Neighbors = []Neighbor{{Address: links[0].router, AS: 65008, Password: password}}
		}},
		{"not known there", "may not know the edge", func(c *Config) {
			c.Neighbors = []Neighbor{{Address: links[0].router6, AS: otherAS, Port: otherPort}}
		}},
		{"no router there", "connection refused", func(c *Config) {
			c.Neighbors = []Neighbor{{Address: links[0].router, AS: routerAS, Port: 1}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := r.config(0, t.TempDir())
			c.change(&cfg)
			s, err := Open(slog.New(slog.DiscardHandler), cfg)
			must(t, err)
			defer func() { must(t, s.Close()) }()
			fault(t, s, 0, c.fault)
			wantKind(t, s.Announce(t.Context(), web, web4), drover.Unavailable)
		})
	}
}

// TestBFD: a path that swallows everything is found dead long before the hold
// time is over.
func TestBFD(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	r.start("bfdd")
	r.run("vtysh -c 'configure terminal' -c 'router bgp 65000' -c 'neighbor 10.91.1.2 bfd' -c 'neighbor 10.91.1.2 bfd 3 100 100' -c 'neighbor 10.91.1.2 timers 600 1800'")
	cfg := r.config(0, t.TempDir())
	cfg.Hold, cfg.BFD = 1800*time.Second, BFD{Interval: 100 * time.Millisecond}
	s := open(t, cfg)
	// The router resets its end of BFD when the session comes up, and with it
	// the session, once: the route may have to wait for the next.
	if err := s.Announce(t.Context(), web, web4, web6); err != nil {
		wantKind(t, err, drover.Unavailable)
	}
	r.has(via(links[0]))
	eventually(t, func() string {
		said := r.run("vtysh -c 'show bfd peers'")
		if strings.Contains(said, "Status: up") {
			return ""
		}
		return said
	})
	r.edges[0].run("nft add table inet cut && nft add chain inet cut in '{ type filter hook input priority 0; policy drop; }' && nft add chain inet cut out '{ type filter hook output priority 0; policy drop; }'")
	r.has(map[netip.Prefix]netip.Addr{})
	fault(t, s, 0, "")
	r.edges[0].run("nft delete table inet cut")
	r.has(via(links[0]))
}
