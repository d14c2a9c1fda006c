package wireguard

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// watchInterval is how often it is looked whether a peer that has two keys has
// gone over to the other: the most that a rotation interrupts, beside a round trip.
const watchInterval = 20 * time.Millisecond

const (
	// courtesy is how long the one of two edges with the greater key waits for the
	// other's call before it calls unasked: two handshakes that cross fail both, and
	// are tried again after five seconds, at both ends at once; or they leave a session
	// that only one end can read, which is noticed after fifteen. It is longer than
	// those five seconds, and ends with the other's handshake.
	courtesy = 7 * time.Second
	// reserve is how long it does not call for something to send, either: WireGuard is
	// not told until then where the peer is. When a network comes up, what both ends
	// have to send goes out in the same moment, within the second after which an
	// address is asked for again; an edge that has been started again has to call,
	// since the other believes in the session of before.
	reserve = 2 * time.Second
	// callAgain is when the one with the lesser key calls a second time: its first
	// call is lost when the other has not been told of it yet. It is longer than a
	// round trip over a usual WAN, for what answers an earlier call is no answer to a
	// later one, and doubles with each call; beyond callMost the calls are WireGuard's
	// own.
	callAgain = 500 * time.Millisecond
	callMost  = 4 * time.Second
	// mendPause is how long is waited after an error of following a peer, which
	// would be the same at once.
	mendPause = time.Second
)

// SetPeers makes these the peers.
func (t *Tunnels) SetPeers(ctx context.Context, peers []driver.Peer) error {
	const op = "set peers"
	if err := t.begin(ctx, op); err != nil {
		return err
	}
	defer t.mu.Unlock()
	if err := driver.CheckPeers(t.cfg.Addresses, peers); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	self := t.self()
	for _, p := range peers {
		for _, key := range []driver.TunnelKey{p.Key, p.Next} {
			if key == self.Key || !key.IsZero() && key == self.Next {
				return drover.Errorf(drover.Invalid, op, "peer %s has this edge's own key", p.Name)
			}
		}
	}
	return fail(op, t.setPeers(peers))
}

