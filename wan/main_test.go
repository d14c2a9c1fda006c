package wan

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority issues certificates for one test.
type authority struct {
	t  testing.TB
	ca *pki.CA
}

func newAuthority(t testing.TB) authority {
	ca, err := pki.NewCA(filepath.Join(t.TempDir(), "ca"), time.Now())
	must(t, err)
	return authority{t, ca}
}

func (a authority) config(role pki.Role, name string) *tls.Config {
	f, err := a.ca.Issue(pki.Identity{Role: role, Name: name}, nil, a.t.TempDir(), time.Now())
	must(a.t, err)
	cfg, err := pki.Config(f)
	must(a.t, err)
	return cfg
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// served is a Mux and an Endpoint on loopback.
type served struct {
	mux      *Mux
	endpoint *Endpoint
	address  string
}

// serve runs them until the test ends, with the certificate of agent "south".
func serve(t testing.TB, a authority) served {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	log := slog.New(slog.DiscardHandler)
	s := served{mux: NewMux(l, a.config(pki.Agent, "south"), log), endpoint: NewEndpoint(log), address: l.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- s.mux.Serve(ctx) }()
	go func() { ended <- s.endpoint.Serve(ctx, s.mux.Data()) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("serve: %v", err)
			}
		}
	})
	return s
}

func token(fill byte) []byte {
	b := make([]byte, MaxToken)
	for i := range b {
		b[i] = fill
	}
	return b
}
