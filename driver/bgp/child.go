package bgp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/drover-vm/drover/driver"
)

// Subcommand is the program's own that runs Main.
const Subcommand = "bgp-speaker"

const (
	// connectRetryS is the seconds between two attempts to reach a router, the
	// least that GoBGP does.
	connectRetryS = 2
	// deferralS is the seconds that a restarted speaker waits for its routers'
	// routes before it sends its own. It wants none of theirs.
	deferralS = 1
	// redialPause keeps a router that drops every session at once from making
	// the child spin.
	redialPause = 200 * time.Millisecond
	// ownPolicy is the policy that lets through what the child was told.
	ownPolicy = "own"
)

// Main is the child's whole life: it reads its configuration and orders from
// in, writes events to out, and returns when in ends or ctx is canceled. It is
// to be followed by the end of the process, which closes the sessions without a
// word, so that routers keep the routes for the next child.
func Main(ctx context.Context, in io.Reader, out io.Writer) error {
	dec := json.NewDecoder(in)
	var cfg childConfig
	if err := dec.Decode(&cfg); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	c := &child{cfg: cfg, out: json.NewEncoder(out), redial: make(chan netip.Addr, maxNeighbors), up: map[netip.Addr]bool{}}
	c.server = server.NewBgpServer(server.LoggerOption(slog.New(&sentHandler{child: c}), nil))
	go c.server.Serve()
	if err := c.start(ctx); err != nil {
		return err
	}
	orders := make(chan order)
	ended := make(chan error, 1)
	go func() {
		for {
			var o order
			if err := dec.Decode(&o); err != nil {
				ended <- err
				return
			}
			orders <- o
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read an order: %w", err)
		case o := <-orders:
			if err := c.carryOut(ctx, o); err != nil {
				return err
			}
		case n := <-c.redial:
			if err := c.redialNeighbor(ctx, n); err != nil {
				return err
			}
		}
	}
}

// child is GoBGP with a Speaker at its standard input and output.
type child struct {
	cfg    childConfig
	server *server.BgpServer
	// redial has the neighbours whose session was lost, up those with one; only
	// peerEvent knows it, which is called by one goroutine.
	redial chan netip.Addr
	up     map[netip.Addr]bool

	mu  sync.Mutex // of out
	out *json.Encoder
}

// emit reports an event. A Speaker that is gone is noticed by the end of its
// orders.
func (c *child) emit(e event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.out.Encode(e)
}

// start begins speaking: first the routes, then the neighbours, so that the
// first table a router is sent is complete.
func (c *child) start(ctx context.Context) error {
	err := c.server.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: c.cfg.AS, RouterId: c.cfg.RouterID.String(),
		ListenPort: -1, // dials only
	}})
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := c.ownRoutesOnly(ctx); err != nil {
		return err
	}
	err = c.server.WatchEvent(ctx, server.WatchEventMessageCallbacks{OnPeerUpdate: c.peerEvent}, server.WatchPeer())
	if err != nil {
		return fmt.Errorf("watch the sessions: %w", err)
	}
	if err := c.carryOut(ctx, order{Announce: c.cfg.Routes}); err != nil {
		return err
	}
	for _, n := range c.cfg.Neighbors {
		// Only who has announced something before has anything to restart.
		if err := c.addNeighbor(ctx, n, len(c.cfg.Routes) > 0); err != nil {
			return err
		}
	}
	return nil
}

// ownRoutesOnly refuses what neighbours announce, and exports nothing that is
// not from here.
func (c *child) ownRoutesOnly(ctx context.Context) error {
	own := &api.Policy{Name: ownPolicy, Statements: []*api.Statement{{
		Name:       ownPolicy,
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := c.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	for _, direction := range []api.PolicyDirection{api.PolicyDirection_POLICY_DIRECTION_IMPORT, api.PolicyDirection_POLICY_DIRECTION_EXPORT} {
		err := c.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
			Name: "global", Direction: direction,
			Policies:      []*api.Policy{{Name: ownPolicy}},
			DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
		}})
		if err != nil {
			return fmt.Errorf("policy: %w", err)
		}
	}
	return nil
}