func (t *Tunnels) setPeers(peers []driver.Peer) error {
	peers = slices.Clone(peers)
	for i := range peers {
		peers[i].Addresses = slices.Clone(peers[i].Addresses)
	}
	slices.SortFunc(peers, func(a, b driver.Peer) int { return cmp.Compare(a.Name, b.Name) })
	have, err := t.sessions()
	if err != nil {
		return err
	}
	active, cfg, double := map[string]driver.TunnelKey{}, wgtypes.Config{}, false
	stays := map[driver.TunnelKey]bool{}
	for _, p := range peers {
		active[p.Name] = current(p, have)
		double = double || !p.Next.IsZero()
		stays[p.Key], stays[p.Next] = true, true
	}
	maps.DeleteFunc(t.quiet, func(key driver.TunnelKey, _ waiting) bool { return !stays[key] })
	maps.DeleteFunc(t.calls, func(key driver.TunnelKey, _ nextCall) bool { return !stays[key] })
	for key := range have {
		if !stays[key] {
			cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
		}
	}
	// Who loses an address does so before another gets it.
	var gets []wgtypes.PeerConfig
	for _, p := range peers {
		for _, key := range []driver.TunnelKey{p.Key, p.Next} {
			if key.IsZero() {
				continue
			}
			c := t.peerConfig(p, key, have)
			if key == active[p.Name] {
				c.AllowedIPs = allowed(p)
				gets = append(gets, c)
			} else {
				cfg.Peers = append(cfg.Peers, c)
			}
		}
	}
	cfg.Peers = append(cfg.Peers, gets...)
	if err := t.eng.configure(cfg); err != nil {
		return err
	}
	t.set, t.active = peers, active
	if double || len(t.quiet) > 0 || len(t.calls) > 0 {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
	return t.setRoutes()
}

// peerConfig is a peer's configuration without addresses. The endpoint of one
// that stays is only changed when another is told than before: it may have moved.
func (t *Tunnels) peerConfig(p driver.Peer, key driver.TunnelKey, have map[driver.TunnelKey]wgtypes.Peer) wgtypes.PeerConfig {
	c := wgtypes.PeerConfig{
		PublicKey: wgtypes.Key(key), ReplaceAllowedIPs: true, PersistentKeepaliveInterval: new(p.Keepalive),
	}
	told := slices.ContainsFunc(t.set, func(old driver.Peer) bool { return old.Name == p.Name && old.Endpoint == p.Endpoint })
	_, there := have[key]
	if !there || !told {
		c.Endpoint = udp(p.Endpoint)
	}
	own := t.keys.key.PublicKey()
	fresh, greater := !there && p.Keepalive > 0, bytes.Compare(own[:], key[:]) > 0
	switch w, waits := t.quiet[key]; {
	case waits:
		c.PersistentKeepaliveInterval, c.Endpoint = new(time.Duration), nil
		w.told = false // where it is may have changed
		t.quiet[key] = w
	case fresh && greater:
		c.PersistentKeepaliveInterval, c.Endpoint = new(time.Duration), nil
		t.quiet[key] = waiting{since: time.Now()}
	case fresh && key == p.Key: // by its next key it cannot answer yet
		t.calls[key] = nextCall{at: time.Now().Add(callAgain), wait: callAgain}
	}
	return c
}

// waiting is since when a peer may call first, and whether WireGuard has been told
// meanwhile where it is.
type waiting struct {
	since time.Time
	told  bool
}

// nextCall is when a peer that has not answered is called again, and how long after
// the call before.
type nextCall struct {
	at   time.Time
	wait time.Duration
}

func allowed(p driver.Peer) []net.IPNet {
	var all []net.IPNet
	for _, a := range p.Addresses {
		all = append(all, ipNet(a))
	}
	return all
}

// current is the one of a peer's keys that the last handshake was made with.
func current(p driver.Peer, sessions map[driver.TunnelKey]wgtypes.Peer) driver.TunnelKey {
	if !p.Next.IsZero() && sessions[p.Next].LastHandshakeTime.After(sessions[p.Key].LastHandshakeTime) {
		return p.Next
	}
	return p.Key
}

// sessions returns WireGuard's peers by key.
func (t *Tunnels) sessions() (map[driver.TunnelKey]wgtypes.Peer, error) {
	list, err := t.eng.peers()
	if err != nil {
		return nil, err
	}
	all := map[driver.TunnelKey]wgtypes.Peer{}
	for _, p := range list {
		all[driver.TunnelKey(p.PublicKey)] = p
	}
	return all, nil
}

// Peers returns the peers with their sessions.
func (t *Tunnels) Peers(ctx context.Context) ([]driver.PeerState, error) {
	const op = "peers"
	if err := t.begin(ctx, op); err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	sessions, err := t.sessions()
	if err != nil {
		return nil, fail(op, err)
	}
	var all []driver.PeerState
	for _, p := range t.set {
		st := driver.PeerState{Peer: p, Active: t.active[p.Name]}
		st.Addresses = slices.Clone(p.Addresses)
		for _, key := range []driver.TunnelKey{p.Key, p.Next} {
			s, there := sessions[key]
			if !there {
				continue
			}
			st.ReceivedBytes += drover.Bytes(s.ReceiveBytes)
			st.SentBytes += drover.Bytes(s.TransmitBytes)
			if s.LastHandshakeTime.After(st.Handshake) {
				st.Handshake = s.LastHandshakeTime
			}
			if key == st.Active && s.Endpoint != nil {
				a := s.Endpoint.AddrPort()
				st.From = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
			}
		}
		all = append(all, st)
	}
	return all, nil
}

// call begins the keepalives of peers that were left to call first, once the
// courtesy is over, calls those again that have not answered, and says whether
// there are more.
func (t *Tunnels) call() (more bool, err error) {
	if len(t.quiet) == 0 && len(t.calls) == 0 {
		return false, nil
	}
	sessions, err := t.sessions()
	if err != nil {
		return true, err
	}
	var cfg wgtypes.Config
	for _, p := range t.set {
		for _, key := range []driver.TunnelKey{p.Key, p.Next} {
			cfg.Peers = append(cfg.Peers, t.late(p, key, sessions[key])...)
			cfg.Peers = append(cfg.Peers, t.again(p, key, sessions[key])...)
		}
	}
	if len(cfg.Peers) > 0 {
		err = t.eng.configure(cfg)
	}
	return len(t.quiet)+len(t.calls) > 0, err
}

// late is what WireGuard is told of a peer that was left to call first: nothing, then
// where it is, then that it is to be called. Where one is that has called, WireGuard
// knows from its call.
func (t *Tunnels) late(p driver.Peer, key driver.TunnelKey, session wgtypes.Peer) []wgtypes.PeerConfig {
	w, waits := t.quiet[key]
	if !waits {
		return nil
	}
	c := wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), UpdateOnly: true, PersistentKeepaliveInterval: new(p.Keepalive)}
	switch waited := time.Since(w.since); {
	case !session.LastHandshakeTime.IsZero():
		delete(t.quiet, key)
	case waited >= courtesy:
		c.Endpoint = udp(p.Endpoint)
		delete(t.quiet, key)
	case waited >= reserve && !w.told && session.ReceiveBytes == 0: // or it is just calling
		w.told = true
		t.quiet[key] = w
		return t.anew(p, key, 0)
	default:
		return nil
	}
	return []wgtypes.PeerConfig{c}
}

