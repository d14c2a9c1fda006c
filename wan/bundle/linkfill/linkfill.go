// Package linkfill measures how much of a link a bundle fills with data that
// cannot be compressed: one process serves at one end, another sends from the
// other end.
//
// It makes TCP connections tuned as the data path's are, with TLS 1.3 and
// certificates made for the occasion that nobody checks: it carries nothing but
// noise, and judges nothing but speed. It belongs to benchmarks.
package linkfill

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/frame"
)

const (
	// messageBytes is what a batch of pages takes on the wire.
	messageBytes = 128 << 10
	// headerLimit bounds the wait for handshake and hello.
	headerLimit = 10 * time.Second
)

// Options say what is measured. The zero value is the data path's default.
type Options struct {
	// Conns of the bundle; zero is bundle.DefaultConns.
	Conns int
	// Congestion is TCP's control; empty is "bbr".
	Congestion string
	// NotSentBytes is what the kernel may queue for each connection; zero is
	// 128 KiB.
	NotSentBytes int
	// Rate limits the sender; zero is unlimited.
	Rate drover.BitRate
	// Window as in bundle.Config.
	Window int
	Log    *slog.Logger
}

// Result is what Fill saw, after the warm-up.
type Result struct {
	Seconds       float64 `json:"seconds"`
	PayloadBytes  int64   `json:"payload_bytes"`
	PayloadBps    float64 `json:"payload_bps"`
	WireBytes     int64   `json:"wire_bytes"` // below TLS, above TCP
	WireBps       float64 `json:"wire_bps"`
	LinkBps       float64 `json:"link_bps"` // with Ethernet's, IP's and TCP's headers, estimated
	ResentBytes   int64   `json:"resent_bytes"`
	Lost          int64   `json:"connections_lost"`
	RTT           float64 `json:"rtt_ms"`
	UrgentMillis  float64 `json:"urgent_ms"` // the longest that a control message took to be consumed
	UrgentAverage float64 `json:"urgent_average_ms"`
}

func (o Options) tune(c *net.TCPConn) {
	if o.Congestion == "" {
		o.Congestion = "bbr"
	}
	if o.NotSentBytes == 0 {
		o.NotSentBytes = 128 << 10
	}
	_ = c.SetNoDelay(true)
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, o.Congestion)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, o.NotSentBytes)
	})
}

// certificate makes one that lives as long as the process.
func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// Serve receives what senders fill the link with, until ctx ends.
func Serve(ctx context.Context, l net.Listener, o Options) error {
	cert, err := certificate()
	if err != nil {
		return err
	}
	s := &server{options: o, config: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, bundles: make(map[string]*bundle.Bundle)}
	defer s.group.Wait()
	unhook := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer unhook()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.group.Go(func() {
			if err := s.take(ctx, conn); err != nil {
				_ = conn.Close()
			}
		})
	}
}

type server struct {
	options Options
	config  *tls.Config
	group   sync.WaitGroup

	mu      sync.Mutex
	bundles map[string]*bundle.Bundle
}

func (s *server) take(ctx context.Context, conn net.Conn) error {
	if tcp, ok := conn.(*net.TCPConn); ok {
		s.options.tune(tcp)
	}
	shake, cancel := context.WithTimeout(ctx, headerLimit)
	defer cancel()
	c := tls.Server(bundle.Count(conn), s.config)
	if err := c.HandshakeContext(shake); err != nil {
		return err
	}
	_ = c.SetDeadline(time.Now().Add(headerLimit))
	hello, err := frame.ReadHello(c)
	if err != nil {
		return err
	}
	b, err := s.bundle(ctx, hello.Token)
	if err != nil {
		return err
	}
	return b.Attach(c, hello)
}

func (s *server) bundle(ctx context.Context, token []byte) (*bundle.Bundle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.bundles[string(token)]; b != nil {
		return b, nil
	}
	b, err := bundle.Accept(bundle.Config{Token: token, Window: s.options.Window, Log: s.options.Log})
	if err != nil {
		return nil, err
	}
	s.bundles[string(token)] = b
	s.group.Go(func() {
		sink(ctx, b)
		s.mu.Lock()
		delete(s.bundles, string(token))
		s.mu.Unlock()
	})
	return b, nil
}

