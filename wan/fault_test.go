package wan

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/frame"
)

const conns = 3

// TestCutInMemory cuts the WAN in the middle of a guest's memory, and again
// before it comes to rest.
func TestCutInMemory(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{Connections: conns})
	wire := newCable(t, south.address)
	there := arrive(t, returnPath, nil)
	s := start(t, trip{from: north, to: south, via: wire.address, memory: there.path})
	s.whole(t, conns)
	stream := newNoise(21, 6).stream(2, 100)
	path := filepath.Join(s.dir, "m")
	cutOff := func(after int64) <-chan struct{} {
		return wire.onPassing(forth, after, func(p []byte, at int) ([]byte, bool) {
			wire.cutNow()
			return p[:at], true
		})
	}
	cut := cutOff(3 << 20)
	must(t, s.out.ListenMemory(path, 8<<20))
	gone := depart(path, stream)
	within(t, "the first cut", cut)
	eventually(t, "both ends notice", func() bool { return s.out.bundle.Stats().Now == 0 && s.in.bundle.Stats().Now == 0 })
	if p := s.out.Progress(); p.GuestBytes == 0 {
		t.Errorf("progress in the cut: %+v", p)
	}
	cut = cutOff(2 << 20)
	wire.heal()
	within(t, "the second cut", cut)
	wire.heal()
	d, a := within(t, "the guest has left", gone), within(t, "the guest has come", there.got)
	must(t, errors.Join(d.err, a.err, s.out.Err(), s.in.Err()))
	same(t, a.stream, stream)
	same(t, d.answer, returnPath)
	f := s.out.Figures()
	checkFigures(t, f)
	if total := f.Total(); total.Cuts != 2 || total.CutSeconds <= 0 || f.Memory.Cuts == 0 {
		t.Errorf("figures %+v", total)
	}
}

// TestCutInDisks cuts the WAN in the middle of a disk, with writes that were
// acknowledged and had not arrived.
func TestCutInDisks(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{Connections: conns})
	wire := newCable(t, south.address)
	data := newNoise(22, 6).mem
	d := newDisk(len(data))
	s := start(t, trip{from: north, to: south, via: wire.address, disks: serveNBD(t, map[string]*ramDisk{"vda": d})})
	s.whole(t, conns)
	cut := wire.onPassing(forth, 3<<20, func(p []byte, at int) ([]byte, bool) {
		wire.cutNow()
		return p[:at], true
	})
	mirror := s.mirror(t, "vda")
	written := make(chan error, 1)
	go func() { written <- writeAll(context.Background(), mirror, data) }()
	within(t, "the cut", cut)
	eventually(t, "both ends notice", func() bool { return s.out.bundle.Stats().Now == 0 && s.in.bundle.Stats().Now == 0 })
	wire.heal()
	must(t, within(t, "the disk is written", written))
	s.drain(t)
	must(t, errors.Join(s.out.Err(), s.in.Err()))
	same(t, d.bytes(), data)
	checkFigures(t, s.out.Figures())
}

