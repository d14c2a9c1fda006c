package memory

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var _ driver.Tunnels = (*Tunnels)(nil)

// Mesh is the WAN between tunnels in memory. Its keys are values that are made by
// counting: nothing is secret here.
type Mesh struct {
	// Now is the clock of handshakes; nil is time.Now.
	Now func() time.Time
	// RoundTrip is what every round trip takes; zero is a millisecond.
	RoundTrip time.Duration

	mu    sync.Mutex
	edges map[netip.AddrPort]*edgeKeys
	made  uint64
}

// edgeKeys is what of an edge outlives its tunnel.
type edgeKeys struct {
	key, next driver.TunnelKey
	open      *Tunnels
	foreign   bool
}

// NewMesh returns a WAN without edges.
func NewMesh() *Mesh { return &Mesh{edges: map[netip.AddrPort]*edgeKeys{}} }

// TunnelsConfig describes an edge's end of the mesh in memory.
type TunnelsConfig struct {
	Endpoint  netip.AddrPort
	Addresses []netip.Prefix
	// Fault, if set, is asked before each operation, with the method's name in
	// lower case; an error that it returns is the operation's.
	Fault func(op string) error
}

// Tunnels is an edge's end of a mesh in memory.
type Tunnels struct {
	mesh  *Mesh
	cfg   TunnelsConfig
	keys  *edgeKeys
	peers []driver.PeerState
}

func (m *Mesh) newKey() driver.TunnelKey {
	m.made++
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, m.made))
}

func (m *Mesh) edge(at netip.AddrPort) *edgeKeys {
	if m.edges[at] == nil {
		m.edges[at] = &edgeKeys{key: m.newKey()}
	}
	return m.edges[at]
}

// Occupy makes an interface of somebody else's where the edge's would be.
func (m *Mesh) Occupy(at netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.edge(at).foreign = true
}

// Open returns the edge with the endpoint; it has the keys that it had before.
func (m *Mesh) Open(cfg TunnelsConfig) (*Tunnels, error) {
	const op = "open tunnels"
	if len(cfg.Addresses) == 0 || !cfg.Endpoint.IsValid() {
		return nil, drover.Errorf(drover.Invalid, op, "endpoint %v, addresses %v: want both", cfg.Endpoint, cfg.Addresses)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.edge(cfg.Endpoint)
	if e.foreign || e.open != nil {
		return nil, drover.Errorf(drover.Exists, op, "the interface at %v is taken", cfg.Endpoint)
	}
	t := &Tunnels{mesh: m, cfg: cfg, keys: e}
	e.open = t
	return t, nil
}

// begin takes the mesh's lock unless the operation cannot begin. On success
// the caller unlocks.
func (t *Tunnels) begin(ctx context.Context, op string) error {
	if t.cfg.Fault != nil {
		if err := t.cfg.Fault(op); err != nil {
			return wrap(op, err)
		}
	}
	t.mesh.mu.Lock()
	var err error
	switch {
	case t.keys.open != t:
		err = drover.Errorf(drover.Canceled, op, "the tunnel is closed")
	case ctx.Err() != nil:
		err = drover.E(drover.Canceled, op, ctx.Err())
	}
	if err != nil {
		t.mesh.mu.Unlock()
	}
	return err
}

// Self tells what the others have to know of this edge.
func (t *Tunnels) Self(ctx context.Context) (driver.Mesh, error) {
	if err := t.begin(ctx, "self"); err != nil {
		return driver.Mesh{}, err
	}
	defer t.mesh.mu.Unlock()
	return t.self(), nil
}

func (t *Tunnels) self() driver.Mesh {
	return driver.Mesh{
		Interface: "drover0", Addresses: slices.Clone(t.cfg.Addresses), Port: t.cfg.Endpoint.Port(),
		Key: t.keys.key, Next: t.keys.next, MTU: driver.DefaultSegmentMTU,
	}
}

// SetPeers makes these the peers.
func (t *Tunnels) SetPeers(ctx context.Context, peers []driver.Peer) error {
	const op = "set peers"
	if err := t.begin(ctx, op); err != nil {
		return err
	}
	defer t.mesh.mu.Unlock()
	if err := driver.CheckPeers(t.cfg.Addresses, peers); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	var all []driver.PeerState
	for _, p := range peers {
		for _, key := range []driver.TunnelKey{p.Key, p.Next} {
			if key == t.keys.key || !key.IsZero() && key == t.keys.next {
				return drover.Errorf(drover.Invalid, op, "peer %s has this edge's own key", p.Name)
			}
		}
		st := driver.PeerState{Active: p.Key}
		for _, old := range t.peers {
			if old.Active == p.Key || old.Active == p.Next {
				st = old
			}
		}
		st.Peer, st.From = p, p.Endpoint
		st.Addresses = slices.Clone(p.Addresses)
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b driver.PeerState) int { return cmp.Compare(a.Name, b.Name) })
	t.peers = all
	return nil
}

