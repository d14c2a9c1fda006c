package drivertest

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/go-cmp/cmp"
)

// TunnelsSetup is what the conformance suite of driver.Tunnels needs to know
// of an implementation.
type TunnelsSetup struct {
	// New returns edges that reach each other's endpoints. They are closed and
	// removed by the test's cleanup.
	New func(t *testing.T, edges int) []TunnelsEdge
}

// TunnelsEdge is one edge of a mesh under test.
type TunnelsEdge struct {
	// Open starts it; opened again after Close it is the same edge.
	Open     func() (driver.Tunnels, error)
	Endpoint netip.AddrPort
	// Addresses are its mesh addresses, IPv4 and IPv6.
	Addresses []netip.Prefix
	// Reaches sends something to a mesh address and says whether an answer
	// came; it does not wait for long.
	Reaches func(to netip.Addr) bool
	// Occupy makes an interface of the same name, as somebody else would;
	// Occupied says whether it is still as it was.
	Occupy   func()
	Occupied func() bool
}

// patience is how long the suite waits for what has to come, pause how long
// between two tries.
const (
	patience = time.Minute
	pause    = 10 * time.Millisecond
)

// Tunnels runs the conformance suite of driver.Tunnels.
func Tunnels(t *testing.T, setup TunnelsSetup) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, TunnelsSetup)
	}{
		{"Mesh", tunnelsMesh},
		{"Declarative", tunnelsDeclarative},
		{"RoundTrip", tunnelsRoundTrip},
		{"BadPeers", tunnelsBadPeers},
		{"Restart", tunnelsRestart},
		{"Rotate", tunnelsRotate},
		{"Untold", tunnelsUntold},
		{"Foreign", tunnelsForeign},
		{"Closed", tunnelsClosed},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, setup) })
	}
}

// meshEdge is an edge that is open.
type meshEdge struct {
	TunnelsEdge
	driver.Tunnels
	t *testing.T
}

func openMesh(t *testing.T, setup TunnelsSetup, n int) []*meshEdge {
	t.Helper()
	var all []*meshEdge
	for _, e := range setup.New(t, n) {
		m := &meshEdge{TunnelsEdge: e, t: t}
		m.open()
		all = append(all, m)
	}
	return all
}

func (m *meshEdge) open() {
	m.t.Helper()
	tunnels, err := m.Open()
	noError(m.t, err)
	m.Tunnels = tunnels
	m.t.Cleanup(func() { noError(m.t, tunnels.Close()) })
}

func (m *meshEdge) self() driver.Mesh {
	m.t.Helper()
	self, err := m.Self(m.t.Context())
	noError(m.t, err)
	return self
}

