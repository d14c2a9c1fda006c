package reduce

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover/wan/page"
)

// TestAheadKeepsTheOrder: lanes that overtake each other, a store that is full most of the time, and still every
// batch comes once and in its turn.
func TestAheadKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const batches, lanes = 300, 4
		a := newAhead()
		a.allow(1000)
		turns := make(chan int)
		group, ctx := errgroup.WithContext(t.Context())
		group.Go(func() error {
			defer close(turns)
			for i := range batches {
				turns <- i
			}
			return nil
		})
		lane, lctx := errgroup.WithContext(ctx)
		for n := range lanes {
			r := rand.New(rand.NewPCG(1, uint64(n)))
			lane.Go(func() error {
				for turn := range turns {
					time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
					if err := a.put(lctx, turn, make([]byte, 1+turn)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		group.Go(func() error { defer a.end(); return lane.Wait() })
		most := int64(0)
		for want := 1; ; want++ {
			b, ok, err := a.take(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				if want != batches+1 {
					t.Fatalf("the end after %d batches", want-1)
				}
				break
			}
			if len(b) != want {
				t.Fatalf("batch %d came as number %d", len(b), want)
			}
			time.Sleep(time.Duration(want%7) * time.Millisecond)
			a.mu.Lock()
			most = max(most, a.held)
			a.mu.Unlock()
		}
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
		// One may always be put besides what the limit allows: the one whose turn it is.
		if most > 1000+batches {
			t.Errorf("%d bytes were held of 1000", most)
		}
	})
}

// TestAheadFollowsTheLink: what may wait is what the link takes in aheadTime.
func TestAheadFollowsTheLink(t *testing.T) {
	a := newAhead()
	a.allow(aheadBytes)
	if a.limit() != aheadStart {
		t.Errorf("%d bytes may wait for a link of which nothing is known", a.limit())
	}
	for range 100 {
		a.took(10_000, 10*time.Millisecond)
	}
	if want := int64(1e6 * aheadTime.Seconds()); a.limit() != want {
		t.Errorf("%d bytes may wait for 1 MB/s, want %d", a.limit(), want)
	}
	a.allow(0)
	if a.limit() != 0 {
		t.Error("the end of the first round does not empty the store")
	}
}

// TestFetcher: what comes out is what went in, never more than allowed is ahead, and an error comes last.
func TestFetcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe()
		f := newFetcher(in)
		f.allow(3 * fetchBytes)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan struct{})
		go func() { defer close(done); f.run(ctx) }()
		const total = 10 * fetchBytes
		go func() {
			p := make([]byte, 10_000)
			for sent := 0; sent < total; {
				n := min(len(p), total-sent)
				for i := range n {
					p[i] = byte((sent + i) % 251)
				}
				out.Write(p[:n])
				sent += n
			}
			out.CloseWithError(errBrokenPipe)
		}()
		synctest.Wait()
		if f.held > 3*fetchBytes || f.held < fetchBytes {
			t.Errorf("%d bytes are ahead of %d allowed", f.held, 3*fetchBytes)
		}
		if !f.ready() {
			t.Error("it is not ready")
		}
		got := 0
		p := make([]byte, 7777)
		for {
			n, err := f.Read(p)
			for i, b := range p[:n] {
				if b != byte((got+i)%251) {
					t.Fatalf("byte %d is %d", got+i, b)
				}
			}
			got += n
			if err != nil {
				if !errors.Is(err, errBrokenPipe) {
					t.Error(err)
				}
				break
			}
		}
		if got != total {
			t.Errorf("%d bytes came of %d", got, total)
		}
		<-done
	})
}

var errBrokenPipe = errors.New("the hypervisor went away")

// TestFirstRound: while pages come for the first time there is less and less to come, after it nothing.
func TestFirstRound(t *testing.T) {
	blocks := []page.Block{{Name: "pc.ram", Bytes: 8 << 20}, {Name: "vga", Bytes: 2 << 20}}
	var f firstRound
	last, told := int64(10<<20), 0
	for i := range 10 << 20 / page.PageBytes {
		left, now := f.see(page.Record{Kind: page.Page, Addr: uint64(i) * page.PageBytes}, 1, blocks)
		if !now {
			continue
		}
		told++
		if left >= last {
			t.Fatalf("%d bytes are to come after %d", left, last)
		}
		last = left
	}
	if told != 10 || last != 0 {
		t.Errorf("told %d times, %d bytes left", told, last)
	}
	if left, now := f.see(page.Record{Kind: page.Page}, 2, blocks); left != 0 || !now {
		t.Errorf("the second round begins with %d bytes to come, told %v", left, now)
	}
	if _, now := f.see(page.Record{Kind: page.Page}, 2, blocks); now {
		t.Error("it is told twice that the first round is over")
	}
}

// TestKeeperCovers: what the mirror keeps for a batch is not overwritten before the batch is known to have arrived.
func TestKeeperCovers(t *testing.T) {
	k := newKeeper(1 << 20)
	d := &Draft{mirror: Mirror(nil), deps: []dependent{{place: 3}, {place: 9}}}
	k.cover(d)
	if k.covers([]placed{{place: 3}}) {
		t.Error("a batch that keeps its own blocks covers places")
	}
	m := new(struct{ Mirror })
	d.mirror = m
	k.cover(d)
	for _, c := range []struct {
		p    placed
		want bool
	}{{placed{place: 3}, true}, {placed{place: 4}, false}, {placed{place: 9, at: zeroed}, true}, {placed{place: 9, at: unchanged}, false}} {
		if got := k.covers([]placed{c.p}); got != c.want {
			t.Errorf("place %d at %d: %v", c.p.place, c.p.at, got)
		}
	}
	k.add(&Retained{Seq: 5, mirror: m, deps: d.deps})
	k.applied(4)
	if !k.covers([]placed{{place: 3}}) {
		t.Error("an earlier batch has uncovered it")
	}
	k.applied(5)
	if k.covers([]placed{{place: 3}, {place: 9}}) {
		t.Error("it is covered after the batch has arrived")
	}
}
