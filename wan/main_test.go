package wan

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/wan/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds the wait for what has to happen, on a busy machine.
const patience = 60 * time.Second

// authority issues certificates for one test.
type authority struct {
	t  testing.TB
	ca *pki.CA
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	ca, err := pki.NewCA(filepath.Join(t.TempDir(), "ca"), time.Now())
	must(t, err)
	return authority{t, ca}
}

func (a authority) config(role pki.Role, name string) *tls.Config {
	a.t.Helper()
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

func wantKind(t testing.TB, err error, want drover.Kind) {
	t.Helper()
	if err == nil || drover.KindOf(err) != want {
		t.Fatalf("got error %v (%v), want one that is %v", err, drover.KindOf(err), want)
	}
}

// eventually waits until what is said is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// within waits for a channel's value.
func within[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("not within %s: %s", patience, what)
		panic("unreachable")
	}
}

// ends runs f, which has to return.
func ends(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	within(t, what, done)
}

// site is an agent: a node behind a port.
type site struct {
	name, address string
	config        *tls.Config
	node          *Node
	mux           *Mux
}

// newSite runs an agent until the test ends. Without a folder it keeps nothing.
func newSite(t testing.TB, a authority, name string, c Config) *site {
	t.Helper()
	c.TLS = a.config(pki.Agent, name)
	c.Log = slog.New(slog.NewTextHandler(t.Output(), nil)).With("site", name)
	node, err := NewNode(c)
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &site{name: name, address: l.Addr().String(), config: c.TLS, node: node, mux: NewMux(l, c.TLS, c.Log)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 3)
	go func() { ended <- s.mux.Serve(ctx) }()
	go func() { ended <- node.Serve(ctx, s.mux.Data()) }()
	go func() { ended <- node.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range cap(ended) {
			if err := within(t, "the site's end", ended); err != nil {
				t.Errorf("serve: %v", err)
			}
		}
		if err := node.Close(); err != nil {
			t.Errorf("close node: %v", err)
		}
	})
	return s
}

// pair is two agents that keep content.
func pair(t testing.TB, c Config) (north, south *site) {
	t.Helper()
	a := newAuthority(t)
	cn, cs := c, c
	cn.Dir, cs.Dir = t.TempDir(), t.TempDir()
	return newSite(t, a, "north", cn), newSite(t, a, "south", cs)
}

// indexed waits until a site has catalogues.
func (s *site) indexed(t testing.TB, ids ...chunk.SourceID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, s.node.library.WaitIndexed(ctx, ids...))
}

// socketDir is a folder whose path leaves room for a socket's name.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wan")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newToken(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, MaxToken)
	_, err := rand.Read(b)
	must(t, err)
	return b
}

// trip is what a session is for.
type trip struct {
	from, to *site
	subject  Subject
	via      string // the address dialed; the destination's own if empty
	// approach has connections that were made before; nil for none.
	approach *Approach
	rate     drover.BitRate
	// Where the hypervisor listens at the destination.
	memory, disks string
	image         func(ctx context.Context, target string) (Image, error)
	// claimed, if set, is what the sender is told instead of what was offered.
	claimed []Source
	// bare gives the destination an empty list.
	bare bool
}

// session is both ends of one.
type session struct {
	out *Sender
	in  *Receiver
	dir string // for the sender's sockets
}

// start opens a session, which ends with the test if not before.
func start(t testing.TB, p trip) *session {
	t.Helper()
	if p.subject == (Subject{}) {
		p.subject = Subject{Move: "move1", VM: "vm1", Tenant: "red"}
	}
	if p.via == "" {
		p.via = p.to.address
	}
	offered := p.to.node.Offer(p.subject)
	if p.bare {
		offered = nil
	}
	s := &session{dir: socketDir(t)}
	token := newToken(t)
	var err error
	s.in, err = p.to.node.Receive(ReceiveOptions{
		Token: token, Peer: p.from.name, Subject: p.subject, Offered: offered,
		MemorySocket: p.memory, DiskSocket: p.disks, Image: p.image,
	})
	must(t, err)
	t.Cleanup(func() { ends(t, "receiver's close", s.in.Close) })
	if p.claimed != nil {
		offered = p.claimed
	}
	s.out, err = p.from.node.Send(t.Context(), SendOptions{
		Address: p.via, Peer: p.to.name, Token: token, Offered: offered, Subject: p.subject, Rate: p.rate, Approach: p.approach,
	})
	must(t, err)
	t.Cleanup(func() { s.end(t) })
	return s
}

// end closes the sender.
func (s *session) end(t testing.TB) {
	t.Helper()
	ends(t, "sender's close", func() {
		if err := s.out.Close(); err != nil {
			t.Errorf("close sender: %v", err)
		}
	})
}

// learned waits until the sender knows at least so many blocks.
func (s *session) learned(t testing.TB, blocks int64) {
	t.Helper()
	eventually(t, "the sender has learned", func() bool { return s.out.known.Index.Len() >= blocks })
}

// whole waits until all connections are there.
func (s *session) whole(t testing.TB, conns int) {
	t.Helper()
	eventually(t, "all connections", func() bool {
		return s.out.bundle.Stats().Now == conns && s.in.bundle.Stats().Now == conns
	})
}

// same compares what came with what went.
func same(t testing.TB, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	n := 0
	for n < min(len(got), len(want)) && got[n] == want[n] {
		n++
	}
	t.Fatalf("%d bytes arrived, want %d; alike up to %d", len(got), len(want), n)
}

// checkFigures says what is wrong with figures, whatever was carried.
func checkFigures(t testing.TB, f drover.PathFigures) {
	t.Helper()
	for name, p := range map[string]drover.PathPhase{"disk": f.Disk, "memory": f.Memory, "switchover": f.Switchover} {
		var guest drover.Bytes
		for _, k := range p.Kinds.Each() {
			if k.Blocks < 0 || k.GuestBytes < 0 || k.WireBytes < 0 {
				t.Errorf("%s, %s: negative: %+v", name, k.Name, k.PathCount)
			}
			guest += k.GuestBytes
		}
		if guest != p.GuestBytes {
			t.Errorf("%s: kinds have %d guest bytes, the phase %d", name, guest, p.GuestBytes)
		}
		if p.Seconds < 0 || p.GuestBytes < 0 || p.WireBytes < 0 || p.RetransmittedBytes < 0 || p.Cuts < 0 ||
			p.CutSeconds < 0 || p.MissedReferences < 0 || p.CPUSeconds < 0 {
			t.Errorf("%s: negative: %+v", name, p)
		}
	}
	if total := f.Total(); total.GuestBytes > 0 && (total.WireBytes == 0 || total.Seconds == 0) {
		t.Errorf("guest bytes crossed by nothing: %+v", total)
	}
}