// peer is the edge as the others are told of it.
func (m *meshEdge) peer(name string) driver.Peer {
	self := m.self()
	p := driver.Peer{Name: name, Key: self.Key, Next: self.Next, Endpoint: m.Endpoint, Keepalive: time.Second}
	for _, a := range self.Addresses {
		p.Addresses = append(p.Addresses, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
	}
	return p
}

func (m *meshEdge) reaches(other *meshEdge) {
	m.t.Helper()
	for _, a := range other.Addresses {
		for end := time.Now().Add(patience); !m.Reaches(a.Addr()); {
			if time.Now().After(end) {
				here, err := m.Peers(m.t.Context())
				there, oerr := other.Peers(m.t.Context())
				m.t.Fatalf("%v is never reached from %v\nhere: %+v %v\nthere: %+v %v", a.Addr(), m.Addresses, here, err, there, oerr)
			}
			time.Sleep(pause)
		}
	}
}

func tunnelsMesh(t *testing.T, setup TunnelsSetup) {
	edges := openMesh(t, setup, 3)
	names := []string{"north", "south", "west"}
	for i, e := range edges {
		var peers []driver.Peer
		for j := len(edges) - 1; j >= 0; j-- {
			if j != i {
				peers = append(peers, edges[j].peer(names[j]))
			}
		}
		noError(t, e.SetPeers(t.Context(), peers))
		noError(t, e.SetPeers(t.Context(), peers))
	}
	for i, e := range edges {
		for j, o := range edges {
			if i != j {
				e.reaches(o)
			}
		}
	}
	states, err := edges[0].Peers(t.Context())
	noError(t, err)
	if len(states) != 2 || states[0].Name != "south" || states[1].Name != "west" {
		t.Fatalf("peers: %+v", states)
	}
	for i, st := range states {
		if d := cmp.Diff(edges[i+1].peer(names[i+1]), st.Peer, cmp.Comparer(equal[netip.Prefix]), cmp.Comparer(equal[netip.AddrPort])); d != "" {
			t.Errorf("peer (-set +got):\n%s", d)
		}
		if age := time.Since(st.Handshake); age < -time.Minute || age > time.Hour || st.ReceivedBytes == 0 || st.SentBytes == 0 || st.Active != st.Key {
			t.Errorf("session with %s: %+v", st.Name, st)
		}
	}
}

func equal[T comparable](a, b T) bool { return a == b }

func tunnelsDeclarative(t *testing.T, setup TunnelsSetup) {
	edges := openMesh(t, setup, 2)
	a, b := edges[0], edges[1]
	noError(t, a.SetPeers(t.Context(), []driver.Peer{b.peer("b")}))
	noError(t, b.SetPeers(t.Context(), []driver.Peer{a.peer("a")}))
	a.reaches(b)
	noError(t, a.SetPeers(t.Context(), nil))
	if a.Reaches(b.Addresses[0].Addr()) {
		t.Error("a peer that is none any more is reached")
	}
	states, err := a.Peers(t.Context())
	noError(t, err)
	if len(states) != 0 {
		t.Errorf("peers: %+v", states)
	}
	// More behind a peer than its mesh addresses.
	more := b.peer("b")
	more.Addresses = append(more.Addresses, netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:7::/64"))
	noError(t, a.SetPeers(t.Context(), []driver.Peer{more}))
	noError(t, a.SetPeers(t.Context(), []driver.Peer{b.peer("b")}))
	a.reaches(b)
}

// unanswered is how long the suite waits for an answer that does not come.
const unanswered = 300 * time.Millisecond

func tunnelsRoundTrip(t *testing.T, setup TunnelsSetup) {
	edges := openMesh(t, setup, 2)
	a, b := edges[0], edges[1]
	try := func(ctx context.Context, d time.Duration, peer string) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return a.RoundTrip(ctx, peer)
	}
	_, err := try(t.Context(), patience, "b")
	volumeKind(t, err, drover.NotFound)
	six := b.peer("b")
	slices.Reverse(six.Addresses)
	for _, p := range []driver.Peer{b.peer("b"), six} {
		noError(t, a.SetPeers(t.Context(), []driver.Peer{p}))
		noError(t, b.SetPeers(t.Context(), []driver.Peer{a.peer("a")}))
		a.reaches(b)
		took, err := try(t.Context(), patience, "b")
		noError(t, err)
		if took <= 0 || took > patience {
			t.Errorf("a round trip of %v", took)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = try(ctx, patience, "b")
	volumeKind(t, err, drover.Canceled)
	noError(t, b.Close())
	_, err = try(t.Context(), unanswered, "b")
	volumeKind(t, err, drover.Unavailable)
	noError(t, a.Close())
	_, err = try(t.Context(), unanswered, "b")
	volumeKind(t, err, drover.Canceled)
}

func tunnelsBadPeers(t *testing.T, setup TunnelsSetup) {
	edges := openMesh(t, setup, 2)
	a, b := edges[0], edges[1]
	good := b.peer("b")
	noError(t, a.SetPeers(t.Context(), []driver.Peer{good}))
	noError(t, b.SetPeers(t.Context(), []driver.Peer{a.peer("a")}))
	a.reaches(b)
	other := good
	other.Name, other.Key = "c", driver.TunnelKey{7}
	for name, change := range map[string]func(p driver.Peer) []driver.Peer{
		"no name":       func(p driver.Peer) []driver.Peer { p.Name = ""; return []driver.Peer{p} },
		"no key":        func(p driver.Peer) []driver.Peer { p.Key = driver.TunnelKey{}; return []driver.Peer{p} },
		"own key":       func(p driver.Peer) []driver.Peer { p.Key = a.self().Key; return []driver.Peer{p} },
		"one key twice": func(p driver.Peer) []driver.Peer { p.Next = p.Key; return []driver.Peer{p} },
		"one name twice": func(p driver.Peer) []driver.Peer {
			o := other
			o.Name, o.Addresses = p.Name, nil
			return []driver.Peer{p, o}
		},
		"one address twice": func(p driver.Peer) []driver.Peer { return []driver.Peer{p, other} },
		"own address": func(p driver.Peer) []driver.Peer {
			p.Addresses = []netip.Prefix{netip.PrefixFrom(a.Addresses[0].Addr(), a.Addresses[0].Addr().BitLen())}
			return []driver.Peer{p}
		},
		"no address": func(p driver.Peer) []driver.Peer { p.Addresses = nil; return []driver.Peer{p} },
		"host bits":  func(p driver.Peer) []driver.Peer { p.Addresses = a.Addresses; return []driver.Peer{p} },
		"no port": func(p driver.Peer) []driver.Peer {
			p.Endpoint = netip.AddrPortFrom(p.Endpoint.Addr(), 0)
			return []driver.Peer{p}
		},
		"half seconds": func(p driver.Peer) []driver.Peer { p.Keepalive = time.Second / 2; return []driver.Peer{p} },
		"negative":     func(p driver.Peer) []driver.Peer { p.Keepalive = -time.Second; return []driver.Peer{p} },
	} {
		if err := a.SetPeers(t.Context(), change(good)); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	a.reaches(b)
}

func tunnelsRestart(t *testing.T, setup TunnelsSetup) {
	edges := openMesh(t, setup, 2)
	a, b := edges[0], edges[1]
	noError(t, a.SetPeers(t.Context(), []driver.Peer{b.peer("b")}))
	noError(t, b.SetPeers(t.Context(), []driver.Peer{a.peer("a")}))
	b.reaches(a)
	_, err := a.Rotate(t.Context())
	noError(t, err)
	before := a.self()
	noError(t, a.Close())
	if b.Reaches(a.Addresses[0].Addr()) {
		t.Error("a closed edge answers")
	}
	a.open()
	if d := cmp.Diff(before, a.self(), cmp.Comparer(equal[netip.Prefix])); d != "" {
		t.Errorf("another edge after a restart (-before +after):\n%s", d)
	}
	states, err := a.Peers(t.Context())
	noError(t, err)
	if len(states) != 0 {
		t.Errorf("peers that nobody has set: %+v", states)
	}
	noError(t, a.SetPeers(t.Context(), []driver.Peer{b.peer("b")}))
	a.reaches(b)
	b.reaches(a)
}

func tunnelsRotate(t *testing.T, setup TunnelsSetup) {
	edges := openMesh(t, setup, 2)
	a, b := edges[0], edges[1]
	noError(t, a.SetPeers(t.Context(), []driver.Peer{b.peer("b")}))
	noError(t, b.SetPeers(t.Context(), []driver.Peer{a.peer("a")}))
	a.reaches(b)
	old := a.self().Key
	got, err := a.Rotate(t.Context())
	noError(t, err)
	if got.Key != old || got.Next.IsZero() || got.Next == old {
		t.Fatalf("rotated: %+v", got)
	}
	again, err := a.Rotate(t.Context())
	noError(t, err)
	if again.Next != got.Next {
		t.Errorf("rotating again made another key")
	}
	a.reaches(b)
	noError(t, b.SetPeers(t.Context(), []driver.Peer{a.peer("a")})) // has both
	a.reaches(b)
	b.reaches(a)
	volumeKind(t, a.Adopt(t.Context(), driver.TunnelKey{9}), drover.Refused)
	noError(t, a.Adopt(t.Context(), got.Next))
	noError(t, a.Adopt(t.Context(), got.Next))
	if self := a.self(); self.Key != got.Next || !self.Next.IsZero() {
		t.Fatalf("adopted: %+v", self)
	}
	a.reaches(b)
	b.reaches(a)
	states, err := b.Peers(t.Context())
	noError(t, err)
	if len(states) != 1 || states[0].Active != got.Next {
		t.Errorf("the peer still goes by the old key: %+v", states)
	}
	// Told once more what it knew before: it stays with what works.
	both := a.peer("a")
	both.Key, both.Next = old, got.Next
	noError(t, b.SetPeers(t.Context(), []driver.Peer{both}))
	b.reaches(a)
	noError(t, b.SetPeers(t.Context(), []driver.Peer{a.peer("a")})) // the new one only
	a.reaches(b)
	b.reaches(a)
}

// tunnelsUntold: who was not told of the next key is reached until it is
// adopted, and again when it was told.
func tunnelsUntold(t *testing.T, setup TunnelsSetup) {
	edges := openMesh(t, setup, 2)
	a, b := edges[0], edges[1]
	noError(t, a.SetPeers(t.Context(), []driver.Peer{b.peer("b")}))
	noError(t, b.SetPeers(t.Context(), []driver.Peer{a.peer("a")}))
	got, err := a.Rotate(t.Context())
	noError(t, err)
	a.reaches(b)
	b.reaches(a)
	noError(t, a.Adopt(t.Context(), got.Next))
	if b.Reaches(a.Addresses[0].Addr()) {
		t.Error("an edge is reached by a key that it does not have any more")
	}
	noError(t, b.SetPeers(t.Context(), []driver.Peer{a.peer("a")}))
	a.reaches(b)
	b.reaches(a)
}

func tunnelsForeign(t *testing.T, setup TunnelsSetup) {
	edge := setup.New(t, 1)[0]
	edge.Occupy()
	tunnels, err := edge.Open()
	if err == nil {
		tunnels.Close()
	}
	volumeKind(t, err, drover.Exists)
	if !edge.Occupied() {
		t.Error("somebody else's interface was changed")
	}
}

func tunnelsClosed(t *testing.T, setup TunnelsSetup) {
	a := openMesh(t, setup, 1)[0]
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.Rotate(ctx)
	volumeKind(t, err, drover.Canceled)
	if !a.self().Next.IsZero() {
		t.Error("a canceled call made a key")
	}
	noError(t, a.Close())
	noError(t, a.Close())
	_, err = a.Self(t.Context())
	volumeKind(t, err, drover.Canceled)
	volumeKind(t, a.SetPeers(t.Context(), nil), drover.Canceled)
}
