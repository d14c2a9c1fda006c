package api

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1/droverv1connect"
	"github.com/drover-vm/drover/pki"
)

const (
	// dialLimit bounds connecting and the TLS handshake each: three round
	// trips of the longest WAN (300 ms) and two lost packets' retries fit.
	dialLimit = 5 * time.Second
	// pingAfter is how long a connection may be silent before it is asked
	// for a sign of life, pingLimit how long the answer may take. A dead peer
	// is noticed after their sum. A WAN cut shorter than that passes unseen.
	pingAfter = 5 * time.Second
	pingLimit = 5 * time.Second
	// idleLimit closes connections that nothing uses; a watch is a use.
	idleLimit = 90 * time.Second
	// headerLimit bounds how long a server waits for a request's head.
	headerLimit = 10 * time.Second
	// maxStreams bounds the calls on one connection: a server watches, checks
	// and runs a handful of moves per agent.
	maxStreams = 256
)

// AgentClient calls one agent. All its errors are drover.Error.
type AgentClient struct {
	droverv1connect.AgentServiceClient
	transport *http.Transport
}

// NewAgentClient makes a client of the agent at addr ("ip:port") that accepts
// only a peer whose certificate names it agent/name. It dials when first used.
func NewAgentClient(addr string, cfg *tls.Config, name string) *AgentClient {
	t := newTransport(pki.Expect(cfg, pki.Identity{Role: pki.Agent, Name: name}), tcpDialer())
	return &AgentClient{
		AgentServiceClient: droverv1connect.NewAgentServiceClient(
			&http.Client{Transport: t}, "https://"+addr, clientOptions(agentAt(name, addr))...),
		transport: t,
	}
}

// Close drops its idle connections; calls under way go on.
func (c *AgentClient) Close() { c.transport.CloseIdleConnections() }

// PeerClient calls another host's agent, as an agent. All its errors are
// drover.Error.
type PeerClient struct {
	droverv1connect.PeerServiceClient
	transport *http.Transport
}

// NewPeerClient is NewAgentClient for the calls between agents.
func NewPeerClient(addr string, cfg *tls.Config, name string) *PeerClient {
	t := newTransport(pki.Expect(cfg, pki.Identity{Role: pki.Agent, Name: name}), tcpDialer())
	return &PeerClient{
		PeerServiceClient: droverv1connect.NewPeerServiceClient(
			&http.Client{Transport: t}, "https://"+addr, clientOptions(agentAt(name, addr))...),
		transport: t,
	}
}

// Close drops its idle connections; calls under way go on.
func (c *PeerClient) Close() { c.transport.CloseIdleConnections() }

// Client calls a server. All its errors are drover.Error.
type Client struct {
	droverv1connect.DroverServiceClient
	transport *http.Transport
}

// NewClient makes a client of the server at target, "https://HOST:PORT" or
// "unix:///PATH"; the latter speaks TLS too. Any other form is drover.Invalid.
// It dials when first used.
func NewClient(target string, cfg *tls.Config) (*Client, error) {
	const want = "want https://HOST:PORT or unix:///PATH"
	u, err := url.Parse(target)
	if err != nil {
		return nil, drover.Errorf(drover.Invalid, "server", "%q: %s", target, want)
	}
	base, dial := "https://"+u.Host, tcpDialer()
	switch {
	case u.Scheme == "https" && u.Hostname() != "" && u.Port() != "" && (u.Path == "" || u.Path == "/"):
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		base, dial = "https://drover", unixDialer(u.Path)
	default:
		return nil, drover.Errorf(drover.Invalid, "server", "%q: %s", target, want)
	}
	t := newTransport(pki.Expect(cfg, pki.Identity{Role: pki.Server}), dial)
	return &Client{
		DroverServiceClient: droverv1connect.NewDroverServiceClient(
			&http.Client{Transport: t}, base, clientOptions("server at "+target)...),
		transport: t,
	}, nil
}

// Close drops its idle connections; calls under way go on.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

func agentAt(name, addr string) string { return "agent " + name + " at " + addr }

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

func tcpDialer() dialer {
	d := &net.Dialer{Timeout: dialLimit}
	return d.DialContext
}

func unixDialer(path string) dialer {
	d := &net.Dialer{Timeout: dialLimit}
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", path)
	}
}

// newTransport speaks HTTP/2 only: calls share one connection, which the pings
// watch over. It has no overall timeout, since streams last as long as a move.
func newTransport(cfg *tls.Config, dial dialer) *http.Transport {
	cfg.NextProtos = nil // the transport's to set
	only2 := new(http.Protocols)
	only2.SetHTTP2(true)
	return &http.Transport{
		DialContext:         dial,
		TLSClientConfig:     cfg,
		TLSHandshakeTimeout: dialLimit,
		IdleConnTimeout:     idleLimit,
		Protocols:           only2,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingLimit},
	}
}

// NewHTTPServer returns what serves h to the clients above, on a listener that
// speaks TLS with ServerTLS's configuration. The caller serves and ends it, and
// sets its ErrorLog where it wants to know of handshakes that fail.
func NewHTTPServer(h http.Handler) *http.Server {
	only2 := new(http.Protocols)
	only2.SetHTTP2(true)
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerLimit,
		IdleTimeout:       2 * idleLimit,
		Protocols:         only2,
		ErrorLog:          log.New(io.Discard, "", 0),
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: pingAfter, PingTimeout: pingLimit, MaxConcurrentStreams: maxStreams,
		},
	}
}

// ServerTLS returns a copy of cfg for a listener that NewHTTPServer's result
// serves.
func ServerTLS(cfg *tls.Config) *tls.Config {
	c := cfg.Clone()
	c.NextProtos = []string{"h2"}
	return c
}
