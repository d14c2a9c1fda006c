package network_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/network"
)

var blue = drover.Segment{
	Name: "blue", Home: "north", Sites: []string{"north", "south", "west"}, Bridge: "br-blue",
	Subnets:  []netip.Prefix{netip.MustParsePrefix("10.50.0.0/24"), netip.MustParsePrefix("fd00:50::/64")},
	Gateways: []netip.Addr{netip.MustParseAddr("10.50.0.1"), netip.MustParseAddr("fd00:50::1")}, GatewayMAC: "02:00:00:00:00:01",
}

var edges = []network.Edge{{Site: "north", Host: "edge-north"}, {Site: "south", Host: "edge-south"}, {Site: "west", Host: "edge-west"}}

func vm(n int) drover.VM {
	return drover.VM{
		Name: fmt.Sprintf("vm%d", n), UUID: fmt.Sprintf("uuid%d", n), Site: "north", State: drover.VMRunning,
		NICs: []drover.NIC{{MAC: fmt.Sprintf("52:54:00:00:00:%02x", n), Network: "br-blue", Addresses: []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.50.0.%d", 10+n)), netip.MustParseAddr(fmt.Sprintf("fd00:50::%d", n)), netip.MustParseAddr("fe80::1"),
		}}},
	}
}

// model is edges as far as a plan changes them.
type model struct {
	extended map[string]map[string][]string          // site, owner → sites
	stations map[string]map[string]drover.EdgeOp     // site, MAC
	placed   map[string]map[string]map[string]string // site, owner, address → "here" or "elsewhere"
	rest     map[string]map[string]bool              // site, owner
	routes   map[string]map[string]string            // site, address → owner
	metered  map[string]map[string]bool              // site, owner
}

func newModel() *model {
	m := &model{
		map[string]map[string][]string{},
		map[string]map[string]drover.EdgeOp{},
		map[string]map[string]map[string]string{},
		map[string]map[string]bool{},
		map[string]map[string]string{},
		map[string]map[string]bool{},
	}
	for _, e := range edges {
		m.extended[e.Site], m.stations[e.Site], m.placed[e.Site] = map[string][]string{}, map[string]drover.EdgeOp{}, map[string]map[string]string{}
		m.rest[e.Site], m.routes[e.Site], m.metered[e.Site] = map[string]bool{}, map[string]string{}, map[string]bool{}
	}
	return m
}

func (m *model) do(t network.Task) error {
	for _, op := range t.Ops {
		if err := op.Validate(); err != nil {
			return err
		}
		if err := m.one(t.Site, op); err != nil {
			return fmt.Errorf("%s: %s: %w", t.Site, op.Do, err)
		}
	}
	return nil
}

func (m *model) one(site string, op drover.EdgeOp) error {
	place := func(how string) {
		if m.placed[site][op.Owner] == nil {
			m.placed[site][op.Owner] = map[string]string{}
		}
		for _, a := range op.Addresses {
			m.placed[site][op.Owner][a.String()] = how
		}
	}
	switch op.Do {
	case drover.ExtendSegment:
		if slices.Contains(op.Sites, site) {
			return fmt.Errorf("extends to itself: %v", op.Sites)
		}
		m.extended[site][op.Owner] = op.Sites
	case drover.RetractSegment:
		delete(m.extended[site], op.Owner)
		if len(m.extended[site]) == 0 {
			clear(m.stations[site])
		}
	case drover.SetStation:
		if len(m.extended[site]) == 0 {
			return fmt.Errorf("%s is not extended", op.Segment)
		}
		for _, s := range []string{op.Site, op.Next} {
			if s != "" && !m.tunnel(site, s) {
				return fmt.Errorf("station at %s, to which it is not extended", s)
			}
		}
		m.stations[site][op.MAC] = op
	case drover.DropStation:
		delete(m.stations[site], op.MAC)
	case drover.DeliverHere:
		place("here")
	case drover.Elsewhere:
		place("elsewhere")
	case drover.ProxyRest:
		m.rest[site][op.Owner] = true
	case drover.ForgetAddresses:
		delete(m.placed[site], op.Owner)
		delete(m.rest[site], op.Owner)
		delete(m.metered[site], op.Owner)
	case drover.MeterTraffic:
		m.metered[site][op.Owner] = true
	case drover.AnnounceRoutes:
		for _, a := range op.Addresses {
			m.routes[site][a.String()] = op.Owner
		}
	case drover.WithdrawRoutes:
		for _, a := range op.Addresses {
			delete(m.routes[site], a.String())
		}
	default:
		return fmt.Errorf("unexpected")
	}
	return nil
}