// sink throws away what comes.
func sink(ctx context.Context, b *bundle.Bundle) {
	var group sync.WaitGroup
	for {
		c, err := b.Accept(ctx)
		if err != nil {
			break
		}
		group.Go(func() {
			for {
				m, err := c.Receive(ctx)
				if err != nil {
					return
				}
				m.Release()
			}
		})
	}
	group.Wait()
	b.Close(nil)
}

// Fill sends noise to address for warm and then for measured time, and returns
// what went in the latter. Meanwhile it sends a small control message every
// 100 ms and waits for its being consumed.
func Fill(ctx context.Context, address string, warm, measured time.Duration, o Options) (Result, error) {
	token := make([]byte, frame.MaxToken)
	if _, err := rand.Read(token); err != nil {
		return Result{}, err
	}
	b, err := bundle.Initiate(ctx, bundle.Config{
		Dial: func(ctx context.Context) (net.Conn, error) { return o.dial(ctx, address) }, Token: token,
		Conns: o.Conns, Window: o.Window, Rate: o.Rate, Log: o.Log,
	})
	if err != nil {
		return Result{}, err
	}
	defer b.Close(errors.New("measured"))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	data, err := b.Open(ctx, bundle.Memory, "noise")
	if err != nil {
		return Result{}, err
	}
	control, err := b.Open(ctx, bundle.Control, "urgent")
	if err != nil {
		return Result{}, err
	}
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	failed := make(chan error, 2)
	group.Go(func() { failed <- noise(ctx, data) })
	var urgent latency
	group.Go(func() { failed <- urgent.probe(ctx, control) })
	select {
	case <-time.After(warm):
	case err := <-failed:
		return Result{}, err
	}
	before, begin := b.Stats(), time.Now()
	urgent.reset()
	select {
	case <-time.After(measured):
	case err := <-failed:
		return Result{}, err
	}
	after, seconds := b.Stats(), time.Since(begin).Seconds()
	r := Result{
		Seconds: seconds, PayloadBytes: after.Sent[bundle.Memory] - before.Sent[bundle.Memory], WireBytes: after.WireSent - before.WireSent,
		ResentBytes: after.Resent - before.Resent, Lost: after.Lost, RTT: float64(after.RTT) / 1e6,
	}
	r.PayloadBps, r.WireBps = float64(r.PayloadBytes)*8/seconds, float64(r.WireBytes)*8/seconds
	r.LinkBps = r.WireBps * 1514 / 1448
	r.UrgentMillis, r.UrgentAverage = urgent.millis()
	return r, nil
}

func (o Options) dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		o.tune(tcp)
	}
	// Only noise passes: nobody's identity matters.
	c := tls.Client(bundle.Count(conn), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) //nolint:gosec // see above
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// noise sends what no layer can make smaller.
func noise(ctx context.Context, c *bundle.Channel) error {
	buf := make([]byte, messageBytes)
	if _, err := io.ReadFull(rand.Reader, buf); err != nil {
		return err
	}
	for i := uint64(0); ; i++ {
		binary.BigEndian.PutUint64(buf, i)
		if err := c.Send(ctx, 0, buf); err != nil {
			return err
		}
	}
}

// latency is that of control messages.
type latency struct {
	mu       sync.Mutex
	longest  time.Duration
	sum      time.Duration
	messages int
}

func (l *latency) probe(ctx context.Context, c *bundle.Channel) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		begin := time.Now()
		if err := c.Send(ctx, 0, []byte("now")); err != nil {
			return err
		}
		if err := c.Drain(ctx); err != nil {
			return err
		}
		took := time.Since(begin)
		l.mu.Lock()
		l.longest, l.sum, l.messages = max(l.longest, took), l.sum+took, l.messages+1
		l.mu.Unlock()
	}
}

func (l *latency) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest, l.sum, l.messages = 0, 0, 0
}

func (l *latency) millis() (longest, average float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.messages == 0 {
		return 0, 0
	}
	return float64(l.longest) / 1e6, float64(l.sum) / float64(l.messages) / 1e6
}
