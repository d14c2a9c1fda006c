package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/reduce"
)

// golden is an advertised source of number 3. Every so many reads lie.
type golden struct {
	content []byte
	lie     int
	mu      sync.Mutex
	reads   int
}

func (g *golden) ReadBlocks(source uint16, block int64, p []byte) error {
	if source != 3 {
		return errors.New("no such source")
	}
	clear(p[copy(p, g.content[block*blockBytes:]):])
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reads++; g.lie > 0 && g.reads%g.lie == 0 {
		p[17] ^= 1
	}
	return nil
}

// randomBytes is incompressible content.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// writer writes at random to a part of a disk and keeps what is to be there.
type writer struct {
	c    *nbd.Client
	r    *rand.Rand
	base int64
	want []byte
	gold []byte
}

// step does one operation.
func (w *writer) step(ctx context.Context) error {
	off := w.r.IntN(len(w.want))
	n := 1 + w.r.IntN(min(len(w.want)-off, 300<<10))
	if w.r.IntN(3) > 0 { // as a mirror does
		off &^= blockBytes - 1
		n = min((n+blockBytes-1)&^(blockBytes-1), len(w.want)-off)
	}
	p := w.want[off : off+n]
	at := w.base + int64(off)
	switch w.r.IntN(8) {
	case 0:
		clear(p)
		return w.c.ZeroWith(ctx, at, int64(n), nbd.ZeroOptions{KeepSpace: w.r.IntN(2) == 0})
	case 1:
		clear(p)
		return w.c.Trim(ctx, at, int64(n))
	case 2: // what the destination has elsewhere
		copy(p, w.gold[w.r.IntN(len(w.gold)/blockBytes)*blockBytes:])
	case 3: // what it may have on this disk by now
		copy(p, w.want[w.r.IntN(len(w.want)/blockBytes)*blockBytes:])
	case 4:
		copy(p, randomBytes(w.r.Uint64(), n))
	case 5: // blocks of zeros and others
		for i := range p {
			p[i] = byte(i>>12) & 2
		}
	case 6:
		got := make([]byte, n)
		if _, err := w.c.ReadAt(got, at); err != nil || !bytes.Equal(got, p) {
			return fmt.Errorf("read at %d, %d bytes: not what was written (%w)", at, n, err)
		}
		return nil
	default:
		return w.c.Flush(ctx)
	}
	_, err := w.c.WriteAt(p, at)
	return err
}