func (m *model) tunnel(a, b string) bool {
	for _, sites := range m.extended[a] {
		if slices.Contains(sites, b) {
			return true
		}
	}
	return false
}

func (m *model) world(vms []drover.VM, uuid string) network.World {
	w := network.World{Segments: []drover.Segment{blue}, Edges: edges, VMs: vms}
	for _, e := range edges {
		x := network.Extent{Site: e.Site, Segment: "blue"}
		for o := range m.extended[e.Site] {
			x.Owners = append(x.Owners, o)
		}
		w.Extended = append(w.Extended, x)
		o := network.Owner(uuid)
		s := network.Standing{Site: e.Site, Addresses: m.rest[e.Site][o] || len(m.placed[e.Site][o]) > 0}
		for _, owner := range m.routes[e.Site] {
			s.Routes = s.Routes || owner == o
		}
		w.Standing = append(w.Standing, s)
	}
	return w
}

// follow returns the site at which a packet ends that a router has for the
// address, or why it does not end.
func (m *model) follow(a netip.Addr, mac string) string {
	at := blue.Home
	for _, e := range edges {
		if m.routes[e.Site][a.String()] != "" {
			at = e.Site
		}
	}
	for _, of := range m.placed[at] {
		switch of[a.String()] {
		case "here":
			return m.frame(at, mac)
		case "elsewhere":
			return "nowhere: the edge of " + at + " sends it back to its router"
		}
	}
	if at != blue.Home {
		return "nowhere: announced by " + at + ", which does not deliver it"
	}
	return m.frame(at, mac)
}

// frame returns the site at which a frame to the station ends.
func (m *model) frame(from, mac string) string {
	op, known := m.stations[from][mac]
	switch {
	case len(m.extended[from]) == 0 || known && op.Site == "":
		return from
	case !known:
		return "nowhere: the tunnels of " + from + " do not know " + mac
	case !m.tunnel(from, op.Site) || !m.tunnel(op.Site, from):
		return fmt.Sprintf("nowhere: %s and %s are not joined", from, op.Site)
	}
	return op.Site
}

// wrong says what is not as it should be for the VM.
func (m *model) wrong(v drover.VM, how drover.Method, local bool) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	o, n := network.Owner(v.UUID), v.NICs[0]
	home := v.Site == blue.Home
	for _, a := range n.Addresses[:2] {
		if at := m.follow(a, n.MAC); at != v.Site {
			say("what is for %v ends %s, not at %s", a, at, v.Site)
		}
		for _, e := range edges {
			announced := m.routes[e.Site][a.String()] == o
			if want := !home && e.Site == v.Site && (how == drover.Route || local); announced != want {
				say("%v announced at %s: %v, want %v", a, e.Site, announced, want)
			}
		}
	}
	for _, e := range edges {
		_, extended := m.extended[e.Site][o]
		here, elsewhere := 0, 0
		for _, p := range m.placed[e.Site][o] {
			if p == "here" {
				here++
			} else {
				elsewhere++
			}
		}
		at := e.Site == v.Site && !home
		if metered := m.metered[e.Site][o]; metered != (!home && (e.Site == blue.Home || at && how == drover.Stretch)) {
			say("metered at %s: %v", e.Site, metered)
		}
		if rest := m.rest[e.Site][o]; rest != (at && how == drover.Route) {
			say("rest answered for at %s: %v", e.Site, rest)
		}
		if (here > 0) != at {
			say("%d addresses delivered at %s", here, e.Site)
		}
		if (elsewhere > 0) != (!home && how == drover.Route && e.Site == blue.Home) {
			say("%d addresses said to be elsewhere at %s", elsewhere, e.Site)
		}
		if must := !home && how == drover.Stretch && (at || e.Site == blue.Home); must && !extended {
			say("not extended at %s", e.Site)
		}
		if extended && (home || how == drover.Route) {
			say("extended at %s", e.Site)
		}
	}
	return wrong
}

