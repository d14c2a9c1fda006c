package agent

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	"go.etcd.io/bbolt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// meshKeepalive keeps a session with each other edge: a way that is open when a
// move needs it, through whatever keeps states, and a sign of whether it is.
const meshKeepalive = 20 * time.Second

// openMesh takes up the peers that were set last, so that the mesh is there
// again before a server is.
func (e *edge) openMesh(ctx context.Context) error {
	if e.Tunnels == nil {
		return nil
	}
	peers, err := e.a.journal.meshPeers()
	if err != nil || len(peers) == 0 {
		return err
	}
	e.mesh.Lock()
	defer e.mesh.Unlock()
	if err := e.Tunnels.SetPeers(ctx, peers); err != nil {
		return err
	}
	e.keepPeers(peers)
	return nil
}

// keepPeers notes the peers by site; e.mesh is held.
func (e *edge) keepPeers(peers []driver.Peer) {
	clear(e.peers)
	for _, p := range peers {
		e.peers[p.Name] = p
	}
}

// SetMesh implements AgentService.
func (a agentService) SetMesh(ctx context.Context, req *droverv1.SetMeshRequest) (*droverv1.SetMeshResponse, error) {
	e, err := a.meshEdge()
	if err != nil {
		return nil, err
	}
	peers := make([]driver.Peer, 0, len(req.GetPeers()))
	for _, p := range req.GetPeers() {
		peer, err := meshPeer(p)
		if err != nil {
			return nil, err
		}
		peers = append(peers, peer)
	}
	e.mesh.Lock()
	defer e.mesh.Unlock()
	if err := e.Tunnels.SetPeers(ctx, peers); err != nil {
		return nil, err
	}
	if err := a.journal.putMeshPeers(peers); err != nil {
		return nil, err
	}
	e.keepPeers(peers)
	return &droverv1.SetMeshResponse{}, nil
}

// meshEdge refuses an agent that has no end of the mesh.
func (a *Agent) meshEdge() (*edge, error) {
	e, err := a.siteEdge()
	if err == nil && e.Tunnels == nil {
		err = e.lacks("it has no part in the mesh: edge.mesh is missing from its file")
	}
	return e, err
}

