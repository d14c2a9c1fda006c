package wan

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
)

// local is a hypervisor's socket that answers each connection with what it was
// sent, in upper case when asked to.
func echo(t testing.TB, path string) *atomic.Int64 {
	t.Helper()
	l, err := net.Listen("unix", path)
	must(t, err)
	var conns atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
				_, _ = c.Write([]byte("end"))
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return &conns
}

// TestRelay carries bytes from one hypervisor's socket to another's, both
// ways, with half-close, over two connections at once.
func TestRelay(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, a)
	dir := t.TempDir()
	conns := echo(t, filepath.Join(dir, "there"))
	in, err := s.endpoint.Open(Offer{Token: token(7), Peer: "north", Sockets: map[Channel]string{Disk: filepath.Join(dir, "there")}})
	must(t, err)
	d := &Dialer{TLS: a.config(pki.Agent, "north")}
	out := NewSession(0)
	r, err := NewRelay(filepath.Join(dir, "here"), func(ctx context.Context) (Stream, error) {
		return d.Open(ctx, s.address, "south", Header{Token: token(7), Channel: Disk}, out)
	})
	must(t, err)
	data := make([]byte, 3<<20)
	_, _ = rand.Read(data)
	got := make(chan error, 2)
	for range 2 {
		go func() { got <- exchange(filepath.Join(dir, "here"), data) }()
	}
	for range 2 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	must(t, r.Close())
	if err := r.Err(); err != nil {
		t.Errorf("relay: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "here")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if conns.Load() != 2 {
		t.Errorf("%d connections arrived, want 2", conns.Load())
	}
	s.endpoint.Close(token(7))
	sent, answered := int64(2*len(data)), int64(2*(len(data)+3))
	if o := out.Stats(); o.Disk != (ChannelStats{sent, answered, 2}) || o.WireSentBytes < sent || o.WireReceivedBytes < answered {
		t.Errorf("source counted %+v", o)
	}
	if i := in.Stats(); i.Disk != (ChannelStats{answered, sent, 2}) {
		t.Errorf("destination counted %+v", i)
	}
}

// exchange writes, closes its direction, and reads the rest.
func exchange(path string, data []byte) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		if err == nil {
			err = c.(*net.UnixConn).CloseWrite()
		}
		wrote <- err
	}()
	all, err := io.ReadAll(c)
	if werr := <-wrote; werr != nil {
		return werr
	}
	if err == nil && !bytes.Equal(all, append(bytes.Clone(data), "end"...)) {
		err = errors.New("other bytes came back")
	}
	return err
}

// TestRefused: who may not, gets no stream, and always the same answer.
func TestRefused(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, a)
	dir := t.TempDir()
	echo(t, filepath.Join(dir, "there"))
	sockets := map[Channel]string{Memory: filepath.Join(dir, "there")}
	_, err := s.endpoint.Open(Offer{Token: token(1), Peer: "north", Sockets: sockets})
	must(t, err)
	_, err = s.endpoint.Open(Offer{Token: token(2), Peer: "north", Sockets: sockets})
	must(t, err)
	s.endpoint.Close(token(2))
	north := a.config(pki.Agent, "north")
	open := func(cfg *tls.Config, peer string, h Header) error {
		stream, err := (&Dialer{TLS: cfg}).Open(context.Background(), s.address, peer, h, NewSession(0))
		if err == nil {
			_ = stream.Close()
		}
		return err
	}
	ok := Header{Token: token(1), Channel: Memory}
	for name, err := range map[string]error{
		"unknown token":     open(north, "south", Header{Token: token(9), Channel: Memory}),
		"session has ended": open(north, "south", Header{Token: token(2), Channel: Memory}),
		"channel not there": open(north, "south", Header{Token: token(1), Channel: Disk}),
		"no copy offered":   open(north, "south", Header{Token: token(1), Channel: Copy, Name: "vda"}),
		"foreign agent":     open(a.config(pki.Agent, "west"), "south", ok),
		"server's":          open(a.config(pki.Server, "north"), "south", ok),
	} {
		if drover.KindOf(err) != drover.Denied || err == nil || !bytes.Contains([]byte(err.Error()), []byte("no such session")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := open(north, "west", ok); drover.KindOf(err) != drover.Denied || err == nil {
		t.Errorf("the wrong destination: %v", err)
	}
	if err := open(newAuthority(t).config(pki.Agent, "north"), "south", ok); err == nil {
		t.Error("another authority's certificate was accepted")
	}
	if err := open(north, "south", ok); err != nil {
		t.Errorf("the right one: %v", err)
	}
	_ = s.endpoint
}

// TestMemoryOnce: a session has one memory stream at a time.
func TestMemoryOnce(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, a)
	dir := t.TempDir()
	echo(t, filepath.Join(dir, "there"))
	_, err := s.endpoint.Open(Offer{Token: token(1), Peer: "north", Sockets: map[Channel]string{Memory: filepath.Join(dir, "there")}})
	must(t, err)
	d := &Dialer{TLS: a.config(pki.Agent, "north")}
	h := Header{Token: token(1), Channel: Memory}
	first, err := d.Open(t.Context(), s.address, "south", h, NewSession(0))
	must(t, err)
	defer first.Close()
	if second, err := d.Open(t.Context(), s.address, "south", h, NewSession(0)); drover.KindOf(err) != drover.Denied {
		t.Errorf("a second memory stream: %v, %v", second, err)
	}
}

