package bundle

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/drover-vm/drover/wan/frame"
)

// faulty is a TCP connection that flips one bit or dies when it is told to.
type faulty struct {
	net.Conn
	fault *atomic.Int32 // 1 flips a bit of the next write, 2 kills
}

func (f faulty) Write(p []byte) (int, error) {
	switch f.fault.Swap(0) {
	case 1:
		p = append([]byte(nil), p...)
		p[len(p)/2] ^= 0x10
	case 2:
		_ = f.Close()
	}
	return f.Conn.Write(p)
}

// TestOverTLS: below TLS a flipped bit and a broken connection are noticed, and
// everything arrives.
func TestOverTLS(t *testing.T) {
	server, client := tlsConfigs(t)
	far, err := Accept(Config{Token: testToken})
	must(t, err)
	address := listenTLS(t, server, func(c *tls.Conn) {
		if hello, err := frame.ReadHello(c); err == nil {
			_ = far.Attach(c, hello)
			return
		}
		_ = c.Close()
	})
	var fault atomic.Int32
	near, err := Initiate(t.Context(), Config{Token: testToken, Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		raw, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		c := tls.Client(Count(faulty{raw, &fault}), client)
		return c, c.HandshakeContext(ctx)
	}})
	must(t, err)
	c, err := near.Open(t.Context(), Memory, "memory")
	must(t, err)
	there, err := far.Accept(t.Context())
	must(t, err)
	const count = 60
	var group sync.WaitGroup
	group.Go(func() { receive(t, there, 8, count) })
	group.Go(func() {
		for i := range count {
			if i%15 == 5 {
				fault.Store(1)
			} else if i%15 == 10 {
				fault.Store(2)
			}
			must(t, c.Send(t.Context(), uint8(i), message(8, i)))
		}
		must(t, c.CloseSend())
	})
	group.Wait()
	must(t, c.Drain(t.Context()))
	if s := far.Stats(); s.Corrupt == 0 || s.Violations != 0 || s.WireReceived < near.Stats().Sent[Memory] {
		t.Errorf("%d corrupt, %d violations, %d wire bytes for %d", s.Corrupt, s.Violations, s.WireReceived, near.Stats().Sent[Memory])
	}
	group.Go(func() { far.Close(nil) })
	near.Close(nil)
	group.Wait()
}