// TestTampered changes or loses a little of what passes: it is noticed, and
// the other end gets what was sent.
func TestTampered(t *testing.T) {
	t.Parallel()
	flip := func(p []byte, at int) ([]byte, bool) {
		p[at] ^= 1 << (at % 8)
		return p, false
	}
	north, south := pair(t, Config{Connections: conns})
	// atHead changes a byte of a record's header, if one begins in what passes.
	atHead := func(w *cable, place int, bit byte) {
		w.tamper = func(direction int, before int64, p []byte) ([]byte, bool) {
			if direction == forth && before > 1<<20 && w.head >= 0 && w.head+place < len(p) {
				p[w.head+place] ^= bit
				w.tamper = nil
			}
			return p, false
		}
	}
	for name, c := range map[string]struct {
		place int
		bit   byte
	}{
		"a record's kind": {0, 1}, "a record's version": {1, 4}, "a record's length, longer": {3, 0x80}, "a record's length, shorter": {4, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wire := newCable(t, south.address)
			there := arrive(t, returnPath, nil)
			s := start(t, trip{from: north, to: south, via: wire.address, memory: there.path, subject: Subject{Move: name, VM: name}})
			s.whole(t, conns)
			wire.mu.Lock()
			atHead(wire, c.place, c.bit)
			wire.mu.Unlock()
			migrate(t, s, there, newNoise(29, 4).stream(1, 50), returnPath)
			if st := s.in.bundle.Stats(); st.Corrupt == 0 {
				t.Errorf("corruption was not counted: %+v", st)
			}
		})
	}
	for name, c := range map[string]struct {
		direction int
		after     int64
		do        func(p []byte, at int) ([]byte, bool)
		corrupt   bool
	}{
		"bit forth":           {forth, 1 << 20, flip, true},
		"another bit forth":   {forth, 2<<20 + 12345, flip, true},
		"bit back":            {back, 600, flip, true},
		"cut short":           {forth, 1<<20 + 777, func(p []byte, at int) ([]byte, bool) { return p[:at], true }, false},
		"a piece is missing":  {forth, 1<<20 + 99, func(p []byte, at int) ([]byte, bool) { return append(p[:at:at], p[min(len(p), at+100):]...), false }, true},
		"a piece comes twice": {forth, 1<<20 + 50, func(p []byte, at int) ([]byte, bool) { return append(p[:at:at], p...), false }, true},
		"something comes extra": {forth, 1<<20 + 5, func(p []byte, at int) ([]byte, bool) {
			return append(append(p[:at:at], 0x17, 3, 3, 0, 50), p...), false
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wire := newCable(t, south.address)
			there := arrive(t, returnPath, nil)
			s := start(t, trip{from: north, to: south, via: wire.address, memory: there.path, subject: Subject{Move: name, VM: name}})
			s.whole(t, conns)
			stream := newNoise(23, 4).stream(1, 50)
			done := wire.onPassing(c.direction, c.after, c.do)
			migrate(t, s, there, stream, returnPath)
			within(t, "it was tampered with", done)
			out, in := s.out.bundle.Stats(), s.in.bundle.Stats()
			if out.Lost == 0 && in.Lost == 0 {
				t.Errorf("no connection was dropped: %+v, %+v", out, in)
			}
			if c.corrupt && out.Corrupt+in.Corrupt == 0 {
				t.Errorf("corruption was not counted: %+v, %+v", out, in)
			}
			if c.direction == forth && s.out.Figures().Total().RetransmittedBytes == 0 {
				t.Error("nothing was counted as sent again")
			}
			checkFigures(t, s.out.Figures())
		})
	}
}

// TestCutForTooLong: both ends give up, say why, and let go of the
// hypervisors.
func TestCutForTooLong(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{Connections: conns, CutLimit: time.Second})
	wire := newCable(t, south.address)
	there := arrive(t, returnPath, nil)
	d := newDisk(8 << 20)
	s := start(t, trip{from: north, to: south, via: wire.address, memory: there.path, disks: serveNBD(t, map[string]*ramDisk{"vda": d})})
	s.whole(t, conns)
	mirror := s.mirror(t, "vda")
	_, err := mirror.WriteAt(bytes.Repeat([]byte("x"), 1<<20), 0)
	must(t, err)
	cut := wire.onPassing(forth, 2<<20, func(p []byte, at int) ([]byte, bool) {
		wire.cutNow()
		return p[:at], true
	})
	path := filepath.Join(s.dir, "m")
	must(t, s.out.ListenMemory(path, 8<<20))
	gone := depart(path, newNoise(24, 8).stream(1, 1))
	within(t, "the cut", cut)
	within(t, "the source's QEMU learns of it", gone).failed(t)
	within(t, "the destination's QEMU learns of it", there.got)
	if err := mirror.Flush(t.Context()); err == nil {
		t.Error("a flush of what has not arrived ended well")
	}
	eventually(t, "both ends say why", func() bool { return s.out.Err() != nil && s.in.Err() != nil })
	wantKind(t, s.out.Err(), drover.Unavailable)
	wantKind(t, s.in.Err(), drover.Unavailable)
	if err := s.out.Drain(t.Context()); err == nil {
		t.Error("a drain of what has not arrived ended well")
	}
	must(t, s.out.Keep(t.Context()))
	must(t, s.in.Keep(t.Context()))
	checkFigures(t, s.out.Figures())
}

