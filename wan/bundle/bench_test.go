package bundle

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/wan/frame"
)

// tlsConfigs are a server's and a client's, with a certificate for the test.
func tlsConfigs(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"far"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	parsed, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13},
		&tls.Config{RootCAs: pool, ServerName: "far", MinVersion: tls.VersionTLS13}
}

// listenTLS serves each connection on loopback with handle, until the test ends.
func listenTLS(t testing.TB, cfg *tls.Config, handle func(*tls.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { handle(tls.Server(Count(c), cfg)) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); group.Wait() })
	return l.Addr().String()
}

// overTLS makes both ends of a bundle over loopback.
func overTLS(t testing.TB, conns int) (near, far *Bundle) {
	t.Helper()
	server, client := tlsConfigs(t)
	far, err := Accept(Config{Token: testToken})
	must(t, err)
	address := listenTLS(t, server, func(c *tls.Conn) {
		hello, err := frame.ReadHello(c)
		if err != nil {
			_ = c.Close()
			return
		}
		_ = far.Attach(c, hello)
	})
	near, err = Initiate(t.Context(), Config{Token: testToken, Conns: conns, Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		raw, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		tune(t, raw)
		c := tls.Client(Count(raw), client)
		return c, c.HandshakeContext(ctx)
	}})
	must(t, err)
	return near, far
}

// tune sets what the data path's dialer sets.
func tune(t testing.TB, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 128<<10)
	}))
}

const benchMessage = 128 << 10

// BenchmarkBundle sends messages over TLS on loopback. Compare with
// BenchmarkBareTLS of the same run.
func BenchmarkBundle(b *testing.B) {
	near, far := overTLS(b, 0)
	ctx := context.Background()
	c, err := near.Open(ctx, Memory, "memory")
	must(b, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		there, err := far.Accept(ctx)
		if err != nil {
			return
		}
		for {
			m, err := there.Receive(ctx)
			if err != nil {
				return
			}
			m.Release()
		}
	}()
	payload := make([]byte, benchMessage)
	_, _ = rand.Read(payload)
	b.SetBytes(benchMessage)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		must(b, c.Send(ctx, 1, payload))
	}
	must(b, c.Drain(ctx))
	b.StopTimer()
	must(b, c.CloseSend())
	<-done
	near.Close(nil)
	far.Close(nil)
}

// BenchmarkBareTLS copies the same over as many connections as a bundle has.
func BenchmarkBareTLS(b *testing.B) {
	server, client := tlsConfigs(b)
	address := listenTLS(b, server, func(c *tls.Conn) {
		buf := make([]byte, frame.FrameBytes)
		for {
			if _, err := io.ReadFull(c, buf); err != nil {
				_ = c.Close()
				return
			}
		}
	})
	work := make(chan []byte)
	var group sync.WaitGroup
	for range DefaultConns {
		raw, err := net.Dial("tcp", address)
		must(b, err)
		tune(b, raw)
		c := tls.Client(Count(raw), client)
		must(b, c.Handshake())
		group.Go(func() {
			defer c.Close()
			for p := range work {
				for len(p) > 0 {
					n := min(len(p), frame.FrameBytes)
					if _, err := c.Write(p[:n]); err != nil {
						b.Error(err)
						return
					}
					p = p[n:]
				}
			}
		})
	}
	payload := make([]byte, benchMessage)
	_, _ = rand.Read(payload)
	b.SetBytes(benchMessage)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		work <- payload
	}
	close(work)
	group.Wait()
}