// addNeighbor begins to dial a router. Restarting tells it that routes it may
// have kept still stand.
func (c *child) addNeighbor(ctx context.Context, n Neighbor, restarting bool) error {
	peer := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: n.Address.String(), PeerAsn: n.AS, AuthPassword: n.Password},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: uint64(c.cfg.Hold), KeepaliveInterval: uint64(c.cfg.Keepalive), ConnectRetry: connectRetryS,
			IdleHoldTimeAfterReset: 1, // after one of our own, by BFD
		}},
		Transport: &api.Transport{RemotePort: uint32(n.Port)},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(c.cfg.Restart), DeferralTime: deferralS, LocalRestarting: restarting,
		},
	}
	for _, f := range []struct {
		hop    netip.Addr
		family *api.Family
	}{
		{c.cfg.NextHop4, &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}},
		{c.cfg.NextHop6, &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}},
	} {
		if !f.hop.IsValid() {
			continue
		}
		peer.AfiSafis = append(peer.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: f.family, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		})
		if f.hop.Is4() == n.Address.Is4() {
			peer.Transport.LocalAddress = f.hop.String()
		}
	}
	if b := c.cfg.BFD; b.Interval > 0 {
		us := uint32(b.Interval / time.Microsecond)
		peer.Bfd = &api.BfdPeerConfig{Enabled: true, DesiredMinimumTxInterval: us, RequiredMinimumReceive: us, DetectionMultiplier: uint32(b.Multiplier)}
	}
	if err := c.server.AddPeer(ctx, &api.AddPeerRequest{Peer: peer}); err != nil {
		return fmt.Errorf("neighbour %v: %w", n.Address, err)
	}
	return nil
}

// redialNeighbor begins anew with a neighbour that was lost: GoBGP itself would
// rest for 5 s, and would not say that the routes still stand.
func (c *child) redialNeighbor(ctx context.Context, address netip.Addr) error {
	for _, n := range c.cfg.Neighbors {
		if n.Address != address {
			continue
		}
		if err := c.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: address.String()}); err != nil {
			return fmt.Errorf("neighbour %v: %w", address, err)
		}
		return c.addNeighbor(ctx, n, true)
	}
	return nil
}

// carryOut changes the table, and with it what the neighbours are sent.
func (c *child) carryOut(ctx context.Context, o order) error {
	if len(o.Withdraw) > 0 {
		paths, err := c.paths(o.Withdraw)
		if err != nil {
			return err
		}
		if err := c.server.DeletePath(apiutil.DeletePathRequest{Paths: paths}); err != nil {
			return fmt.Errorf("withdraw: %w", err)
		}
	}
	if len(o.Announce) > 0 {
		paths, err := c.paths(o.Announce)
		if err != nil {
			return err
		}
		if _, err := c.server.AddPath(apiutil.AddPathRequest{Paths: paths}); err != nil {
			return fmt.Errorf("announce: %w", err)
		}
	}
	if o.Resend.IsValid() {
		err := c.server.ResetPeer(ctx, &api.ResetPeerRequest{Address: o.Resend.String(), Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT})
		if err != nil {
			return fmt.Errorf("send again to %v: %w", o.Resend, err)
		}
	}
	return nil
}