// TestRefused: who may not, gets no session, always by the same words, and the
// session that there is goes on.
func TestRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	north, south := newSite(t, a, "north", Config{}), newSite(t, a, "south", Config{})
	west := newSite(t, a, "west", Config{})
	wire := newCable(t, south.address)
	there := arrive(t, nil, nil)
	s := start(t, trip{from: north, to: south, via: wire.address, memory: there.path})
	good := s.out.options
	send := func(n *site, change func(*SendOptions)) error {
		o := good
		o.Address = south.address
		change(&o)
		out, err := n.node.Send(t.Context(), o)
		if err == nil {
			_ = out.Close()
		}
		return err
	}
	for name, err := range map[string]error{
		"unknown token": send(north, func(o *SendOptions) { o.Token = newToken(t) }),
		"part of it":    send(north, func(o *SendOptions) { o.Token = o.Token[:MinToken] }),
		"foreign agent": send(west, func(*SendOptions) {}),
		"second sender": send(north, func(*SendOptions) {}),
	} {
		if drover.KindOf(err) != drover.Denied || !bytes.Contains([]byte(err.Error()), []byte("no such session")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantKind(t, send(north, func(o *SendOptions) { o.Peer = "west" }), drover.Denied)
	wantKind(t, send(north, func(o *SendOptions) { o.Token = []byte("short") }), drover.Invalid)
	wantKind(t, send(north, func(o *SendOptions) { o.Offered = make([]Source, maxOffered+1) }), drover.Invalid)
	if _, err := south.node.Receive(s.in.options); drover.KindOf(err) != drover.Exists {
		t.Errorf("a token twice: %v", err)
	}
	// Another authority's certificate, even of the right name.
	stranger := newSite(t, newAuthority(t), "north", Config{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	o := good
	o.Address = south.address
	if out, err := stranger.node.Send(ctx, o); err == nil {
		_ = out.Close()
		t.Error("another authority's certificate was accepted")
	}
	migrate(t, s, there, newNoise(25, 1).stream(1, 1), nil)
	s.end(t)
	s.in.Close()
	wantKind(t, send(north, func(*SendOptions) {}), drover.Denied)
}

// TestReplay: the hello of a session's connection, and the whole of one as it
// passed the WAN, do nothing when they come again.
func TestReplay(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	north, south := newSite(t, a, "north", Config{Connections: 1}), newSite(t, a, "south", Config{})
	// The session's connection comes by a port of its own, where its hello is written down.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	cfg := south.config.Clone()
	cfg.NextProtos = []string{Protocol}
	wire := newCable(t, l.Addr().String())
	var recorded []byte
	wire.tamper = func(direction int, _ int64, p []byte) ([]byte, bool) {
		if direction == forth {
			recorded = append(recorded, p...)
		}
		return p, false
	}
	there := arrive(t, nil, nil)
	token := newToken(t)
	in, err := south.node.Receive(ReceiveOptions{Token: token, Peer: "north", MemorySocket: there.path})
	must(t, err)
	defer in.Close()
	hello := make(chan []byte, 1)
	go func() {
		defer l.Close()
		raw, err := l.Accept()
		if err != nil {
			return
		}
		conn := tls.Server(raw, cfg)
		var said bytes.Buffer
		h, err := frame.ReadHello(io.TeeReader(conn, &said))
		if err != nil || in.bundle.Attach(conn, h) != nil {
			_ = raw.Close()
			return
		}
		hello <- said.Bytes()
	}()
	out, err := north.node.Send(t.Context(), SendOptions{Address: wire.address, Peer: "south", Token: token})
	must(t, err)
	s := &session{out: out, in: in, dir: socketDir(t)}
	defer s.end(t)
	again := within(t, "the hello", hello)

	conn, err := dial(t.Context(), a.config(pki.Agent, "north"), south.address, "south")
	must(t, err)
	defer conn.Close()
	_, err = conn.Write(again)
	must(t, err)
	answer, err := frame.ReadAnswer(conn)
	if err != nil || answer.Status != frame.Refused {
		t.Errorf("a replayed hello: %+v, %v", answer, err)
	}
	migrate(t, s, there, newNoise(26, 2).stream(1, 1), nil)
	before := in.bundle.Stats().Connections

	wire.mu.Lock()
	all := bytes.Clone(recorded)
	wire.mu.Unlock()
	if len(all) < 2<<20 {
		t.Fatalf("%d bytes were recorded", len(all))
	}
	raw, err := net.Dial("tcp", south.address)
	must(t, err)
	defer raw.Close()
	go func() { _, _ = raw.Write(all) }()
	_ = raw.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, raw); errors.Is(err, context.DeadlineExceeded) {
		t.Error("a replayed connection was not closed")
	}
	if st := in.bundle.Stats(); st.Connections != before || in.Err() != nil {
		t.Errorf("a replayed connection was taken: %+v, %v", st, in.Err())
	}
}

// TestHostile opens channels as no sender of ours does.
func TestHostile(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	north, south := newSite(t, a, "north", Config{}), newSite(t, a, "south", Config{Dir: t.TempDir()})
	there := arrive(t, nil, nil)
	kinds := map[string]func(ctx context.Context, b *bundle.Bundle) error{
		"memory without fill": func(ctx context.Context, b *bundle.Bundle) error {
			_, err := b.Open(ctx, bundle.Memory, memoryChannel)
			return err
		},
		"two memories": func(ctx context.Context, b *bundle.Bundle) error {
			_, err := b.Open(ctx, bundle.Memory, memoryChannel)
			_, again := b.Open(ctx, bundle.Memory, memoryChannel)
			return errors.Join(err, again)
		},
		"garbage for memory": func(ctx context.Context, b *bundle.Bundle) error {
			for _, class := range []bundle.Class{bundle.Fill, bundle.Return, bundle.Memory} {
				c, err := b.Open(ctx, class, memoryChannel)
				if err != nil {
					return err
				}
				if err := c.Send(ctx, 1, bytes.Repeat([]byte{0xa5}, 5000)); err != nil {
					return err
				}
			}
			return nil
		},
		"huge mirror": func(ctx context.Context, b *bundle.Bundle) error {
			c, err := b.Open(ctx, bundle.Control, mirrorChannel)
			return errors.Join(err, c.Send(ctx, proposeKind, bytes.Repeat([]byte{0xff}, 8)))
		},
		"catalogue of nothing": func(ctx context.Context, b *bundle.Bundle) error {
			_, err := b.Open(ctx, bundle.Control, "-1")
			return err
		},
		"garbage for a copy": func(ctx context.Context, b *bundle.Bundle) error {
			c, err := b.Open(ctx, bundle.Copy, "vda")
			return errors.Join(err, c.Send(ctx, copyRuns, []byte{0x80}))
		},
		"garbage for a disk": func(ctx context.Context, b *bundle.Bundle) error {
			c, err := b.Open(ctx, bundle.Disk, "vda")
			return errors.Join(err, c.Send(ctx, 0, nil))
		},
	}
	for name, do := range kinds {
		t.Run(name, func(t *testing.T) {
			token := newToken(t)
			in, err := south.node.Receive(ReceiveOptions{
				Token: token, Peer: "north", MemorySocket: there.path, Image: into(newDisk(1 << 20)),
			})
			must(t, err)
			b, err := bundle.Initiate(t.Context(), bundle.Config{
				Dial:  func(ctx context.Context) (net.Conn, error) { return dial(ctx, north.config, south.address, "south") },
				Token: token,
			})
			must(t, err)
			defer b.Close(errors.New("done"))
			must(t, do(t.Context(), b))
			if name == "memory without fill" {
				eventually(t, "the channel has come", func() bool {
					in.mu.Lock()
					defer in.mu.Unlock()
					return in.parts.memory != nil
				})
			} else {
				eventually(t, "the receiver notices", func() bool { return in.Err() != nil })
			}
			ends(t, "close", in.Close)
		})
	}
}

// TestRandomCuts moves memory and a disk over a path that is cut at random.
func TestRandomCuts(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{Connections: conns})
	r := rand.New(rand.NewPCG(2024, 6))
	wire := newCable(t, south.address)
	g := newNoise(27, 4)
	disk := newNoise(28, 4)
	d := newDisk(len(disk.mem))
	there := arrive(t, returnPath, nil)
	s := start(t, trip{from: north, to: south, via: wire.address, memory: there.path, disks: serveNBD(t, map[string]*ramDisk{"vda": d})})
	s.whole(t, conns)
	var next func()
	next = func() {
		at := wire.passed[forth] + 1<<20 + r.Int64N(2<<20)
		wire.tamper = func(direction int, before int64, p []byte) ([]byte, bool) {
			if direction == back || before+int64(len(p)) < at {
				return p, false
			}
			// One connection dies, or all.
			if r.IntN(2) == 0 {
				wire.cutNow()
				wire.isCut = false
			}
			next()
			return p[:r.IntN(len(p))], true
		}
	}
	wire.mu.Lock()
	next()
	wire.mu.Unlock()
	mirror := s.mirror(t, "vda")
	written := make(chan error, 1)
	go func() { written <- writeAll(context.Background(), mirror, disk.mem) }()
	migrate(t, s, there, g.stream(2, 50), returnPath)
	must(t, within(t, "the disk is written", written))
	s.drain(t)
	same(t, d.bytes(), disk.mem)
	f := s.out.Figures()
	checkFigures(t, f)
	if s.out.bundle.Stats().Lost < 2 {
		t.Errorf("%+v", s.out.bundle.Stats())
	}
}
