package driver

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
)

// Tunnels is one edge's end of the encrypted mesh between the edges of the
// sites: an interface with mesh addresses, behind which every other edge is
// reached by its own. Everything that Drover sends between two edges for a VM
// goes through it.
//
// Methods may be called concurrently. A method that is canceled has changed
// nothing or all of it; the call may be repeated. The interface belongs to the
// implementation as a whole and carries its mark; an interface of the same
// name without the mark is never touched.
type Tunnels interface {
	// Self tells what the others have to know of this edge, and what was made.
	Self(ctx context.Context) (Mesh, error)
	// SetPeers makes these, and no others, the peers. It is repeatable; the
	// sessions of peers that stay are kept. An invalid list gives
	// drover.Invalid and changes nothing.
	SetPeers(ctx context.Context, peers []Peer) error
	// Peers returns the peers that are set, with their sessions, sorted by name.
	Peers(ctx context.Context) ([]PeerState, error)
	// RoundTrip measures how long a packet takes through the tunnel to the peer of
	// that name and back. It sends one and waits until ctx ends: no answer gives
	// drover.Unavailable, a peer that is not set drover.NotFound.
	RoundTrip(ctx context.Context, peer string) (time.Duration, error)
	// Rotate makes the key that is to come, Mesh.Next, and keeps it. The
	// present one stays in use, so nothing is interrupted. While there is a
	// next key it returns that one: repeatable.
	Rotate(ctx context.Context) (Mesh, error)
	// Adopt takes the next key into use. Peers that were told of it (Peer.Next)
	// go over to it by a new handshake, what runs through the tunnel goes on;
	// those that were not cannot be reached until they are. The key names the
	// one that is meant: the one in use already is fine, any other than the
	// next gives drover.Refused.
	Adopt(ctx context.Context, key TunnelKey) error
	// Close ends the tunnel and removes the interface; the keys stay, so the
	// next start is the same edge to its peers.
	Close() error
}

// TunnelKey is a public key of WireGuard: a point of Curve25519.
type TunnelKey [32]byte

// ParseTunnelKey reads a key in the form that String writes.
func ParseTunnelKey(s string) (TunnelKey, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(TunnelKey{}) {
		return TunnelKey{}, drover.Errorf(drover.Invalid, "tunnel key", "%q: want 32 bytes in base64", s)
	}
	return TunnelKey(b), nil
}