// TestAnyMoves moves VMs in any order by both methods; after each move every VM
// is reached where it is, nothing stands that no VM needs, and a move that is
// undone leaves everything as it was.
func TestAnyMoves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		vms := []drover.VM{vm(1), vm(2), vm(3)}
		how := []drover.Method{"", "", ""}
		local := []bool{false, false, false}
		var story []string
		move := func(i int, to string, method drover.Method, egress, undo bool) {
			story = append(story, fmt.Sprintf("vm%d %s %s to %s egress %v undo %v", i+1, vms[i].Site, method, to, egress, undo))
			wish := network.Wish{VM: vms[i], From: vms[i].Site, To: to, Method: method, LocalEgress: egress}
			p, err := network.Make(wish, m.world(vms, vms[i].UUID))
			if err != nil {
				t.Fatal(err)
			}
			lists := [][]network.Task{p.Extend, p.Stations, {p.Target}, {p.Source}, {p.Target, p.Source}, p.Settle, p.Retract}
			if undo {
				lists = [][]network.Task{p.Extend, p.Stations, p.Unstations, p.Unextend, p.Unextend}
			}
			before := fmt.Sprintf("%+v", m.withoutStations())
			for _, list := range lists {
				for _, task := range list {
					if err := m.do(task); err != nil {
						t.Fatalf("%s\n%v", strings.Join(story, "\n"), err)
					}
				}
			}
			if after := fmt.Sprintf("%+v", m.withoutStations()); undo && before != after {
				t.Fatalf("%s\nbefore %s\nafter  %s", strings.Join(story, "\n"), before, after)
			}
			if !undo {
				vms[i].Site, how[i], local[i] = to, method, egress && method == drover.Stretch
			}
			for k := range vms {
				if wrong := m.wrong(vms[k], how[k], local[k]); len(wrong) > 0 {
					t.Fatalf("%s\nvm%d: %s\n%+v", strings.Join(story, "\n"), k+1, strings.Join(wrong, "\n"), m)
				}
			}
		}
		for range rapid.IntRange(1, 12).Draw(t, "moves") {
			i := rapid.IntRange(0, 2).Draw(t, "vm")
			to := rapid.SampledFrom([]string{"north", "south", "west"}).Draw(t, "to")
			method := rapid.SampledFrom([]drover.Method{drover.Stretch, drover.Route}).Draw(t, "method")
			egress, undo := rapid.Bool().Draw(t, "egress"), rapid.IntRange(0, 3).Draw(t, "undo") == 0
			if to != vms[i].Site {
				move(i, to, method, egress, undo)
			}
		}
		for i := range vms {
			if vms[i].Site != "north" {
				move(i, "north", drover.Route, false, false)
			}
		}
		if diff := cmp.Diff(newModel(), m, cmp.AllowUnexported(model{}), ignoreEmpty); diff != "" {
			t.Fatalf("%s\nall are home, but: %s", strings.Join(story, "\n"), diff)
		}
	})
}

// ignoreEmpty takes an owner without anything for none.
var ignoreEmpty = cmp.FilterValues(func(a, b any) bool { return fmt.Sprint(a) == "map[]" && fmt.Sprint(b) == "map[]" }, cmp.Ignore())

// withoutStations is the model without what an extension takes with it.
func (m *model) withoutStations() model {
	c := *m
	c.stations = nil
	return c
}

