package wan

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

// closeBoth ends a session, twice, in either order.
func closeBoth(t *testing.T, s *session, inFirst bool) {
	t.Helper()
	for range 2 {
		if inFirst {
			ends(t, "receiver's close", s.in.Close)
		}
		s.end(t)
		ends(t, "receiver's close", s.in.Close)
	}
	must(t, s.out.Keep(t.Context()))
	must(t, s.in.Keep(t.Context()))
}

// TestClose ends sessions at every stage, from either end.
func TestClose(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{Connections: conns})
	for name, begin := range map[string]func(t *testing.T) (*session, func(t *testing.T)){
		"before anything": func(t *testing.T) (*session, func(*testing.T)) {
			return start(t, trip{from: north, to: south}), nil
		},
		"before anything connects": func(t *testing.T) (*session, func(*testing.T)) {
			s := start(t, trip{from: north, to: south, memory: "nowhere", disks: "nowhere"})
			must(t, s.out.ListenDisks(filepath.Join(s.dir, "d")))
			must(t, s.out.ListenMemory(filepath.Join(s.dir, "m"), 1<<20))
			return s, func(t *testing.T) {
				for _, name := range []string{"d", "m"} {
					if _, err := os.Stat(filepath.Join(s.dir, name)); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("the socket is still there: %v", err)
					}
				}
			}
		},
		"in the middle of memory": func(t *testing.T) (*session, func(*testing.T)) {
			hold := make(chan struct{})
			there := arrive(t, returnPath, hold)
			s := start(t, trip{from: north, to: south, memory: there.path})
			must(t, s.out.ListenMemory(filepath.Join(s.dir, "m"), 1<<20))
			gone := depart(filepath.Join(s.dir, "m"), newNoise(31, 3).stream(1, 1))
			eventually(t, "memory flows", func() bool { return s.out.Progress().GuestBytes > 1<<20 })
			return s, func(t *testing.T) {
				within(t, "the source's QEMU learns of it", gone).failed(t)
				close(hold)
				within(t, "the destination's QEMU learns of it", there.got)
			}
		},
		"in the middle of a disk": func(t *testing.T) (*session, func(*testing.T)) {
			d := newDisk(3 << 20)
			d.hold = make(chan struct{})
			socket := serveNBD(t, map[string]*ramDisk{"vda": d})
			s := start(t, trip{from: north, to: south, disks: socket})
			c := s.mirror(t, "vda")
			done := make(chan error, 1)
			go func() { done <- writeAll(t.Context(), c, newNoise(32, 3).mem) }()
			eventually(t, "the disk flows", func() bool { return s.out.Progress().GuestBytes > 1<<20 })
			return s, func(t *testing.T) {
				if err := within(t, "the mirror learns of it", done); err == nil {
					t.Error("the mirror believes that all is well")
				}
				close(d.hold)
			}
		},
		"in the middle of a copy": func(t *testing.T) (*session, func(*testing.T)) {
			d := newDisk(3 << 20)
			s := start(t, trip{from: north, to: south, image: into(d), rate: 20 * drover.Mbps})
			done := make(chan error, 1)
			go func() {
				_, err := s.out.SendImage(t.Context(), "vda", content(newNoise(33, 3).mem), nil)
				done <- err
			}()
			eventually(t, "the copy flows", func() bool { return s.out.Progress().GuestBytes > 1<<20 })
			return s, func(t *testing.T) {
				if err := within(t, "the copy's end", done); err == nil {
					t.Error("the copy ended well")
				}
				if len(d.seals) != 0 || d.closed != 1 {
					t.Errorf("sealed %d times, closed %d times", len(d.seals), d.closed)
				}
			}
		},
	} {
		for _, inFirst := range []bool{false, true} {
			t.Run(name+map[bool]string{false: " by the sender", true: " by the receiver"}[inFirst], func(t *testing.T) {
				s, after := begin(t)
				closeBoth(t, s, inFirst)
				if after != nil {
					after(t)
				}
				checkFigures(t, s.out.Figures())
				for _, n := range []*site{north, south} {
					if st := n.node.LibraryStats(); st.Unsealed != 0 || st.Memories != 0 {
						t.Errorf("%s is left with %+v", n.name, st)
					}
				}
			})
		}
	}
}

// TestReceiverAlone: a session that nobody comes to is closed, by itself and
// with its node, and says after the limit that nobody came.
func TestReceiverAlone(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	south := newSite(t, a, "south", Config{CutLimit: 300 * time.Millisecond})
	r, err := south.node.Receive(ReceiveOptions{Token: newToken(t), Peer: "north"})
	must(t, err)
	eventually(t, "it gives up", func() bool { return r.Err() != nil })
	wantKind(t, r.Err(), drover.Unavailable)
	ends(t, "close", r.Close)
	_, err = south.node.Receive(ReceiveOptions{Token: newToken(t), Peer: "north"})
	must(t, err) // the node closes it
	if _, err := south.node.Receive(ReceiveOptions{Token: []byte("short"), Peer: "north"}); drover.KindOf(err) != drover.Invalid {
		t.Errorf("a short token: %v", err)
	}
}

// TestFarGone: the receiver is closed; the sender says so, and its hypervisor's
// connections end.
func TestFarGone(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	there := arrive(t, nil, nil)
	s := start(t, trip{from: north, to: south, memory: there.path})
	must(t, s.out.ListenMemory(filepath.Join(s.dir, "m"), 1<<20))
	conn, err := net.Dial("unix", filepath.Join(s.dir, "m"))
	must(t, err)
	defer conn.Close()
	ends(t, "receiver's close", s.in.Close)
	eventually(t, "the sender says why", func() bool { return s.out.Err() != nil })
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the hypervisor's connection is still there")
	}
	if err := s.out.Drain(t.Context()); err == nil {
		t.Error("drained")
	}
}

// TestNoHypervisor: nobody listens at the destination's memory socket.
func TestNoHypervisor(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	for name, socket := range map[string]string{"nobody listens": filepath.Join(t.TempDir(), "nobody"), "no memory": ""} {
		t.Run(name, func(t *testing.T) {
			s := start(t, trip{from: north, to: south, memory: socket})
			must(t, s.out.ListenMemory(filepath.Join(s.dir, "m"), 1<<20))
			d := within(t, "the source's QEMU learns of it", depart(filepath.Join(s.dir, "m"), newNoise(34, 1).stream(1, 1)))
			d.failed(t)
			eventually(t, "both ends say why", func() bool { return s.out.Err() != nil && s.in.Err() != nil })
		})
	}
}

// TestOneMemory: whoever comes second to the memory's socket is refused.
func TestOneMemory(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	hold := make(chan struct{})
	there := arrive(t, nil, hold)
	s := start(t, trip{from: north, to: south, memory: there.path})
	path := filepath.Join(s.dir, "m")
	must(t, s.out.ListenMemory(path, 1<<20))
	stream := newNoise(35, 1).stream(1, 1)
	gone := depart(path, stream)
	eventually(t, "memory flows", func() bool { return s.out.Progress().GuestBytes > 0 })
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		t.Error("a second connection was taken")
	}
	close(hold)
	must(t, within(t, "the guest has left", gone).err)
	same(t, within(t, "the guest has come", there.got).stream, stream)
}
