package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

// message is the i-th of a sender: its length and bytes follow from the seed.
func message(seed uint64, i int) []byte {
	r := rand.New(rand.NewPCG(seed, uint64(i)))
	n := 0
	switch r.IntN(4) {
	case 0:
		n = r.IntN(100)
	case 1:
		n = r.IntN(5000)
	case 2:
		n = r.IntN(3 * frame.FragmentBytes)
	case 3:
		n = r.IntN(frame.MaxMessage + 1)
	}
	b := make([]byte, n)
	x := r.Uint64() | 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

// send sends count messages and ends the direction.
func send(t testing.TB, c *Channel, seed uint64, count int) {
	for i := range count {
		if err := c.Send(t.Context(), uint8(i), message(seed, i)); err != nil {
			t.Errorf("send %d: %v", i, err)
			return
		}
	}
	if err := c.CloseSend(); err != nil {
		t.Errorf("close send: %v", err)
	}
}

// receive wants exactly these messages, in order.
func receive(t testing.TB, c *Channel, seed uint64, count int) {
	for i := 0; ; i++ {
		m, err := c.Receive(t.Context())
		if errors.Is(err, io.EOF) {
			if i != count {
				t.Errorf("%d messages, want %d", i, count)
			}
			return
		}
		if err != nil {
			t.Errorf("receive %d: %v", i, err)
			return
		}
		if want := message(seed, i); m.Kind != uint8(i) || !bytes.Equal(m.Payload, want) {
			t.Errorf("message %d: kind %d, %d bytes; want %d, %d", i, m.Kind, len(m.Payload), uint8(i), len(want))
		}
		m.Release()
	}
}

// TestExactlyOnce sends random messages on random channels, both ways, while
// connections are cut, killed, truncated and their bits flipped.
func TestExactlyOnce(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { exactlyOnce(t, seed) })
		})
	}
}

func exactlyOnce(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 99))
	n := newNetwork(time.Duration(r.IntN(60)) * time.Millisecond)
	n.rate = float64(1+r.IntN(20)) * 1e6
	e := connect(t, n, Config{Conns: 1 + r.IntN(5), Window: 1 << (16 + r.IntN(8))}, Config{Window: 1 << (16 + r.IntN(8))})
	stop, faults := make(chan struct{}), sync.WaitGroup{}
	faults.Go(func() { trouble(n, rand.New(rand.NewPCG(seed, 98)), stop) })
	var group sync.WaitGroup
	for i := range 2 + r.IntN(4) {
		class, count := Class(r.IntN(classes)), 5+r.IntN(40)
		group.Go(func() {
			c, err := e.near.Open(t.Context(), class, fmt.Sprint(i, " ", count))
			must(t, err)
			var both sync.WaitGroup
			both.Go(func() { send(t, c, seed+uint64(i), count) })
			both.Go(func() { receive(t, c, seed+uint64(100+i), count) })
			both.Wait()
			must(t, c.Drain(t.Context()))
		})
		group.Go(func() {
			c, err := e.far.Accept(t.Context())
			must(t, err)
			var i, count int
			if _, err := fmt.Sscan(c.Name(), &i, &count); err != nil {
				t.Errorf("name %q: %v", c.Name(), err)
			}
			var both sync.WaitGroup
			both.Go(func() { send(t, c, seed+uint64(100+i), count) })
			both.Go(func() { receive(t, c, seed+uint64(i), count) })
			both.Wait()
		})
	}
	group.Wait()
	close(stop)
	faults.Wait()
	e.end()
	for _, b := range []*Bundle{e.near, e.far} {
		if !errors.Is(b.Err(), ErrClosed) {
			t.Errorf("ended with %v, want clean", b.Err())
		}
		if s := b.Stats(); s.Unacknowledged != 0 || s.Violations != 0 || b.buffered != 0 || b.outstanding != 0 || len(b.channels) != 0 {
			t.Errorf("left: %+v, buffered %d, outstanding %d, %d channels", s, b.buffered, b.outstanding, len(b.channels))
		}
	}
}

// trouble makes faults until stop.
func trouble(n *network, r *rand.Rand, stop <-chan struct{}) {
	wait := func(d time.Duration) bool {
		select {
		case <-stop:
			return false
		case <-time.After(d):
			return true
		}
	}
	defer n.set(func() { n.isCut, n.disturb = false, nil })
	for wait(time.Duration(r.IntN(1500)) * time.Millisecond) {
		switch r.IntN(4) {
		case 0:
			n.cut()
			ok := wait(time.Duration(r.IntN(12000)) * time.Millisecond)
			n.heal()
			if !ok {
				return
			}
		case 1:
			n.kill(r.IntN(4))
		case 2:
			at, bit := r.IntN(200), byte(1)<<r.IntN(8)
			once(n, func(b []byte) []byte { b[at%len(b)] ^= bit; return b })
		case 3:
			at := r.IntN(40000)
			once(n, func(b []byte) []byte { return b[:at%len(b)] })
		}
	}
}

