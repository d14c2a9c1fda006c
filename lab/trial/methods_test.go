package trial_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

// methodTrial is the lab, whose segment blue exists at two sites with nothing between
// the two.
type methodTrial struct{ *routedTrial }

// movedAddresses are those of sheep1, as routers have them when they are
// announced, and as a client pings them.
var movedAddresses = []string{"10.50.0.11/32", "fd00:50::11/128"}

// testMethods moves a guest between sites whose segments are not joined, by each
// method that keeps its addresses, and home again. A client outside keeps its
// sessions open and reaches it in both families, a neighbour in its old site's
// segment too; routers and edges have what its place needs, and nothing else.
func testMethods(r *routedTrial) {
	// A neighbour in the guest's segment, at home.
	if _, err := r.Exec(r.t.Context(), "n1", "ip", "addr", "add", "10.50.0.201/24", "dev", "br-blue"); err != nil {
		r.t.Fatal(err)
	}
	for _, sub := range []struct {
		name string
		long bool
		run  func(*methodTrial)
	}{
		{"preflight", false, (*methodTrial).preflight},
		{"route", false, func(m *methodTrial) { m.outAndBack([]string{"route"}, []string{"route"}) }},
		{"stretch", false, func(m *methodTrial) { m.outAndBack([]string{"stretch"}, []string{"stretch"}) }},
		{"local egress", false, func(m *methodTrial) { m.outAndBack([]string{"stretch", "--local-egress"}, []string{"route"}) }},
		// What is new about it, after these, is the change of method, which the executor's campaigns have.
		{"stretch home of a routed one", true, func(m *methodTrial) { m.outAndBack([]string{"route"}, []string{"stretch"}) }},
		{"router away", false, (*methodTrial).routerAway},
	} {
		r.t.Run(sub.name, func(t *testing.T) {
			if sub.long && !*soak {
				t.Skip("another out and back: with -soak")
			}
			here := *r
			here.t = t
			sub.run(&methodTrial{&here})
		})
	}
}

// outAndBack moves sheep1 to south and home again.
func (m *methodTrial) outAndBack(there, back []string) {
	guest := guestOf(m.t, m.Lab, "sheep1")
	defer guest.HTTP.CloseIdleConnections() // each is a session, which other trials count
	ctx := timeout(m.t, 5*time.Minute)
	load := work(m.t, ctx, guest, 1e6)
	m.move("south", there[0], there[1:]...)
	m.reached()
	m.standing(true, there[0] == "stretch", there[0] == "route" || slices.Contains(there, "--local-egress"))
	if there[0] == "stretch" {
		m.detour(!slices.Contains(there, "--local-egress"))
	}
	m.move("north", back[0], back[1:]...)
	m.reached()
	m.standing(false, false, false)
	intact(m.t, ctx, guest, load)
}

// move moves sheep1, and expects that its users have noticed little.
func (m *methodTrial) move(to, method string, flags ...string) {
	m.t.Helper()
	mv, err := m.Move(timeout(m.t, 2*time.Minute), "sheep1", to, append([]string{"--method", method}, flags...)...)
	if err != nil {
		m.t.Fatal(err)
	}
	f := mv.Measured
	switch {
	case string(mv.Method) != method || mv.To.Site != to:
		m.t.Errorf("moved by %s to %s", mv.Method, mv.To)
	case f.Sessions == nil || f.SessionsLost == nil || f.OutageMillis == nil || f.PauseMillis == nil:
		m.t.Errorf("by %s to %s: not measured: %+v", method, to, f)
	case *f.Sessions == 0 || *f.SessionsLost != 0:
		m.t.Errorf("by %s to %s: %d of %d sessions lost", method, to, *f.SessionsLost, *f.Sessions)
	default:
		m.t.Logf("by %s to %s: pause %.0f ms, outage %.0f ms", method, to, *f.PauseMillis, *f.OutageMillis)
	}
	detour := method == "stretch" && to == "south" && len(flags) == 0
	if f.HairpinBPS == nil || f.ExtraRTT == nil || f.RemoteIOBPS == nil || (*f.HairpinBPS > 0) != detour || *f.RemoteIOBPS != 0 {
		m.t.Errorf("by %s to %s: not as it should be: trombone %v, extra round trip %v, disks left behind %v", method, to, f.HairpinBPS, f.ExtraRTT, f.RemoteIOBPS)
	} else {
		m.t.Logf("by %s to %s: trombone %s, extra round trip %.1f ms", method, to, drover.BitRate(*f.HairpinBPS), *f.ExtraRTT)
	}
}