// String returns the key in base64, as the wg tool shows it.
func (k TunnelKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero reports whether there is no key.
func (k TunnelKey) IsZero() bool { return k == TunnelKey{} }

// MarshalText writes the key in base64, none as empty.
func (k TunnelKey) MarshalText() ([]byte, error) {
	if k.IsZero() {
		return nil, nil
	}
	return []byte(k.String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (k *TunnelKey) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*k = TunnelKey{}
		return nil
	}
	got, err := ParseTunnelKey(string(text))
	if err == nil {
		*k = got
	}
	return err
}

// Mesh is one edge's own end of the mesh.
type Mesh struct {
	// Interface is its name, Addresses what it has, each with the mesh's length.
	Interface string         `json:"interface"`
	Addresses []netip.Prefix `json:"addresses"`
	// Port is the UDP port that the peers send to.
	Port uint16 `json:"port"`
	// Key is in use; Next, unless zero, is to come, see Rotate.
	Key  TunnelKey `json:"key"`
	Next TunnelKey `json:"next,omitzero"`
	// MTU is the interface's, in bytes.
	MTU int `json:"mtu"`
	// Kernel is whether the kernel's WireGuard is used, or one in user space.
	Kernel bool `json:"kernel"`
}

// Peer is another edge.
type Peer struct {
	// Name is the peer's, a site's for instance; it is unique in the list.
	Name string    `json:"name"`
	Key  TunnelKey `json:"key"`
	// Next, unless zero, is the key that the peer is about to adopt. Both are
	// taken until a list no longer has the other.
	Next TunnelKey `json:"next,omitzero"`
	// Endpoint is where the peer is reached; invalid when the peer has to call
	// first.
	Endpoint netip.AddrPort `json:"endpoint"`
	// Addresses are what lies behind the peer: its mesh addresses, and what
	// else may be sent to and come from it. No two peers share an address.
	Addresses []netip.Prefix `json:"addresses"`
	// Keepalive is the interval at which something is sent, whole seconds;
	// zero is never.
	Keepalive time.Duration `json:"keepalive,omitempty"`
}

// PeerState is a peer and its session.
type PeerState struct {
	Peer
	// From is where it was heard from last, or is called at; a peer may move.
	From netip.AddrPort `json:"from,omitzero"`
	// Active is the one of the peer's keys that the session is with.
	Active TunnelKey `json:"active"`
	// Handshake is when the last one was completed; zero when none was. A
	// session in use has one at least every two minutes.
	Handshake time.Time `json:"handshake,omitzero"`
	// ReceivedBytes and SentBytes are what went over the WAN since the peer was set.
	ReceivedBytes drover.Bytes `json:"received_bytes"`
	SentBytes     drover.Bytes `json:"sent_bytes"`
}

// Limits of a list of peers.
const (
	// maxPeers is far above the number of sites of one fleet.
	maxPeers = 1024
	// maxKeepalive is what WireGuard can hold.
	maxKeepalive = 65535 * time.Second
)

// CheckPeers reports what is wrong with a list of peers for the edge that has
// the own addresses; the kind is drover.Invalid.
func CheckPeers(own []netip.Prefix, peers []Peer) error {
	const op = "peers"
	if len(peers) > maxPeers {
		return drover.Errorf(drover.Invalid, op, "%d peers: want at most %d", len(peers), maxPeers)
	}
	names, keys, behind := map[string]bool{}, map[TunnelKey]string{}, map[netip.Prefix]string{}
	for _, p := range own {
		behind[netip.PrefixFrom(p.Addr(), p.Addr().BitLen())] = "this edge"
	}
	for _, p := range peers {
		if err := p.check(); err != nil {
			return err
		}
		if names[p.Name] {
			return drover.Errorf(drover.Invalid, op, "peer %s is there twice", p.Name)
		}
		names[p.Name] = true
		for _, k := range []TunnelKey{p.Key, p.Next} {
			if other, taken := keys[k]; taken {
				return drover.Errorf(drover.Invalid, op, "peers %s and %s have the same key", other, p.Name)
			}
			if !k.IsZero() {
				keys[k] = p.Name
			}
		}
		for _, a := range p.Addresses {
			if other, taken := behind[a]; taken {
				return drover.Errorf(drover.Invalid, op, "%v is behind %s and %s", a, other, p.Name)
			}
			behind[a] = p.Name
		}
	}
	return nil
}

func (p Peer) check() error {
	op := "peer " + p.Name
	if err := drover.CheckName("peer", p.Name); err != nil {
		return err
	}
	switch {
	case p.Key.IsZero():
		return drover.Errorf(drover.Invalid, op, "no key")
	case p.Endpoint != netip.AddrPort{} && (!p.Endpoint.IsValid() || p.Endpoint.Port() == 0 || p.Endpoint.Addr().IsUnspecified()):
		return drover.Errorf(drover.Invalid, op, "endpoint %v: want an address and a port", p.Endpoint)
	case p.Keepalive < 0 || p.Keepalive > maxKeepalive || p.Keepalive%time.Second != 0:
		return drover.Errorf(drover.Invalid, op, "keepalive %v: want whole seconds up to %v", p.Keepalive, maxKeepalive)
	case len(p.Addresses) == 0:
		return drover.Errorf(drover.Invalid, op, "no address is behind it")
	}
	for _, a := range p.Addresses {
		if !a.IsValid() || a.Addr().Is4In6() || a != a.Masked() {
			return drover.E(drover.Invalid, op, fmt.Errorf("address %v: want a prefix without host bits", a))
		}
	}
	return nil
}