// TestContent: what several connections write at random is at the destination
// after a flush and after a drain, whatever the forms in which it crosses and
// although references fail now and then.
func TestContent(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			gold := &golden{content: randomBytes(99, 256<<10), lie: 7}
			const clients, part = 3, 1<<20 + 777
			m := &image{disk: bytes.Repeat([]byte{0xee}, clients*part)}
			p := newPath(t, pathOptions{dial: dialImages(t, map[string]*image{"d": m}), resolver: gold, limit: minLimit})
			for b := range int64(len(gold.content) / blockBytes) {
				p.known.Index.Add(chunk.FingerprintOf(gold.content[b*blockBytes:][:blockBytes]), chunk.Ref{Source: 3, Block: uint32(b)})
			}
			var wg sync.WaitGroup
			writers := make([]*writer, clients)
			for i := range writers {
				w := &writer{
					c: p.client("d"), r: rand.New(rand.NewPCG(seed, uint64(i))), base: int64(i * part),
					want: bytes.Repeat([]byte{0xee}, part), gold: gold.content,
				}
				writers[i] = w
				wg.Go(func() {
					for range 60 {
						if err := w.step(t.Context()); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			if err := p.source.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := append(append(append([]byte{}, writers[0].want...), writers[1].want...), writers[2].want...)
			if !bytes.Equal(m.disk, want) {
				t.Error("after Drain the content differs")
			}
			if err := Missing(p.source.Positions(), p.target.Positions()); err != nil {
				t.Errorf("after Drain: %v", err)
			}
			writers[0].c.WriteAt(want[:5000], 0)
			if err := writers[1].c.Flush(t.Context()); err != nil || !bytes.Equal(m.flushed, want) {
				t.Errorf("after Flush: %v, equal %t", err, bytes.Equal(m.flushed, want))
			}
			checkWritten(t, p.source.Written("d"), want)
			checkIndex(t, p, want)
			p.source.Close()
			if err := <-p.results; err != nil {
				t.Errorf("the target ended with %v", err)
			}
		})
	}
}

// checkWritten: what is known of the disk is true, and most is known.
func checkWritten(t *testing.T, w *Written, disk []byte) {
	t.Helper()
	known := 0
	w.Each(func(b int64, fp chunk.Fingerprint) bool {
		known++
		if got, ok := w.At(b); !ok || got != fp || fp != chunk.FingerprintOf(disk[b*blockBytes:][:blockBytes]) {
			t.Errorf("block %d is not what Written says", b)
		}
		return true
	})
	if int64(known) < w.Blocks()/2 {
		t.Errorf("%d of %d blocks are known", known, w.Blocks())
	}
}

// checkIndex: the disk's blocks can be referred to, and read at the
// destination under the numbers.
func checkIndex(t *testing.T, p *path, disk []byte) {
	t.Helper()
	found := 0
	number := p.source.Numbers()["d"]
	got := make([]byte, blockBytes)
	for b := 0; (b+1)*blockBytes <= len(disk); b++ {
		content := disk[b*blockBytes : (b+1)*blockBytes]
		ref, ok := p.known.Index.Lookup(chunk.FingerprintOf(content))
		if !ok || ref.Source != number {
			continue
		}
		found++
		if err := p.target.ReadBlocks(ref.Source, int64(ref.Block), got); err != nil || !bytes.Equal(got, content) {
			t.Errorf("block %d is not at %+v: %v", b, ref, err)
		}
	}
	if found == 0 {
		t.Error("nothing of the disk can be referred to")
	}
}

// TestAcknowledgedIsNotApplied: a write is acknowledged before it is at the
// destination; until it is, Drain waits, the positions differ and a flush is
// not answered.
func TestAcknowledgedIsNotApplied(t *testing.T) {
	m := &image{disk: make([]byte, 1<<20), hold: make(chan struct{})}
	p := newPath(t, pathOptions{dial: dialImages(t, map[string]*image{"d": m})})
	c := p.client("d")
	if _, err := c.WriteAt([]byte("here"), 8192); err != nil {
		t.Fatal(err)
	}
	flushed := make(chan error, 1)
	go func() { flushed <- c.Flush(context.Background()) }()
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan error, 1)
	go func() { drained <- p.source.Drain(ctx) }()
	// The write waits at the destination, so neither can have ended, however
	// long it takes until one looks.
	if err := Missing(p.source.Positions(), p.target.Positions()); drover.KindOf(err) != drover.Refused {
		t.Errorf("compared: %v", err)
	}
	select {
	case err := <-drained:
		t.Errorf("drained: %v", err)
	case err := <-flushed:
		t.Errorf("flushed: %v", err)
	default:
	}
	cancel()
	if err := <-drained; !errors.Is(err, context.Canceled) {
		t.Errorf("drain ended with %v", err)
	}
	if m.flushed != nil {
		t.Error("the destination was flushed early")
	}
	close(m.hold)
	if err := <-flushed; err != nil || string(m.flushed[8192:8196]) != "here" {
		t.Errorf("flush: %v, content %q", err, m.flushed[8192:8196])
	}
	if err := p.source.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if err := Missing(p.source.Positions(), p.target.Positions()); err != nil {
		t.Error(err)
	}
}

