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
)

// openLimit bounds opening a stream: connecting, the handshake and the header's
// answer are four round trips, 1.2 s on the longest WAN; the rest is for lost
// packets.
const openLimit = 10 * time.Second

// Dialer opens streams to other agents.
type Dialer struct {
	// TLS is the process's configuration, from pki.Config.
	TLS *tls.Config
}

// Open opens a stream of the session s to the agent called peer at address
// ("ip:port"). A wrong header gives drover.Invalid, a peer with another
// certificate or one that refuses drover.Denied, one that does not answer
// drover.Unavailable. ctx bounds the opening only.
func (d *Dialer) Open(ctx context.Context, address, peer string, h Header, s *Session) (Stream, error) {
	op := fmt.Sprintf("open %s stream to agent %s at %s", h.Channel, peer, address)
	if err := h.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openLimit)
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
	// Canceling ends whatever the opening waits for.
	unhook := context.AfterFunc(ctx, func() { _ = raw.Close() })
	conn, err := d.open(ctx, wireConn{raw, &s.wire}, peer, h)
	if !unhook() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = raw.Close()
		var de *drover.Error
		if errors.As(err, &de) && ctx.Err() == nil {
			return nil, drover.E(de.Kind, op, err)
		}
		return nil, drover.E(drover.Unavailable, op, err)
	}
	return newStream(conn, s, h.Channel), nil
}

func (d *Dialer) open(ctx context.Context, raw net.Conn, peer string, h Header) (*tls.Conn, error) {
	cfg := pki.Expect(d.TLS, pki.Identity{Role: pki.Agent, Name: peer})
	cfg.NextProtos = []string{Protocol}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		var op *net.OpError
		var timeout net.Error
		if errors.As(err, &timeout) || errors.As(err, &op) {
			return nil, err
		}
		return nil, drover.E(drover.Denied, "handshake", err)
	}
	if p := conn.ConnectionState().NegotiatedProtocol; p != Protocol {
		return nil, drover.Errorf(drover.Invalid, "handshake", "protocol %q, want %q", p, Protocol)
	}
	if _, err := conn.Write(h.append(nil)); err != nil {
		return nil, err
	}
	if err := readAnswer(conn); err != nil {
		return nil, err
	}
	return conn, nil
}