// Peers returns the peers with their sessions.
func (t *Tunnels) Peers(ctx context.Context) ([]driver.PeerState, error) {
	if err := t.begin(ctx, "peers"); err != nil {
		return nil, err
	}
	defer t.mesh.mu.Unlock()
	all := slices.Clone(t.peers)
	for i := range all {
		all[i].Addresses = slices.Clone(all[i].Addresses)
	}
	return all, nil
}

// RoundTrip returns what the mesh has, where the peer is reached.
func (t *Tunnels) RoundTrip(ctx context.Context, peer string) (time.Duration, error) {
	const op = "round trip"
	if err := t.begin(ctx, op); err != nil {
		return 0, err
	}
	i := slices.IndexFunc(t.peers, func(p driver.PeerState) bool { return p.Name == peer })
	var to netip.Addr
	if i >= 0 {
		to = t.peers[i].Addresses[0].Addr()
	}
	took := cmp.Or(t.mesh.RoundTrip, time.Millisecond)
	t.mesh.mu.Unlock()
	switch {
	case i < 0:
		return 0, drover.Errorf(drover.NotFound, op, "there is no peer %q", peer)
	case !t.Send(to, pingBytes):
		return 0, drover.Errorf(drover.Unavailable, op, "peer %s does not answer", peer)
	}
	return took, nil
}

// pingBytes is an echo request as it goes over the WAN.
const pingBytes = 64

// Rotate makes the key that is to come.
func (t *Tunnels) Rotate(ctx context.Context) (driver.Mesh, error) {
	if err := t.begin(ctx, "rotate"); err != nil {
		return driver.Mesh{}, err
	}
	defer t.mesh.mu.Unlock()
	if t.keys.next.IsZero() {
		t.keys.next = t.mesh.newKey()
	}
	return t.self(), nil
}

// Adopt takes the next key into use.
func (t *Tunnels) Adopt(ctx context.Context, key driver.TunnelKey) error {
	const op = "adopt"
	if err := t.begin(ctx, op); err != nil {
		return err
	}
	defer t.mesh.mu.Unlock()
	switch {
	case key == t.keys.key:
		return nil
	case key.IsZero() || key != t.keys.next:
		return drover.Errorf(drover.Refused, op, "%v is not the next key", key)
	}
	t.keys.key, t.keys.next = t.keys.next, driver.TunnelKey{}
	return nil
}

// Close ends the tunnel; the keys stay.
func (t *Tunnels) Close() error {
	t.mesh.mu.Lock()
	defer t.mesh.mu.Unlock()
	if t.keys.open == t {
		t.keys.open, t.peers = nil, nil
	}
	return nil
}

// Send sends bytes to an address through the mesh and reports whether they
// arrived: both ends are open, and each has the other's key in use.
func (t *Tunnels) Send(to netip.Addr, bytes drover.Bytes) bool {
	t.mesh.mu.Lock()
	defer t.mesh.mu.Unlock()
	if t.keys.open != t {
		return false
	}
	mine := t.behind(to)
	if mine == nil {
		return false
	}
	far := t.mesh.edges[mine.Endpoint]
	if far == nil || far.open == nil || far.key != mine.Key && far.key != mine.Next {
		return false
	}
	theirs := far.open.behind(t.cfg.Addresses[0].Addr())
	if theirs == nil || t.keys.key != theirs.Key && t.keys.key != theirs.Next {
		return false
	}
	now := time.Now
	if t.mesh.Now != nil {
		now = t.mesh.Now
	}
	mine.Active, theirs.Active = far.key, t.keys.key
	mine.Handshake, theirs.Handshake = now(), now()
	for _, p := range []*driver.PeerState{mine, theirs} {
		p.SentBytes += bytes
		p.ReceivedBytes += bytes
	}
	return true
}

// behind returns the peer that an address is behind, or nil.
func (t *Tunnels) behind(a netip.Addr) *driver.PeerState {
	for i, p := range t.peers {
		if slices.ContainsFunc(p.Addresses, func(n netip.Prefix) bool { return n.Contains(a) }) {
			return &t.peers[i]
		}
	}
	return nil
}