// reached pings sheep1 from the client outside, and from a neighbour at home.
func (m *methodTrial) reached() {
	m.t.Helper()
	for _, a := range movedAddresses {
		address, _, _ := strings.Cut(a, "/")
		if out, err := m.shell("c1", "ping -c 3 -i 0.3 -W 3 "+address); err != nil {
			m.t.Errorf("the client does not reach %s: %v %s", address, err, out)
		}
	}
	// A guest that was routed away goes on sending to the MAC that it has in mind
	// for a neighbour, until it doubts that: up to 45 s by Linux's defaults, and 8
	// more to find out.
	began := time.Now()
	m.within(90*time.Second, func() error {
		out, err := m.shell("n1", "ping -c 1 -W 1 10.50.0.11; e=$?; ip neigh show 10.50.0.11 dev br-blue; exit $e")
		if err != nil {
			return fmt.Errorf("a neighbour does not reach 10.50.0.11: %w %s", err, out)
		}
		return nil
	})
	m.t.Logf("a neighbour reaches it after %s", time.Since(began).Round(time.Second))
}

// standing looks at routers and edges: whether something has to stand for a VM
// that is away, its segment extended, its addresses announced.
func (m *methodTrial) standing(away, extended, announced bool) {
	m.t.Helper()
	for _, router := range []string{"north-router", "south-router", "west-router"} {
		m.soon(func() error {
			out, err := m.shell(router, "vtysh -c 'show ip route' -c 'show ipv6 route'")
			for _, a := range movedAddresses {
				if strings.Contains(out, a) != announced {
					err = errors.Join(err, fmt.Errorf("%s has %s: %v, want %v", router, a, !announced, announced))
				}
			}
			return err
		})
	}
	m.tidy()
	// And by the machines' own word.
	for _, edge := range []string{"edge-north", "edge-south", "edge-west"} {
		out, err := m.shell(edge, `ip -o link show | grep -o 'dvx[0-9]*'; nft list tables | grep drover_vxlan; true`)
		if want := extended && edge != "edge-west"; err != nil || (out != "") != want {
			m.t.Errorf("%s has of tunnels %q, error %v, want some: %v", edge, out, err, want)
		}
		out, err = m.shell(edge, `ip route show proto 215; ip -6 route show proto 215; ip neigh show proxy; ip -6 neigh show proxy; true`)
		if err != nil || !away && out != "" {
			m.t.Errorf("%s still has, error %v:\n%s", edge, err, out)
		}
	}
}

// preflight takes route where nothing else is asked for, and says no to what
// would leave the guest unreachable.
func (m *methodTrial) preflight() {
	// The guest is asked for its addresses beside everything else.
	m.soon(func() error { return m.Drover(timeout(m.t, time.Minute), nil, "preflight", "sheep1", "--to", "south") })
	for _, c := range []struct {
		flags []string
		want  drover.Method
		fault string
	}{
		{nil, drover.Route, ""},
		{[]string{"--method", "stretch"}, drover.Stretch, ""},
		{[]string{"--method", "live"}, drover.Live, "segments"},
		{[]string{"--method", "route", "--address", "192.0.2.1"}, drover.Route, "addresses"},
	} {
		var p drover.Preflight
		err := m.Drover(timeout(m.t, time.Minute), &p, append([]string{"preflight", "sheep1", "--to", "south"}, c.flags...)...)
		bad := slices.IndexFunc(p.Checks, func(c drover.Check) bool { return !c.OK && !c.Warning })
		switch {
		case p.Method != c.want || p.OK != (c.fault == ""):
			m.t.Errorf("%v: by %s, OK %v, error %v: %+v", c.flags, p.Method, p.OK, err, p.Checks)
		case c.fault != "" && (bad < 0 || p.Checks[bad].Name != c.fault || p.Checks[bad].Fix == ""):
			m.t.Errorf("%v: %+v, want the finding %s with a fix", c.flags, p.Checks, c.fault)
		}
	}
}

// session changes the session with south's edge at its router.
func (m *methodTrial) session(line string) {
	m.t.Helper()
	r := m.services("south").Router
	if out, err := m.shell("south-router", fmt.Sprintf("vtysh -c 'configure terminal' -c 'router bgp %d' -c '"+line+"'", r.RouterAS, r.Address)); err != nil {
		m.t.Fatalf("%v: %s", err, out)
	}
}

// routerAway: an edge whose router is gone could announce nothing, so a move by
// route does not begin.
func (m *methodTrial) routerAway() {
	m.session("neighbor %s shutdown")
	m.soon(func() error {
		var p drover.Preflight
		_ = m.Drover(timeout(m.t, time.Minute), &p, "preflight", "sheep1", "--to", "south", "--method", "route")
		for _, c := range p.Checks {
			if c.Name == "bgp" && !c.OK && c.Fix != "" {
				return nil
			}
		}
		return fmt.Errorf("the preflight has %+v", p.Checks)
	})
	_, err := m.Move(timeout(m.t, time.Minute), "sheep1", "south", "--method", "route")
	wantStatus(m.t, err, 3)
	m.session("no neighbor %s shutdown")
	m.soon(func() error {
		var p drover.Preflight
		return m.Drover(timeout(m.t, time.Minute), &p, "preflight", "sheep1", "--to", "south", "--method", "route")
	})
	m.standing(false, false, false)
}
