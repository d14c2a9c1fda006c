package wan

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/drover-vm/drover/pki"
)

// TestALPN: one port, two protocols, and nothing for a third.
func TestALPN(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	s := newSite(t, a, "south", Config{})
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
		_ = conn.SetReadDeadline(time.Now().Add(patience))
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
	// A server's certificate opens no session.
	conn, err := dial(t.Context(), a.config(pki.Server, "server"), s.address, "south")
	must(t, err)
	defer conn.Close()
	_, _ = conn.Write(make([]byte, 100))
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("garbage for a hello did not end the connection")
	}
}

// TestSilentPeers: connections that never finish a handshake, or never say
// hello, do not keep others out.
func TestSilentPeers(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{Connections: 1})
	for range maxHandshakes - 1 {
		c, err := net.Dial("tcp", south.address)
		must(t, err)
		defer c.Close()
	}
	for range 5 {
		c, err := dial(t.Context(), north.config, south.address, "south")
		must(t, err)
		defer c.Close()
	}
	there := arrive(t, nil, nil)
	s := start(t, trip{from: north, to: south, memory: there.path})
	migrate(t, s, there, newNoise(41, 1).stream(1, 1), nil)
}