// once disturbs one write.
func once(n *network, f func(b []byte) []byte) {
	n.set(func() {
		n.disturb = func(_ int, b []byte) []byte {
			n.disturb = nil
			return f(b)
		}
	})
}

func TestCutResumes(t *testing.T) {
	for _, length := range []time.Duration{500 * time.Millisecond, 3 * time.Second, 30 * time.Second, 4 * time.Minute} {
		t.Run(length.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { cutFor(t, length) })
		})
	}
}

func cutFor(t *testing.T, length time.Duration) {
	n := newNetwork(25 * time.Millisecond)
	n.rate = 10e6
	e := connect(t, n, Config{}, Config{})
	near, far := e.channel(Memory, "memory")
	var group sync.WaitGroup
	group.Go(func() { send(t, near, 1, 400) })
	group.Go(func() { receive(t, far, 1, 400) })
	time.Sleep(3 * time.Second)
	n.cut()
	time.Sleep(400 * time.Millisecond)
	flight := inFlight(e.near)
	time.Sleep(length - 400*time.Millisecond)
	before := e.far.Stats().Received[Memory]
	n.heal()
	time.Sleep(1500 * time.Millisecond)
	if got := e.far.Stats().Received[Memory]; got == before {
		t.Errorf("nothing came in 1.5 s after the cut")
	}
	group.Wait()
	s := e.near.Stats()
	if s.Resent > flight {
		t.Errorf("%d bytes were sent again, want at most the %d in flight", s.Resent, flight)
	}
	if length > 5*time.Second && (s.Cuts != 1 || s.CutTime < length || s.CutTime > length+3*time.Second) {
		t.Errorf("%d cuts of %s, want one of %s", s.Cuts, s.CutTime, length)
	}
	e.end()
}

// inFlight is what connections carry that the far end has not counted.
func inFlight(b *Bundle) (n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.links {
		for i := range l.log.len() {
			if s := *l.log.at(i); !s.stale() {
				n += int64(len(s.m.frame(s.fragment)))
			}
		}
	}
	return n
}

func TestCutLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(5 * time.Millisecond)
		e := connect(t, n, Config{CutLimit: time.Minute}, Config{CutLimit: 90 * time.Second})
		near, far := e.channel(Disk, "vda")
		n.cut()
		err := near.Send(t.Context(), 1, []byte("lost"))
		must(t, err)
		begin := time.Now()
		<-e.near.Done()
		if d := time.Since(begin); d < time.Minute-silentIdle || d > time.Minute+3*time.Second {
			t.Errorf("gave up after %s, want a minute", d)
		}
		for _, err := range []error{e.near.Err(), near.Send(t.Context(), 1, nil), near.Drain(t.Context())} {
			if drover.KindOf(err) != drover.Unavailable || !strings.Contains(err.Error(), "cut for 1m") {
				t.Errorf("error %v, want unavailable after a cut of a minute", err)
			}
		}
		if _, err := far.Receive(t.Context()); drover.KindOf(err) != drover.Unavailable || !strings.Contains(err.Error(), "cut for 1m30") {
			t.Errorf("far end: %v, want unavailable after 90 s", err)
		}
		e.end()
	})
}

func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(0)
		n.cut()
		_, err := Initiate(t.Context(), Config{Token: testToken, Dial: n.dial, CutLimit: 20 * time.Second})
		if drover.KindOf(err) != drover.Unavailable {
			t.Errorf("error %v, want unavailable", err)
		}
		far, err := Accept(Config{Token: testToken, CutLimit: 20 * time.Second})
		must(t, err)
		<-far.Done()
		far.Close(nil)
		if drover.KindOf(far.Err()) != drover.Unavailable {
			t.Errorf("error %v, want unavailable", far.Err())
		}
	})
}

// TestSlowLinkLives: a full queue on a slow link is not a dead connection.
func TestSlowLinkLives(t *testing.T) {
	for _, tt := range []struct {
		bps   float64
		queue int
	}{{10e6, 96 << 10}, {2e6, 32 << 10}} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(20 * time.Millisecond)
			n.rate, n.queue = tt.bps/8, tt.queue
			e := connect(t, n, Config{}, Config{})
			near, far := e.channel(Memory, "memory")
			var group sync.WaitGroup
			group.Go(func() { send(t, near, 5, 40) })
			group.Go(func() { receive(t, far, 5, 40) })
			group.Wait()
			if s := e.near.Stats(); s.Lost != 0 || s.Resent != 0 {
				t.Errorf("%v bit/s: %d connections lost, %d bytes sent again", tt.bps, s.Lost, s.Resent)
			}
			e.end()
		})
	}
}

