package dns

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
)

// TestBIND runs the suite on a BIND primary with a BIND secondary.
func TestBIND(t *testing.T) {
	drivertest.Names(t, func(t *testing.T) drivertest.NamesZone {
		return newZone(t, bind(t, primaryIP, testZone, bindPrimary, zoneFile(2)),
			bind(t, "127.0.0.2", testZone, bindSecondary, ""))
	})
}

// TestKnot runs the suite on a Knot primary with a Knot secondary.
func TestKnot(t *testing.T) {
	drivertest.Names(t, func(t *testing.T) drivertest.NamesZone {
		return newZone(t, knot(t, primaryIP, zoneFile(2)), knot(t, "127.0.0.2", ""))
	})
}

// newZone starts the servers, the primary first.
func newZone(t *testing.T, servers ...*process) drivertest.NamesZone {
	t.Helper()
	for _, p := range servers {
		p.start(t)
	}
	primary := servers[0]
	follow := follower(t, servers)
	return drivertest.NamesZone{
		Zone:         testZone,
		Open:         func(t *testing.T) driver.Names { return open(t, Config{}) },
		OpenWrongKey: func(t *testing.T) driver.Names { return open(t, Config{Key: Key{Name: "nobody", Secret: secret}}) },
		Put:          func(t *testing.T, name string, r driver.NameRecords) { put(t, testZone, name, r) },
		PutText: func(t *testing.T, name, text string) {
			admin(t, testZone, func(m *dns.Msg) { m.Insert([]dns.RR{textRecord(dns.Fqdn(name), text)}) })
		},
		Texts: texts,
		PutAlias: func(t *testing.T, name, target string) {
			admin(t, testZone, func(m *dns.Msg) {
				m.Insert([]dns.RR{&dns.CNAME{
					Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 60}, Target: dns.Fqdn(target),
				}})
			})
		},
		Serial: func(t *testing.T) uint32 {
			n, ok := serial(primaryIP, testZone)
			if !ok {
				t.Fatal("the primary does not answer")
			}
			return n
		},
		Lag:           func(*testing.T) { follow.Store(false) },
		Follow:        func(*testing.T) { follow.Store(true) },
		StopPrimary:   func(*testing.T) { primary.kill() },
		StartPrimary:  primary.start,
		StopSecondary: func(*testing.T) { servers[1].kill() },
	}
}

// follower sends the notifications that the primaries are configured not to
// send, so that a test decides whether the others follow.
func follower(t *testing.T, servers []*process) *atomic.Bool {
	var on atomic.Bool
	on.Store(true)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(15 * time.Millisecond):
			}
			current, ok := serial(servers[0].address, testZone)
			if !ok || !on.Load() {
				continue
			}
			for _, p := range servers[1:] {
				if n, ok := serial(p.address, testZone); ok && n != current && on.Load() {
					m := new(dns.Msg)
					m.SetNotify(testZone + ".")
					_, _ = dns.Exchange(m, p.address+":53") // it is asked again until it follows
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return &on
}

// open opens a driver of the test's zone; what cfg leaves empty is as it works.
func open(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Zone == "" {
		cfg.Zone = testZone
	}
	if cfg.Primary == "" {
		cfg.Primary = primaryIP
	}
	if cfg.Key == (Key{}) {
		cfg.Key = Key{Name: "drover", Algorithm: "HMAC-SHA256", Secret: secret}
	}
	s, err := New(testLogger(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testLog writes a logger's lines to the test's.
type testLog struct{ t *testing.T }

func (w testLog) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func testLogger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(testLog{t}, nil)) }