// TestWriteFails: the destination's errno comes with the flush and everything
// after it, and Drain says so.
func TestWriteFails(t *testing.T) {
	m := &image{disk: make([]byte, 1<<20), fail: syscall.ENOSPC}
	p := newPath(t, pathOptions{dial: dialImages(t, map[string]*image{"d": m})})
	c := p.client("d")
	c.WriteAt(make([]byte, 1<<20), 0)
	if err := c.Flush(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("flush: %v", err)
	}
	if _, err := c.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write: %v", err)
	}
	if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("read: %v", err)
	}
	if err := p.source.Drain(t.Context()); !errors.Is(err, syscall.ENOSPC) || !errors.Is(p.source.Err(), syscall.ENOSPC) {
		t.Errorf("drain: %v, source: %v", err, p.source.Err())
	}
	if Missing(p.source.Positions(), p.target.Positions()) == nil {
		t.Error("nothing is said to be missing after a failure")
	}
}

// TestRefused: an export that the destination cannot open is refused with its
// reason, and may be opened later.
func TestRefused(t *testing.T) {
	images := map[string]*image{}
	dial := dialImages(t, images)
	p := newPath(t, pathOptions{dial: dial})
	conn, err := net.Dial("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nbd.New(t.Context(), conn, nbd.Options{Export: "d"}); err == nil || !strings.Contains(err.Error(), "no such export as d") {
		t.Errorf("got %v", err)
	}
	if err := <-p.results; err == nil {
		t.Error("the target reports no error")
	}
	images["d"] = &image{disk: make([]byte, 4096)}
	if c := p.client("d"); c.Size() != 4096 {
		t.Errorf("size %d", c.Size())
	}
}

// TestChannelBreaks: whatever waits ends when the channel is gone.
func TestChannelBreaks(t *testing.T) {
	m := &image{disk: make([]byte, 32<<20), hold: make(chan struct{})}
	p := newPath(t, pathOptions{dial: dialImages(t, map[string]*image{"d": m}), limit: minLimit})
	c := p.client("d")
	errs := make(chan error, 2)
	go func() {
		_, err := c.WriteAt(randomBytes(1, len(m.disk)), 0) // more than the limit
		errs <- err
	}()
	for p.source.Positions()["d"].Bytes < minLimit/2 {
		time.Sleep(time.Millisecond)
	}
	go func() { errs <- c.Flush(context.Background()) }()
	p.ends["d"].Close()
	for range 2 {
		if err := <-errs; err == nil {
			t.Error("no error although the channel is gone")
		}
	}
	if err := <-p.results; err == nil {
		t.Error("the target reports no error")
	}
	if err := p.source.Drain(t.Context()); err == nil {
		t.Error("drained although the channel is gone")
	}
}

// TestTampered: a batch that is not what was sent is not applied.
func TestTampered(t *testing.T) {
	m := &image{disk: make([]byte, 1<<20)}
	p := newPath(t, pathOptions{dial: dialImages(t, map[string]*image{"d": m}), shape: func(source, _ *end) {
		source.tamper = func(kind uint8, p []byte) bool {
			if kind == kindBatch {
				p[len(p)-100] ^= 4
			}
			return true
		}
	}})
	c := p.client("d")
	c.WriteAt(randomBytes(5, 64<<10), 0)
	if err := c.Flush(t.Context()); err == nil {
		t.Error("flushed")
	}
	if !bytes.Equal(m.disk, make([]byte, 1<<20)) {
		t.Error("something was written")
	}
}

// FuzzOperations: no meta makes the parser panic or leave the export.
func FuzzOperations(f *testing.F) {
	f.Add(appendOp(appendOp(nil, opBlocks|opLast, 3, 4), opZero|opKeepSpace, 1<<20, 1<<30), int64(1<<40))
	f.Add(append(appendOp(nil, opBytes, 7, 3), "abc"...), int64(10))
	f.Fuzz(func(t *testing.T, meta []byte, size int64) {
		size &= maxSize - 1
		for len(meta) > 0 {
			o, rest, err := parseOp(meta, size)
			if err != nil {
				return
			}
			if o.off < 0 || o.len <= 0 || o.off+o.len > size || len(rest) >= len(meta) || o.kind == opBytes && int64(len(o.data)) != o.len {
				t.Fatalf("accepted %+v", o)
			}
			meta = rest
		}
	})
}