// A plan as a person reads it.
func TestPlanOfARoute(t *testing.T) {
	v := vm(1)
	p, err := network.Make(network.Wish{VM: v, From: "north", To: "south", Method: drover.Route}, newModel().world([]drover.VM{v}, v.UUID))
	if err != nil {
		t.Fatal(err)
	}
	want := `extend edge-south: proxy-rest
target edge-south: deliver-here announce-routes
source edge-north: elsewhere
settle edge-north: meter-traffic
`
	if got := show(p); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// A guest that leaves its segment's home is told of those whose MACs it may
// remember: not of itself, nor of those who are where it goes.
func TestPlanRemembers(t *testing.T) {
	vms := []drover.VM{vm(1), vm(2), vm(3)}
	vms[2].Site = "south"
	elsewhere := vm(4)
	elsewhere.NICs[0].Network = "br-green"
	vms = append(vms, elsewhere)
	for n := range 200 {
		vms = append(vms, vm(5+n))
	}
	remembered := func(wish network.Wish, vms []drover.VM) []netip.Addr {
		p, err := network.Make(wish, newModel().world(vms, wish.VM.UUID))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(p.Target.Ops, func(op drover.EdgeOp) bool { return op.Do == drover.DeliverHere })
		if err := p.Target.Ops[i].Validate(); err != nil {
			t.Error(err)
		}
		return p.Target.Ops[i].Neighbors
	}
	away := network.Wish{VM: vms[0], From: "north", To: "south", Method: drover.Route}
	want := []netip.Addr{netip.MustParseAddr("10.50.0.12"), netip.MustParseAddr("fd00:50::2")}
	if got := remembered(away, vms[:4]); !slices.Equal(got, want) {
		t.Errorf("told of %v, want %v", got, want)
	}
	if n := len(remembered(away, vms)); n != 256 {
		t.Errorf("told of %d of some 400 addresses, want 256", n)
	}
	home := vms[0]
	home.Site = "south"
	if got := remembered(network.Wish{VM: home, From: "south", To: "north", Method: drover.Route}, vms[:4]); got != nil {
		t.Errorf("at home it is told of %v", got)
	}
}

func TestPlanOfAStretch(t *testing.T) {
	m := newModel()
	vms := []drover.VM{vm(1), vm(2)}
	p, err := network.Make(network.Wish{VM: vms[0], From: "north", To: "south", Method: drover.Stretch, LocalEgress: true}, m.world(vms, "uuid1"))
	if err != nil {
		t.Fatal(err)
	}
	want := `extend edge-north: extend-segment
extend edge-south: extend-segment
stations edge-north: set-station set-station
stations edge-south: set-station set-station
target edge-south: set-station deliver-here announce-routes
source edge-north: set-station
settle edge-north: meter-traffic
settle edge-south: meter-traffic
`
	if got := show(p); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if next := p.Stations[0].Ops[1].Next; next != "south" {
		t.Errorf("north passes the VM's frames on to %q", next)
	}
}

func show(p network.Plan) string {
	var b strings.Builder
	for _, l := range []struct {
		name string
		list []network.Task
	}{{"extend", p.Extend}, {"stations", p.Stations}, {"target", []network.Task{p.Target}}, {"source", []network.Task{p.Source}}, {"settle", p.Settle}, {"retract", p.Retract}} {
		for _, t := range l.list {
			fmt.Fprintf(&b, "%s %s:", l.name, t.Host)
			for _, op := range t.Ops {
				fmt.Fprintf(&b, " %s", op.Do)
			}
			fmt.Fprintln(&b)
		}
	}
	return b.String()
}

func TestNoPlan(t *testing.T) {
	joined := blue
	joined.Joined = true
	there := blue
	there.Sites = []string{"north"}
	unknown := vm(1)
	unknown.NICs[0].Addresses = unknown.NICs[0].Addresses[2:]
	for _, c := range []struct {
		name   string
		vm     drover.VM
		seg    drover.Segment
		method drover.Method
		to     string
		want   string
	}{
		{"joined", vm(1), joined, drover.Stretch, "south", "take live"},
		{"not there", vm(1), there, drover.Route, "south", "segment blue is not at south"},
		{"no address", unknown, blue, drover.Route, "south", "guest agent"},
		{"same site", vm(1), blue, drover.Route, "north", "take live"},
		{"no edge", vm(1), blue, drover.Route, "west", "no edge"},
		{"cold", vm(1), blue, drover.Cold, "south", "needs none"},
	} {
		w := newModel().world(nil, "uuid1")
		w.Segments, w.Edges = []drover.Segment{c.seg}, edges[:2]
		_, err := network.Make(network.Wish{VM: c.vm, From: "north", To: c.to, Method: c.method}, w)
		if err == nil || !strings.Contains(err.Error(), c.want) || drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