// TestVerySlowLinkGetsThrough: where every silence is longer than what is
// borne at first, nothing is sent again and again for ever.
func TestVerySlowLinkGetsThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(20 * time.Millisecond)
		n.rate, n.queue = 1e6/8, 128<<10
		e := connect(t, n, Config{}, Config{})
		near, far := e.channel(Memory, "memory")
		var group sync.WaitGroup
		group.Go(func() { send(t, near, 5, 40) })
		group.Go(func() { receive(t, far, 5, 40) })
		group.Wait()
		s := e.near.Stats()
		if s.Resent > s.Sent[Memory]/4 {
			t.Errorf("%d bytes were sent again of %d", s.Resent, s.Sent[Memory])
		}
		e.end()
	})
}

func TestRunsOnWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(5 * time.Millisecond)
		e := connect(t, n, Config{Conns: 4}, Config{})
		n.set(func() { n.disturb = nil })
		// All but the first are refused from now on.
		n.cut()
		near, err := e.near.Open(t.Context(), Copy, "vda")
		must(t, err)
		n.heal()
		far, err := e.far.Accept(t.Context())
		must(t, err)
		for i := range 3 {
			n.kill(i)
		}
		var group sync.WaitGroup
		group.Go(func() { send(t, near, 7, 30) })
		group.Go(func() { receive(t, far, 7, 30) })
		group.Wait()
		time.Sleep(5 * time.Second)
		if s := e.near.Stats(); s.Now != 4 {
			t.Errorf("%d connections, want 4 again", s.Now)
		}
		e.end()
	})
}

func TestCorruptionIsNeverDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		e := connect(t, n, Config{Conns: 2}, Config{})
		near, far := e.channel(Memory, "memory")
		writes := 0
		n.set(func() {
			n.disturb = func(side int, b []byte) []byte {
				if writes++; side == 0 && writes%50 == 0 {
					b[len(b)/2] ^= 4
				}
				return b
			}
		})
		var group sync.WaitGroup
		group.Go(func() { send(t, near, 3, 100) })
		group.Go(func() { receive(t, far, 3, 100) })
		group.Wait()
		n.set(func() { n.disturb = nil })
		if s := e.far.Stats(); s.Corrupt == 0 || s.Violations != 0 {
			t.Errorf("%d corrupt, %d violations, want some and none", s.Corrupt, s.Violations)
		}
		e.end()
	})
}

func TestClose(t *testing.T) {
	for _, far := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			e := connect(t, newNetwork(10*time.Millisecond), Config{}, Config{})
			near, there := e.channel(Control, "control")
			must(t, near.Send(t.Context(), 9, []byte("last")))
			if far {
				go e.far.Close(nil)
			} else {
				go e.near.Close(nil)
			}
			<-e.near.Done()
			<-e.far.Done()
			if !errors.Is(e.near.Err(), ErrClosed) || !errors.Is(e.far.Err(), ErrClosed) {
				t.Errorf("errors %v, %v; want clean ones", e.near.Err(), e.far.Err())
			}
			m, err := there.Receive(t.Context())
			must(t, err)
			if string(m.Payload) != "last" {
				t.Errorf("received %q", m.Payload)
			}
			m.Release()
			if _, err := there.Receive(t.Context()); !errors.Is(err, ErrClosed) {
				t.Errorf("error %v, want closed", err)
			}
			if _, err := e.near.Open(t.Context(), Control, "late"); !errors.Is(err, ErrClosed) {
				t.Errorf("error %v, want closed", err)
			}
			e.end()
		})
	}
}

func TestAbort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := connect(t, newNetwork(10*time.Millisecond), Config{}, Config{})
		_, there := e.channel(Memory, "memory")
		e.near.Close(errors.New("the move was undone"))
		_, err := there.Receive(t.Context())
		if drover.KindOf(err) != drover.Canceled || !strings.Contains(err.Error(), "the move was undone") {
			t.Errorf("far end: %v", err)
		}
		if err := e.near.Err(); drover.KindOf(err) != drover.Canceled {
			t.Errorf("near end: %v", err)
		}
		e.end()
	})
}

func TestChannelReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := connect(t, newNetwork(10*time.Millisecond), Config{Window: 1 << 20}, Config{Window: 1 << 20})
		near, far := e.channel(Disk, "vda")
		other, otherFar := e.channel(Disk, "vdb")
		// The far end takes nothing; the sender stands at its window.
		blocked := make(chan error)
		go func() {
			for {
				if err := near.Send(t.Context(), 0, make([]byte, 100<<10)); err != nil {
					blocked <- err
					return
				}
			}
		}()
		time.Sleep(time.Second)
		far.Close()
		if err := <-blocked; drover.KindOf(err) != drover.Canceled {
			t.Errorf("send: %v, want canceled", err)
		}
		if _, err := near.Receive(t.Context()); drover.KindOf(err) != drover.Canceled {
			t.Errorf("receive: %v, want canceled", err)
		}
		var group sync.WaitGroup
		group.Go(func() { send(t, other, 4, 20) })
		group.Go(func() { receive(t, otherFar, 4, 20) })
		group.Wait()
		e.end()
		if e.near.outstanding != 0 || e.far.buffered != 0 {
			t.Errorf("outstanding %d, buffered %d", e.near.outstanding, e.far.buffered)
		}
	})
}