// FuzzHeard: no message of a destination makes the source panic or count what
// was not confirmed.
func FuzzHeard(f *testing.F) {
	for _, kind := range []uint8{kindOpened, kindRefused, kindApplied, kindFlushed, kindData, kindMiss, kindFailed} {
		f.Add(kind, numbered(1))
		f.Add(kind, append(numbered(2), 0, 0, 0, 28, 'x'))
	}
	f.Fuzz(func(t *testing.T, kind uint8, p []byte) {
		a, b := pair()
		go func() {
			b.Receive(t.Context())
			b.Send(t.Context(), kindOpened, append(numbered(1<<20), 0, 0, 0, 1))
		}()
		e, err := newExport(t.Context(), &Source{o: SourceOptions{Limit: minLimit, WrittenLimit: 1 << 20}}, a, "d", 0)
		if err != nil {
			t.Fatal(err)
		}
		e.pending = []*sent{{seq: 1, done: Position{1, 10}}, {seq: 2, done: Position{1, 10}}}
		e.taken = Position{2, 20}
		e.reads <- struct{}{}
		e.answers[2] = &answer{p: make([]byte, 1), done: make(chan struct{})}
		if err := e.heard(kind, p); err != nil && kind == kindApplied && e.applied != (Position{}) {
			t.Fatalf("%v, and yet %+v is applied", err, e.applied)
		}
		if e.applied.Operations > 2 || len(e.pending)+int(e.applied.Operations) != 2 {
			t.Fatalf("%+v applied, %d batches on their way", e.applied, len(e.pending))
		}
		e.fail(nil)
	})
}

// FuzzTarget: no messages of a source make the target panic, hang or write
// outside of the disk.
func FuzzTarget(f *testing.F) {
	m := &image{disk: make([]byte, 64<<10)}
	var batch []byte
	packer := reduce.NewPacker(reduce.PackerOptions{})
	packer.Meta(appendOp(nil, opBlocks|opLast, 3, 1))
	packer.Block(randomBytes(1, blockBytes))
	batch, _, _ = packer.Flush(nil)
	f.Add([]byte{kindBatch}, batch, []byte{kindFlush}, numbered(1))
	f.Add([]byte{kindBatch}, batch, []byte{kindRead}, append(numbered(1), 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 9))
	f.Add([]byte{kindFill}, batch, []byte{kindOpen}, batch)
	f.Fuzz(func(t *testing.T, k1, p1, k2, p2 []byte) {
		if len(k1) == 0 || len(k2) == 0 {
			return
		}
		a, b := pair()
		target := NewTarget(TargetOptions{Open: func(context.Context, string) (Volume, error) { return atRest{m}, nil }})
		done := make(chan error, 1)
		go func() { done <- target.Apply(t.Context(), b) }()
		hello := append([]byte{Version, 0, 1}, 0, minLimit>>16, 0, 0, 'd')
		for _, x := range []message{{kindOpen, hello}, {k1[0], p1}, {k2[0], p2}} {
			if len(x.payload) <= 1<<20 {
				a.Send(t.Context(), x.kind, x.payload)
			}
		}
		a.CloseSend()
		for {
			if _, _, _, err := a.Receive(t.Context()); err != nil {
				break
			}
		}
		<-done
	})
}

// atRest is a Volume in memory.
type atRest struct{ *image }

func (v atRest) ReadAt(p []byte, off int64) (int, error) {
	return len(p), v.image.ReadAt(context.Background(), p, off)
}

func (v atRest) WriteAt(p []byte, off int64) (int, error) {
	return len(p), v.Write(context.Background(), p, off)
}

func (v atRest) ZeroWith(ctx context.Context, off, n int64, o nbd.ZeroOptions) error {
	return v.Zero(ctx, off, n, o)
}

func (v atRest) Close() error { return nil }
