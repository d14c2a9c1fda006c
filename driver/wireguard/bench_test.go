package wireguard_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/drover-vm/drover/driver/wireguard"
)

// BenchmarkThroughput is TCP through user space WireGuard, both ends on this machine, on
// WANs that need fragments and such that do not.
func BenchmarkThroughput(b *testing.B) {
	for _, c := range []struct{ wan, mtu int }{{1500, 0}, {1500, 1420}, {1600, 0}, {1650, 0}} {
		b.Run(fmt.Sprintf("wan=%d/mtu=%d", c.wan, c.mtu), func(b *testing.B) {
			w, _, _ := pair(b, c.wan, func(cfg *wireguard.Config) { cfg.UserSpace, cfg.MTU = true, c.mtu })
			to := netip.MustParseAddr("10.99.0.2")
			for end := time.Now().Add(15 * time.Second); w.ping("e0", to, 1, 56) != nil; {
				if time.Now().After(end) {
					b.Fatal("no way to the peer")
				}
			}
			var l net.Listener
			if err := w.inside("e1", func() (err error) {
				l, err = net.Listen("tcp", "10.99.0.2:7000")
				return err
			}); err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			received := make(chan error, 1)
			go func() {
				conn, err := l.Accept()
				if err == nil {
					defer conn.Close()
					_, err = io.Copy(conn, io.LimitReader(conn, 1)) // the first byte comes back at once
					if err == nil {
						_, err = io.Copy(io.Discard, conn)
					}
				}
				received <- err
			}()
			var conn net.Conn
			if err := w.inside("e0", func() (err error) {
				conn, err = net.DialTimeout("tcp", "10.99.0.2:7000", 5*time.Second)
				return err
			}); err != nil {
				b.Fatal(err)
			}
			block := make([]byte, 1<<20)
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if _, err := conn.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			conn.(*net.TCPConn).CloseWrite()
			if err := <-received; err != nil {
				b.Fatal(err)
			}
			conn.Close()
		})
	}
}