func (c *child) paths(prefixes []netip.Prefix) ([]*apiutil.Path, error) {
	paths := make([]*apiutil.Path, 0, len(prefixes))
	for _, p := range prefixes {
		path, err := c.path(p)
		if err != nil {
			return nil, fmt.Errorf("route %v: %w", p, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

func (c *child) path(p netip.Prefix) (*apiutil.Path, error) {
	nlri, err := wire.NewIPAddrPrefix(p)
	if err != nil {
		return nil, err
	}
	path := &apiutil.Path{Family: wire.RF_IPv4_UC, Nlri: nlri, Attrs: []wire.PathAttributeInterface{
		wire.NewPathAttributeOrigin(wire.BGP_ORIGIN_ATTR_TYPE_IGP),
	}}
	if m := c.cfg.Community; m.Large {
		path.Attrs = append(path.Attrs, wire.NewPathAttributeLargeCommunities([]*wire.LargeCommunity{{ASN: m.AS, LocalData1: m.First, LocalData2: m.Second}}))
	} else {
		path.Attrs = append(path.Attrs, wire.NewPathAttributeCommunities([]uint32{m.AS<<16 | m.First}))
	}
	var hop wire.PathAttributeInterface
	if p.Addr().Is4() {
		hop, err = wire.NewPathAttributeNextHop(c.cfg.NextHop4)
	} else {
		path.Family = wire.RF_IPv6_UC
		hop, err = wire.NewPathAttributeMpReachNLRI(path.Family, []wire.PathNLRI{{NLRI: nlri}}, c.cfg.NextHop6)
	}
	if err != nil {
		return nil, err
	}
	path.Attrs = append(path.Attrs, hop)
	return path, nil
}

// sessionStates are GoBGP's states by the contract's names.
var sessionStates = map[wire.FSMState]driver.SessionState{
	wire.BGP_FSM_IDLE:        driver.SessionIdle,
	wire.BGP_FSM_CONNECT:     driver.SessionConnect,
	wire.BGP_FSM_ACTIVE:      driver.SessionActive,
	wire.BGP_FSM_OPENSENT:    driver.SessionOpenSent,
	wire.BGP_FSM_OPENCONFIRM: driver.SessionOpenConfirm,
	wire.BGP_FSM_ESTABLISHED: driver.SessionEstablished,
}

// refused is what GoBGP knows of a NOTIFICATION instead of an OPEN.
const refused = "the router refuses the session; it may expect another AS or router id of the edge"

// faults are what ends a session, in words.
var faults = map[api.PeerState_DisconnectReason]string{
	api.PeerState_DISCONNECT_REASON_HOLD_TIMER_EXPIRED: "the router was silent for the hold time",
	api.PeerState_DISCONNECT_REASON_READ_FAILED:        "the router closed the connection",
	api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART:   "the connection was lost, the router may be restarting",
	api.PeerState_DISCONNECT_REASON_WRITE_FAILED:       "the connection broke",
	api.PeerState_DISCONNECT_REASON_INVALID_MSG:        refused,
}

// peerEvent reports a session's new state and has a lost one dialed again.
func (c *child) peerEvent(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	peer := e.Peer.State
	state, known := sessionStates[peer.SessionState]
	if e.Type != apiutil.PEER_EVENT_STATE || !known {
		return
	}
	s := &sessionEvent{Neighbor: peer.NeighborAddress, State: state, At: at}
	switch {
	case state == driver.SessionEstablished:
		s.IPv4, s.IPv6 = families(peer.RemoteCap)
	case state == driver.SessionIdle:
		s.Fault = peer.DisconnectMessage
		if text, ok := faults[peer.DisconnectReason]; ok {
			s.Fault = text
		}
	}
	c.emit(event{Session: s})
	// With BFD a new neighbour would be a new BFD session, which the router takes
	// for a dead path for a while, and the BGP session would be lost once more.
	if c.up[s.Neighbor] && state != driver.SessionEstablished && c.cfg.BFD.Interval == 0 {
		time.AfterFunc(redialPause, func() { c.redial <- s.Neighbor })
	}
	c.up[s.Neighbor] = state == driver.SessionEstablished
}

// families are the ones that a router's OPEN takes; one without the capability
// takes IPv4 (RFC 4760).
func families(caps []wire.ParameterCapabilityInterface) (v4, v6 bool) {
	said := false
	for _, c := range caps {
		mp, ok := c.(*wire.CapMultiProtocol)
		if !ok {
			continue
		}
		said = true
		v4 = v4 || mp.CapValue == wire.RF_IPv4_UC
		v6 = v6 || mp.CapValue == wire.RF_IPv6_UC
	}
	return v4 || !said, v6
}