// TestNotListening: the destination's hypervisor is gone.
func TestNotListening(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, a)
	_, err := s.endpoint.Open(Offer{Token: token(1), Peer: "north", Sockets: map[Channel]string{Memory: filepath.Join(t.TempDir(), "nobody")}})
	must(t, err)
	r, err := NewRelay(filepath.Join(t.TempDir(), "here"), func(ctx context.Context) (Stream, error) {
		return (&Dialer{TLS: a.config(pki.Agent, "north")}).Open(ctx, s.address, "south", Header{Token: token(1), Channel: Memory}, NewSession(0))
	})
	must(t, err)
	defer r.Close()
	c, err := net.Dial("unix", r.listener.Addr().String())
	must(t, err)
	defer c.Close()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && err == nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	must(t, r.Close())
	if drover.KindOf(r.Err()) != drover.Unavailable {
		t.Errorf("the relay says %v", r.Err())
	}
}

// TestALPN: one port, two protocols, and nothing for a third.
func TestALPN(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, a)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(s.mux.Control()) }()
	t.Cleanup(func() { _ = server.Close(); <-ended })
	cfg := pki.Expect(a.config(pki.Server, "server"), pki.Identity{Role: pki.Agent, Name: "south"})
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + s.address)
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	must(t, resp.Body.Close())
	if string(body) != "HTTP/2.0" {
		t.Errorf("control speaks %s", body)
	}
	for _, protos := range [][]string{{"http/1.1"}, nil} {
		c := cfg.Clone()
		c.NextProtos = protos
		conn, err := tls.Dial("tcp", s.address, c)
		if err != nil {
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("protocols %v: read %d bytes, %v", protos, n, err)
		}
		_ = conn.Close()
	}
	// Whoever shows no certificate gets nothing at all.
	bare := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{Protocol}}
	if conn, err := tls.Dial("tcp", s.address, bare); err == nil {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("answered without a certificate")
		}
		_ = conn.Close()
	}
}

// TestSilentPeers: connections that never finish a handshake do not keep
// others out.
func TestSilentPeers(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, a)
	dir := t.TempDir()
	echo(t, filepath.Join(dir, "there"))
	_, err := s.endpoint.Open(Offer{Token: token(1), Peer: "north", Sockets: map[Channel]string{Memory: filepath.Join(dir, "there")}})
	must(t, err)
	for range maxHandshakes - 1 {
		c, err := net.Dial("tcp", s.address)
		must(t, err)
		defer c.Close()
	}
	st, err := (&Dialer{TLS: a.config(pki.Agent, "north")}).Open(t.Context(), s.address, "south", Header{Token: token(1), Channel: Memory}, NewSession(0))
	must(t, err)
	_ = st.Close()
}

// TestRate: a limited session takes as long as its rate says, over all of its
// streams, and one that is closed does not wait.
func TestRate(t *testing.T) {
	s := NewSession(80 * drover.Mbps) // 10 MB/s
	var wait time.Duration
	for range 12 {
		wait = s.reserve(burstBytes)
	}
	// Eleven bursts of 262,144 bytes beyond the first at 10 MB/s.
	want := time.Duration(11 * burstBytes * 100)
	if d := wait - want; d.Abs() > want/4 {
		t.Errorf("after 12 bursts the wait is %s, want about %s", wait, want)
	}
	s.SetRate(0)
	if w := s.reserve(burstBytes); w != 0 {
		t.Errorf("unlimited waits %s", w)
	}
}

func TestLongSocketPath(t *testing.T) {
	long := filepath.Join(t.TempDir(), string(bytes.Repeat([]byte("x"), maxUnixPath)))
	if _, err := NewRelay(long, nil); drover.KindOf(err) != drover.Invalid {
		t.Errorf("%v", err)
	}
}

// TestEndpointCloseEndsStreams: a session that is closed takes its streams
// with it, also one whose hypervisor does not read.
func TestEndpointCloseEndsStreams(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, a)
	path := filepath.Join(t.TempDir(), "there")
	l, err := net.Listen("unix", path)
	must(t, err)
	defer l.Close()
	_, err = s.endpoint.Open(Offer{Token: token(1), Peer: "north", Sockets: map[Channel]string{Memory: path}})
	must(t, err)
	st, err := (&Dialer{TLS: a.config(pki.Agent, "north")}).Open(t.Context(), s.address, "south", Header{Token: token(1), Channel: Memory}, NewSession(0))
	must(t, err)
	defer st.Close()
	stuck := make(chan error, 1)
	go func() {
		_, err := io.Copy(st, neverEnding{})
		stuck <- err
	}()
	time.Sleep(50 * time.Millisecond)
	s.endpoint.Close(token(1))
	if err := <-stuck; err == nil {
		t.Error("the writer ended without an error")
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }
