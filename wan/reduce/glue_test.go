package reduce_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/page"
	"github.com/drover-vm/drover/wan/reduce"
)

// sockets returns the two ends of a unix connection.
func sockets(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.UnixConn), d.(*net.UnixConn)
}

// qemuStream writes the guest's stream as QEMU does: sections rounds, and in the end the
// devices.
func qemuStream(g *guest, sections int) []byte {
	b := append([]byte("QEVM\x00\x00\x00\x03\x07\x00\x00\x00\x02pc"), 1, 0, 0, 0, 2, 3)
	b = append(b, "ram\x00\x00\x00\x00\x00\x00\x00\x04"...)
	var sum uint64
	for _, blk := range g.blocks {
		sum += blk.Bytes
	}
	b = binary.BigEndian.AppendUint64(b, sum|4)
	for _, blk := range g.blocks {
		b = append(append(b, byte(len(blk.Name))), blk.Name...)
		b = binary.BigEndian.AppendUint64(b, blk.Bytes)
	}
	end := append(binary.BigEndian.AppendUint64(nil, 0x10), 0x7e, 0, 0, 0, 2)
	b = append(b, end...)
	last := -1
	for i := range sections {
		kind := byte(2)
		if i == sections-1 {
			kind = 3
		}
		b = append(b, kind, 0, 0, 0, 2)
		for _, rec := range g.next() {
			if rec.Kind == page.Bytes {
				continue
			}
			rec.Continue = rec.Block == last
			last = rec.Block
			b = append(page.AppendHeader(b, rec, g.blocks), rec.Data...)
		}
		b = append(b, end...)
	}
	b = append(b, 4, 0, 0, 0, 9, 3)
	b = append(b, "cpu\x00\x00\x00\x00\x00\x00\x00\x01registers\x7e\x00\x00\x00\x09"...)
	return append(b, 0)
}

// path is a whole memory path between two QEMUs.
type path struct {
	source, destination *net.UnixConn // QEMU's ends
	send, receive       func(context.Context) error
	memory              *end
	stats               reduce.Stats
	rounds, lasts       atomic.Int32
}

func newPath(t *testing.T, g *guest, lanes int, staleness, failing int) *path {
	p := new(path)
	var sl, dl *net.UnixConn
	p.source, sl = sockets(t)
	p.destination, dl = sockets(t)
	r := rand.New(rand.NewPCG(3, 4))
	r2 := rand.New(rand.NewPCG(5, 6))
	index := chunk.NewIndex(1 << 20)
	have := &source{fail: func() bool { return false }}
	for i, b := range g.pool {
		index.Add(chunk.FingerprintOf(b), chunk.Ref{Block: uint32(i)})
		if r.IntN(1000) < staleness {
			b = edited(r, b, 1)
		}
		have.blocks = append(have.blocks, b)
	}
	const mirrored = 1 << 12
	here := newMirror(mirrored, func() bool { return r.IntN(100000) < failing })
	there := newMirror(mirrored, func() bool { return r2.IntN(100000) < failing })
	m1, m2 := newPair()
	f1, f2 := newPair()
	r1, rr2 := newPair()
	p.memory = m1
	p.send = func(ctx context.Context) error {
		return reduce.SendMemory(ctx, sl, m1, reduce.SendOptions{
			MemoryEncoderOptions: reduce.MemoryEncoderOptions{
				Known: &reduce.Known{Index: index}, Mirror: here, MirrorBlocks: mirrored, Stats: &p.stats,
			},
			Fill: f1, Return: r1, RetainBytes: 1 << 20, Lanes: lanes,
			OnRound: func(int) { p.rounds.Add(1) }, OnLast: func() { p.lasts.Add(1) },
		})
	}
	p.receive = func(ctx context.Context) error {
		return reduce.ReceiveMemory(ctx, dl, m2, reduce.ReceiveOptions{
			MemoryDecoderOptions: reduce.MemoryDecoderOptions{
				Resolver: &world{sources: []*source{have}}, Mirror: there, MirrorBlocks: mirrored,
			},
			Fill: f2, Return: rr2,
		})
	}
	return p
}

func textPool(r *rand.Rand, n int) [][]byte {
	pool := make([][]byte, n)
	for i := range pool {
		pool[i] = text(r)
	}
	return pool
}

// TestPath sends streams between two QEMUs, which talk back, and wants the very bytes.
func TestPath(t *testing.T) {
	for _, c := range []struct {
		name                      string
		lanes, staleness, failing int
	}{{"plain", 1, 0, 0}, {"lanes", 3, 0, 0}, {"stale", 1, 50, 0}, {"failing", 2, 5, 50}} {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			g := newGuest(r, textPool(r, 200), 2000, 3, 40)
			want := qemuStream(g, 300)
			p := newPath(t, g, c.lanes, c.staleness, c.failing)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			var group errgroup.Group
			group.Go(func() error { return p.send(ctx) })
			group.Go(func() error { return p.receive(ctx) })
			group.Go(func() error {
				// The source's QEMU: writes in pieces, waits in between for what the other one says.
				for i, rest := 0, want; len(rest) > 0; i++ {
					n := min(len(rest), 1+r.IntN(200000))
					if _, err := p.source.Write(rest[:n]); err != nil {
						return err
					}
					rest = rest[n:]
				}
				got, err := io.ReadAll(io.LimitReader(p.source, 4))
				if err != nil || string(got) != "shut" {
					return errors.Join(errors.New("no last words, but "+string(got)), err)
				}
				return p.source.Close()
			})
			got := make([]byte, len(want))
			if _, err := io.ReadFull(p.destination, got); err != nil {
				t.Error(err)
			}
			if _, err := p.destination.Write([]byte("shut")); err != nil {
				t.Error(err)
			}
			p.destination.Close()
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("other bytes, from %d of %d on", differ(got, want), len(want))
			}
			if p.lasts.Load() != 1 || p.rounds.Load() < 2 {
				t.Errorf("%d pauses, %d rounds", p.lasts.Load(), p.rounds.Load())
			}
			total := p.stats.Total()
			if total.WireBytes != int64(p.memory.out.bytes) {
				t.Errorf("%d wire bytes counted, %d sent", total.WireBytes, p.memory.out.bytes)
			}
			if total.WireBytes > int64(len(want))*3/4 {
				t.Errorf("%d bytes of stream took %d", len(want), total.WireBytes)
			}
			if missed := p.stats.Missed.Load(); (missed > 0) != (c.staleness > 0) {
				t.Errorf("%d blocks missed", missed)
			}
			t.Logf("%d bytes -> %d, missed %d", len(want), total.WireBytes, p.stats.Missed.Load())
		})
	}
}

// TestPathWaits checks that nothing waits for more to come: every piece that QEMU writes comes out before
// it writes the next one.
func TestPathWaits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	g := newGuest(r, textPool(r, 200), 2000)
	want := qemuStream(g, 40)
	p := newPath(t, g, 2, 50, 0)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var group errgroup.Group
	group.Go(func() error { return p.send(ctx) })
	group.Go(func() error { return p.receive(ctx) })
	section := append(binary.BigEndian.AppendUint64(nil, 0x10), 0x7e, 0, 0, 0, 2)
	for rest := want; len(rest) > 0; {
		n := len(rest)
		if i := bytes.Index(rest, section); i >= 0 {
			n = i + len(section)
		}
		if _, err := p.source.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		if _, err := io.ReadFull(p.destination, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, rest[:n]) {
			t.Fatal("other bytes")
		}
		rest = rest[n:]
	}
	p.source.Close()
	p.destination.Close()
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestPathFails ends paths early, in every way, and wants both ends to say why.
func TestPathFails(t *testing.T) {
	setup := func(t *testing.T) (*path, []byte) {
		r := rand.New(rand.NewPCG(1, 2))
		g := newGuest(r, textPool(r, 200), 2000)
		return newPath(t, g, 2, 0, 0), qemuStream(g, 300)
	}
	run := func(t *testing.T, p *path, ctx context.Context, cancel func(), act func()) (send, receive error) {
		t.Helper()
		defer cancel()
		var group errgroup.Group
		// One end's failure ends the session, and so the other one.
		group.Go(func() error { send = p.send(ctx); return nil })
		group.Go(func() error { receive = p.receive(ctx); return nil })
		act()
		_ = group.Wait()
		return send, receive
	}
	t.Run("source's QEMU closes early", func(t *testing.T) {
		p, stream := setup(t)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		go func() { _, _ = io.Copy(io.Discard, p.destination) }()
		send, receive := run(t, p, ctx, cancel, func() {
			_, _ = p.source.Write(stream[:len(stream)/2])
			p.source.Close()
		})
		for _, err := range []error{send, receive} {
			if drover.KindOf(err) != drover.Canceled || !strings.Contains(err.Error(), "phase rounds") {
				t.Errorf("%v", err)
			}
		}
	})
	t.Run("destination's QEMU closes early", func(t *testing.T) {
		p, stream := setup(t)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		written := make(chan struct{})
		send, receive := run(t, p, ctx, cancel, func() {
			go func() { defer close(written); _, _ = p.source.Write(stream) }()
			_, _ = io.ReadFull(p.destination, make([]byte, len(stream)/2))
			p.destination.Close()
		})
		<-written
		if drover.KindOf(receive) != drover.Unavailable || !strings.Contains(receive.Error(), "to QEMU") {
			t.Errorf("receive: %v", receive)
		}
		if drover.KindOf(send) != drover.Unavailable || !strings.Contains(send.Error(), "to QEMU") {
			t.Errorf("send: %v", send)
		}
	})
	t.Run("channel fails", func(t *testing.T) {
		p, stream := setup(t)
		p.memory.out.cutAfter = 10
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		go func() { _, _ = io.Copy(io.Discard, p.destination) }()
		written := make(chan struct{})
		go func() { defer close(written); _, _ = p.source.Write(stream) }()
		sent := make(chan error, 1)
		received := make(chan error, 1)
		go func() { sent <- p.send(ctx) }()
		go func() { received <- p.receive(ctx) }()
		if err := <-sent; !errors.Is(err, errCut) {
			t.Errorf("send: %v", err)
		}
		cancel() // as the session does
		if err := <-received; !errors.Is(err, context.Canceled) {
			t.Errorf("receive: %v", err)
		}
		<-written
	})
	t.Run("canceled while waiting", func(t *testing.T) {
		p, stream := setup(t)
		ctx, cancel := context.WithCancel(context.Background())
		send, receive := run(t, p, ctx, cancel, func() {
			_, _ = p.source.Write(stream[:len(stream)/50])
			_, _ = io.ReadFull(p.destination, make([]byte, len(stream)/100))
			cancel()
		})
		for _, err := range []error{send, receive} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		}
	})
}
