package wan

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
)

const (
	// headerLimit bounds the wait for a header after the handshake.
	headerLimit = 10 * time.Second
	// localDialLimit bounds connecting to the hypervisor's socket, which it
	// listens at before the token is told to anyone.
	localDialLimit = 5 * time.Second
	// maxWaiting bounds connections whose header has not come yet. Only agents
	// of this installation get so far.
	maxWaiting = 256
)

// streamLimit bounds the streams a session may have at once on each channel:
// QEMU opens one connection for memory (as it is run here, without multifd);
// disks have two each.
var streamLimit = [channels]int{Memory: 1, Disk: relayConns, Copy: 32}

// Offer is what a destination opens a session for.
type Offer struct {
	// Token names the session; see Header.
	Token []byte
	// Peer is the only agent that may use it.
	Peer string
	// Sockets are the paths of unix sockets that streams are joined to.
	Sockets map[Channel]string
	// Copy takes the streams of channel Copy; nil refuses them. It need not
	// close the stream.
	Copy func(ctx context.Context, disk string, s Stream) error
}

// Endpoint is where streams arrive: a register of sessions.
type Endpoint struct {
	log *slog.Logger

	mu       sync.Mutex
	sessions map[string]*inbound
}

type inbound struct {
	offer   Offer
	session *Session
	ctx     context.Context
	cancel  context.CancelFunc
	group   sync.WaitGroup
	active  [channels]int // guarded by Endpoint.mu
}

// NewEndpoint makes an empty register.
func NewEndpoint(log *slog.Logger) *Endpoint {
	return &Endpoint{log: log, sessions: make(map[string]*inbound)}
}

// Open registers a session. A token that is in use gives drover.Exists.
func (e *Endpoint) Open(o Offer) (*Session, error) {
	const op = "open wan session"
	if n := len(o.Token); n < MinToken || n > MaxToken {
		return nil, drover.Errorf(drover.Invalid, op, "token of %d bytes, want %d to %d", n, MinToken, MaxToken)
	}
	o.Token = bytes.Clone(o.Token)
	ctx, cancel := context.WithCancel(context.Background())
	in := &inbound{offer: o, session: NewSession(0), ctx: ctx, cancel: cancel}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, taken := e.sessions[string(o.Token)]; taken {
		cancel()
		return nil, drover.Errorf(drover.Exists, op, "token is in use")
	}
	e.sessions[string(o.Token)] = in
	return in.session, nil
}

// Close ends a session and all its streams, and waits for them. A token that
// is not open is fine.
func (e *Endpoint) Close(token []byte) {
	e.mu.Lock()
	in := e.sessions[string(token)]
	delete(e.sessions, string(token))
	e.mu.Unlock()
	if in != nil {
		in.cancel()
		in.group.Wait()
	}
}

// Serve takes the connections of l (a Mux's Data) until ctx ends or l is
// closed, then ends every session and waits.
func (e *Endpoint) Serve(ctx context.Context, l net.Listener) error {
	var group sync.WaitGroup
	defer group.Wait()
	defer e.closeAll()
	unhook := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer unhook()
	waiting := make(chan struct{}, maxWaiting)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return drover.E(drover.Internal, "accept wan stream", err)
		}
		c, ok := conn.(*tls.Conn)
		if !ok {
			_ = conn.Close()
			return drover.Errorf(drover.Internal, "accept wan stream", "connection is a %T", conn)
		}
		select {
		case waiting <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		group.Go(func() { e.take(ctx, c, func() { <-waiting }) })
	}
}

func (e *Endpoint) closeAll() {
	e.mu.Lock()
	var tokens [][]byte
	for _, in := range e.sessions {
		tokens = append(tokens, in.offer.Token)
	}
	e.mu.Unlock()
	for _, t := range tokens {
		e.Close(t)
	}
}

// take reads the header and serves the stream. arrived is called once the
// header has come or has not.
func (e *Endpoint) take(ctx context.Context, conn *tls.Conn, arrived func()) {
	log := e.log.With("remote", conn.RemoteAddr().String())
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer unhook()
	h, who, err := e.identify(conn)
	arrived()
	if err != nil {
		log.Warn("wan stream refused", "err", err)
		_ = conn.Close()
		return
	}
	in := e.enter(h, who)
	if in == nil {
		log.Warn("wan stream refused", "peer", who.String(), "channel", h.Channel.String(), "err", "no such session")
		_ = writeAnswer(conn, refused, "no such session")
		_ = conn.Close()
		return
	}
	defer e.leave(in, h.Channel)
	s := newStream(conn, in.session, h.Channel)
	defer s.Close()
	if err := in.serve(s, h); err != nil && in.ctx.Err() == nil {
		log.Warn("wan stream failed", "peer", who.String(), "channel", h.Channel.String(), "err", err)
	}
}

func (e *Endpoint) identify(conn *tls.Conn) (Header, pki.Identity, error) {
	state := conn.ConnectionState()
	who, err := pki.Peer(&state)
	if err != nil {
		return Header{}, who, err
	}
	if err := conn.SetDeadline(time.Now().Add(headerLimit)); err != nil {
		return Header{}, who, err
	}
	h, err := readHeader(conn)
	if err != nil {
		_ = writeAnswer(conn, refused, err.Error())
		return h, who, fmt.Errorf("%s: %w", who, err)
	}
	return h, who, conn.SetDeadline(time.Time{})
}

// enter finds the session and counts the stream in, or returns nil when it
// must be refused. Every reason to refuse looks the same to the peer.
func (e *Endpoint) enter(h Header, who pki.Identity) *inbound {
	e.mu.Lock()
	defer e.mu.Unlock()
	in := e.sessions[string(h.Token)]
	if in == nil || who.Role != pki.Agent || who.Name != in.offer.Peer {
		return nil
	}
	if h.Channel == Copy && in.offer.Copy == nil || h.Channel != Copy && in.offer.Sockets[h.Channel] == "" {
		return nil
	}
	if in.active[h.Channel] >= streamLimit[h.Channel] {
		return nil
	}
	in.active[h.Channel]++
	in.group.Add(1)
	return in
}

func (e *Endpoint) leave(in *inbound, c Channel) {
	e.mu.Lock()
	in.active[c]--
	e.mu.Unlock()
	in.group.Done()
}

func (in *inbound) serve(s *stream, h Header) error {
	unhook := context.AfterFunc(in.ctx, func() { _ = s.Close() })
	defer unhook()
	if h.Channel == Copy {
		if err := writeAnswer(s.conn, accepted, ""); err != nil {
			return err
		}
		return in.offer.Copy(in.ctx, h.Name, s)
	}
	ctx, cancel := context.WithTimeout(in.ctx, localDialLimit)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", in.offer.Sockets[h.Channel])
	if err != nil {
		_ = writeAnswer(s.conn, unreachable, "the hypervisor does not listen")
		return err
	}
	local, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return fmt.Errorf("unix connection is a %T", conn)
	}
	if err := writeAnswer(s.conn, accepted, ""); err != nil {
		_ = local.Close()
		return err
	}
	return join(in.ctx, local, s)
}
