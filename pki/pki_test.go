package pki_test

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
)

func issue(t *testing.T, ca *pki.CA, role pki.Role, name string, now time.Time) *tls.Config {
	t.Helper()
	f, err := ca.Issue(pki.Identity{Role: role, Name: name}, []string{"127.0.0.1"}, t.TempDir(), now)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := pki.Config(f)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// handshake returns both ends' errors and whom the server saw.
func handshake(t *testing.T, server, client *tls.Config) (pki.Identity, error, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	deadline := time.Now().Add(5 * time.Second)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		if err != nil {
			a.Close()
		}
		done <- err
	}()
	cerr := c.Handshake()
	if cerr == nil {
		_, cerr = c.Read(make([]byte, 1))
	}
	if cerr != nil {
		b.Close()
	}
	serr := <-done
	cs := s.ConnectionState()
	id, _ := pki.Peer(&cs)
	return id, serr, cerr
}

func TestMutualTLS(t *testing.T) {
	now := time.Now()
	ca, err := pki.NewCA(filepath.Join(t.TempDir(), "ca"), now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewCA(filepath.Join(t.TempDir(), "ca"), now)
	if err != nil {
		t.Fatal(err)
	}
	agent := issue(t, ca, pki.Agent, "a1", now)
	server := issue(t, ca, pki.Server, "s", now)
	stranger := issue(t, other, pki.Server, "s", now)
	expired := issue(t, ca, pki.Server, "s", now.Add(-2*365*24*time.Hour))
	naked := server.Clone()
	naked.Certificates = nil

	for _, tt := range []struct {
		name           string
		listen, dial   *tls.Config
		wantOK         bool
		wantSeenByPeer pki.Identity
	}{
		{"server dials agent", agent, pki.Expect(server, pki.Identity{Role: pki.Agent, Name: "a1"}), true, pki.Identity{Role: pki.Server, Name: "s"}},
		{"any agent will do", agent, pki.Expect(server, pki.Identity{Role: pki.Agent}), true, pki.Identity{Role: pki.Server, Name: "s"}},
		{"wrong name", agent, pki.Expect(server, pki.Identity{Role: pki.Agent, Name: "a2"}), false, pki.Identity{}},
		{"wrong role", agent, pki.Expect(server, pki.Identity{Role: pki.Server, Name: "a1"}), false, pki.Identity{}},
		{"client of another CA", agent, stranger, false, pki.Identity{}},
		{"server of another CA", stranger, server, false, pki.Identity{}},
		{"expired client", agent, expired, false, pki.Identity{}},
		{"no client certificate", agent, naked, false, pki.Identity{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, serr, cerr := handshake(t, tt.listen, tt.dial)
			ok := serr == nil && cerr == nil
			if ok != tt.wantOK {
				t.Fatalf("handshake: server %v, client %v; want success %v", serr, cerr, tt.wantOK)
			}
			if ok && id != tt.wantSeenByPeer {
				t.Errorf("the server saw %s, want %s", id, tt.wantSeenByPeer)
			}
		})
	}
}

func TestBadInput(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := pki.LoadCA(dir); drover.KindOf(err) != drover.NotFound {
		t.Errorf("load missing CA: %v, want not found", err)
	}
	ca, err := pki.NewCA(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.NewCA(dir, time.Now()); drover.KindOf(err) != drover.Exists {
		t.Errorf("make CA twice: %v, want exists", err)
	}
	if _, err := ca.Issue(pki.Identity{Role: "king", Name: "x"}, nil, t.TempDir(), time.Now()); drover.KindOf(err) != drover.Invalid {
		t.Errorf("unknown role: %v, want invalid", err)
	}
	if _, err := ca.Issue(pki.Identity{Role: pki.Agent, Name: "../x"}, nil, t.TempDir(), time.Now()); drover.KindOf(err) != drover.Invalid {
		t.Errorf("name with a path: %v, want invalid", err)
	}
	if _, err := pki.Config(pki.Files{CA: "/nonexistent", Cert: "x"}); err == nil || !strings.Contains(err.Error(), "tls.key") {
		t.Errorf("missing key: %v, want a line naming tls.key", err)
	}
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Config(pki.Files{CA: junk, Cert: junk, Key: junk}); err == nil || !strings.Contains(err.Error(), "tls.ca") {
		t.Errorf("CA that is no PEM: %v, want a line naming tls.ca", err)
	}
}
