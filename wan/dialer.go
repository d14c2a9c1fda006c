package wan

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/wan/bundle"
)

// dialLimit bounds connecting and the handshake: three round trips, 0.9 s on
// the longest WAN; the rest is for lost packets.
const dialLimit = 10 * time.Second

// dial connects to the agent called peer at address ("ip:port"), TLS done and
// its certificate checked. A peer with another certificate gives drover.Denied,
// one that does not answer drover.Unavailable.
func dial(ctx context.Context, base *tls.Config, address, peer string) (net.Conn, error) {
	return dialFor(ctx, base, address, peer, Protocol)
}

// dialFor is dial for any of the protocols.
func dialFor(ctx context.Context, base *tls.Config, address, peer, protocol string) (net.Conn, error) {
	op := fmt.Sprintf("connect to agent %s at %s", peer, address)
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	var nd net.Dialer
	tcp, err := nd.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, drover.E(drover.Unavailable, op, err)
	}
	raw, ok := tcp.(*net.TCPConn)
	if !ok {
		_ = tcp.Close()
		return nil, drover.Errorf(drover.Internal, op, "connection is a %T", tcp)
	}
	tune(raw)
	if protocol == Disks {
		tuneDisk(raw)
	}
	cfg := pki.Expect(base, pki.Identity{Role: pki.Agent, Name: peer})
	cfg.NextProtos = []string{protocol}
	conn := tls.Client(bundle.Count(raw), cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		var broken *net.OpError
		var timeout net.Error
		if errors.As(err, &timeout) || errors.As(err, &broken) || ctx.Err() != nil {
			return nil, drover.E(drover.Unavailable, op, err)
		}
		return nil, drover.E(drover.Denied, op, err)
	}
	if p := conn.ConnectionState().NegotiatedProtocol; p != protocol {
		_ = conn.Close()
		return nil, drover.Errorf(drover.Invalid, op, "protocol %q, want %q", p, protocol)
	}
	return conn, nil
}