// meshPeer reads a peer. What is behind it are its own addresses, not its mesh.
func meshPeer(p *droverv1.MeshPeer) (driver.Peer, error) {
	op := "peer " + p.GetSite()
	out := driver.Peer{Name: p.GetSite(), Keepalive: meshKeepalive}
	var err error
	if out.Key, err = driver.ParseTunnelKey(p.GetKey()); err != nil {
		return out, drover.E(drover.Invalid, op, err)
	}
	if p.GetNextKey() != "" {
		if out.Next, err = driver.ParseTunnelKey(p.GetNextKey()); err != nil {
			return out, drover.E(drover.Invalid, op, err)
		}
	}
	if p.GetEndpoint() != "" {
		if out.Endpoint, err = netip.ParseAddrPort(p.GetEndpoint()); err != nil {
			return out, drover.E(drover.Invalid, op, err)
		}
	}
	addresses, err := api.ParsePrefixes(op, p.GetAddresses())
	for _, a := range addresses {
		out.Addresses = append(out.Addresses, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
	}
	return out, err
}

// RotateMesh implements AgentService.
func (a agentService) RotateMesh(ctx context.Context, req *droverv1.RotateMeshRequest) (*droverv1.RotateMeshResponse, error) {
	e, err := a.meshEdge()
	if err != nil {
		return nil, err
	}
	if req.GetAdopt() == "" {
		self, err := e.Tunnels.Rotate(ctx)
		if err != nil {
			return nil, err
		}
		return &droverv1.RotateMeshResponse{Mesh: api.MeshToProto(meshState(self))}, nil
	}
	key, err := driver.ParseTunnelKey(req.GetAdopt())
	if err != nil {
		return nil, err
	}
	if err := e.Tunnels.Adopt(ctx, key); err != nil {
		return nil, err
	}
	self, err := e.Tunnels.Self(ctx)
	if err != nil {
		return nil, err
	}
	return &droverv1.RotateMeshResponse{Mesh: api.MeshToProto(meshState(self))}, nil
}

func meshState(m driver.Mesh) *drover.MeshState {
	s := &drover.MeshState{
		Interface: m.Interface, Addresses: m.Addresses, Port: m.Port, Key: m.Key.String(), MTU: m.MTU, Kernel: m.Kernel,
	}
	if !m.Next.IsZero() {
		s.NextKey = m.Next.String()
	}
	return s
}

// meshSelf is the edge's own address in the mesh that tunnels begin at: the
// IPv4 one where there is one, since its header is shorter.
func (e *edge) meshSelf(ctx context.Context) (netip.Addr, error) {
	if e.Tunnels == nil {
		return netip.Addr{}, e.lacks("it has no part in the mesh: edge.mesh is missing from its file")
	}
	self, err := e.Tunnels.Self(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	return ofFamily(self.Addresses, true), nil
}

// ofFamily returns the address of the family, else the other.
func ofFamily(list []netip.Prefix, v4 bool) netip.Addr {
	var other netip.Addr
	for _, p := range list {
		if p.Addr().Is4() == v4 {
			return p.Addr()
		}
		other = p.Addr()
	}
	return other
}

func (e *edge) peer(site string) (driver.Peer, error) {
	e.mesh.Lock()
	defer e.mesh.Unlock()
	p, ok := e.peers[site]
	if !ok {
		// The server sets it as soon as that site's edge is up.
		return p, drover.Errorf(drover.Unavailable, "site "+site, "edge %s does not know that site's edge: it is not in its mesh (yet)", e.a.config.Name)
	}
	return p, nil
}

// remote is the edge of another site as the end of a segment's tunnel.
func (e *edge) remote(site string, v4 bool) (driver.Remote, error) {
	p, err := e.peer(site)
	if err != nil {
		return driver.Remote{}, err
	}
	r := driver.Remote{Address: ofFamily(p.Addresses, v4)}
	if r.Address.Is4() != v4 {
		return r, e.lacks("the edge of site %s has no mesh address of the same family", site)
	}
	for _, a := range p.Addresses {
		if a.Addr() != r.Address {
			r.Others = append(r.Others, a.Addr())
		}
	}
	if p.Endpoint.IsValid() {
		r.Others = append(r.Others, p.Endpoint.Addr())
	}
	return r, nil
}

// meshPath is the way to the edge of another site.
func (e *edge) meshPath(ctx context.Context, site string) (driver.MeshPath, error) {
	local, err := e.meshSelf(ctx)
	if err != nil {
		return driver.MeshPath{}, err
	}
	r, err := e.remote(site, local.Is4())
	if err != nil {
		return driver.MeshPath{}, err
	}
	self, err := e.Tunnels.Self(ctx)
	return driver.MeshPath{Interface: self.Interface, Remote: r.Address}, err
}

// edgeBucket has what an edge keeps: its mesh, and a record of each move.
var (
	edgeBucket = []byte("edge")
	meshKey    = []byte("mesh")
)

func (j *journal) meshPeers() ([]driver.Peer, error) {
	var peers []driver.Peer
	err := j.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(edgeBucket).Get(meshKey)
		if raw == nil {
			return nil
		}
		if err := json.Unmarshal(raw, &peers); err != nil {
			return drover.E(drover.Corrupt, "journal", err)
		}
		return nil
	})
	return peers, journalError(err)
}

func (j *journal) putMeshPeers(peers []driver.Peer) error {
	return j.write("mesh", func(tx *bbolt.Tx) error {
		raw, err := json.Marshal(peers)
		if err != nil {
			return err
		}
		return tx.Bucket(edgeBucket).Put(meshKey, raw)
	})
}