// anew makes a peer that has not answered another time: WireGuard calls one that it has
// just been given as soon as there is something to send, a keepalive for instance, and
// one that it has called before after five seconds.
func (t *Tunnels) anew(p driver.Peer, key driver.TunnelKey, keepalive time.Duration) []wgtypes.PeerConfig {
	c := wgtypes.PeerConfig{
		PublicKey: wgtypes.Key(key), Endpoint: udp(p.Endpoint), PersistentKeepaliveInterval: &keepalive, ReplaceAllowedIPs: true,
	}
	if key == t.active[p.Name] {
		c.AllowedIPs = allowed(p)
	}
	return []wgtypes.PeerConfig{{PublicKey: wgtypes.Key(key), Remove: true}, c}
}

// again is what calls a peer another time, when it is due.
func (t *Tunnels) again(p driver.Peer, key driver.TunnelKey, session wgtypes.Peer) []wgtypes.PeerConfig {
	next, is := t.calls[key]
	switch {
	case !is:
		return nil
	case !session.LastHandshakeTime.IsZero():
		delete(t.calls, key)
		return nil
	case time.Now().Before(next.at):
		return nil
	}
	next.wait *= 2
	next.at = time.Now().Add(next.wait)
	t.calls[key] = next
	if next.wait > callMost {
		delete(t.calls, key)
	}
	return t.anew(p, key, p.Keepalive)
}

// watch moves the addresses of peers with two keys to the one that was heard
// last, and calls peers late, as long as there is such a peer.
func (t *Tunnels) watch() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-t.done:
			return
		case <-t.wake:
		}
		for more := true; more; {
			select {
			case <-t.done:
				return
			case <-tick.C:
			}
			var err error
			if more, err = t.follow(); err != nil {
				t.log.Error("a peer cannot be followed", "err", err)
				select {
				case <-t.done:
					return
				case <-time.After(mendPause):
				}
			}
		}
	}
}

// follow moves addresses once, and says whether there are peers to watch.
func (t *Tunnels) follow() (more bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false, nil
	}
	if more, err = t.call(); err != nil {
		return true, err
	}
	if !slices.ContainsFunc(t.set, func(p driver.Peer) bool { return !p.Next.IsZero() }) {
		return more, nil
	}
	sessions, err := t.sessions()
	if err != nil {
		return true, err
	}
	for _, p := range t.set {
		key := current(p, sessions)
		if key == t.active[p.Name] {
			continue
		}
		err := t.eng.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{
			{PublicKey: wgtypes.Key(key), ReplaceAllowedIPs: true, AllowedIPs: allowed(p)},
		}})
		if err != nil {
			return true, fmt.Errorf("peer %s: %w", p.Name, err)
		}
		t.active[p.Name] = key
		t.log.Info("peer goes by its next key", "peer", p.Name, "key", key)
	}
	return true, nil
}

// setRoutes makes routes to what lies behind the peers and is not in the
// mesh's own prefix; those of ours that are not needed any more go.
func (t *Tunnels) setRoutes() error {
	want := map[netip.Prefix]bool{}
	for _, p := range t.set {
		for _, a := range p.Addresses {
			covered := slices.ContainsFunc(t.cfg.Addresses, func(own netip.Prefix) bool {
				return own.Bits() <= a.Bits() && own.Contains(a.Addr())
			})
			if !covered {
				want[a] = true
			}
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		have, err := t.nl.RouteListFiltered(family, &netlink.Route{LinkIndex: t.index, Protocol: routeProtocol},
			netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range have {
			to := prefixOf(r.Dst, family)
			if want[to] {
				delete(want, to)
				continue
			}
			if err := t.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove route to %v: %w", to, err)
			}
		}
	}
	for to := range want {
		n := ipNet(to)
		if err := t.nl.RouteAdd(&netlink.Route{LinkIndex: t.index, Dst: &n, Protocol: routeProtocol, Scope: scope(to)}); err != nil {
			if errors.Is(err, unix.EEXIST) {
				return drover.Errorf(drover.Exists, "route", "somebody else has one to %v", to)
			}
			return fmt.Errorf("route to %v: %w", to, err)
		}
	}
	return nil
}

func scope(p netip.Prefix) netlink.Scope {
	if p.Addr().Is4() {
		return netlink.SCOPE_LINK
	}
	return netlink.SCOPE_UNIVERSE
}

// prefixOf is a route's destination; none is the default route.
func prefixOf(n *net.IPNet, family int) netip.Prefix {
	if n == nil {
		if family == unix.AF_INET {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
