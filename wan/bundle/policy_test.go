package bundle

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

// flood sends messages of n bytes until the bundle ends or stop is closed.
func flood(t testing.TB, c *Channel, n int, stop <-chan struct{}) {
	payload := make([]byte, n)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	})
	for c.Send(ctx, 0, payload) == nil {
	}
}

// sink takes what comes until the channel or the bundle ends.
func sink(t testing.TB, c *Channel) {
	for {
		m, err := c.Receive(t.Context())
		if err != nil {
			return
		}
		m.Release()
	}
}

func TestPaceHolds(t *testing.T) {
	for _, rate := range []drover.BitRate{2 * drover.Mbps, 100 * drover.Mbps, drover.Gbps} {
		t.Run(rate.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { paceHolds(t, rate) })
		})
	}
}

func paceHolds(t *testing.T, rate drover.BitRate) {
	n := newNetwork(10 * time.Millisecond)
	n.queue = 1 << 20
	e := connect(t, n, Config{Rate: rate}, Config{})
	stop := make(chan struct{})
	var group sync.WaitGroup
	// Opening the later classes' channels does not wait for the earlier ones'.
	for _, class := range []Class{Memory, Disk, Copy} {
		near, far := e.channel(class, class.String())
		group.Go(func() { flood(t, near, 100_000, stop) })
		group.Go(func() { sink(t, far) })
	}
	// The cap holds over all classes and while it changes.
	for _, now := range []drover.BitRate{rate, rate / 2, rate} {
		e.near.SetRate(now)
		time.Sleep(time.Second)
		before := e.near.Stats().WireSent
		const seconds = 4
		time.Sleep(seconds * time.Second)
		// The counter is above TLS, TCP and IP here; the rate is the link's.
		sent := e.near.Stats().WireSent - before
		got := float64(onWire(int(sent))) * 8 / seconds
		if math.Abs(got/float64(now)-1) > 0.05 {
			t.Errorf("%.0f bit/s, want %d within 5 %%", got, now)
		}
	}
	close(stop)
	e.near.SetRate(0)
	e.near.Close(errors.New("measured"))
	e.end()
	group.Wait()
}

// TestOrderOfClasses: what is urgent overtakes everything that waits.
func TestOrderOfClasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		e := connect(t, n, Config{Conns: 2, Rate: 8 * drover.Mbps}, Config{})
		var near, far [classes]*Channel
		for class := range near {
			near[class], far[class] = e.channel(Class(class), Class(class).String())
		}
		time.Sleep(time.Second)
		// While the bucket is empty everything queues, last things first.
		var mu sync.Mutex
		var order []Class
		var group sync.WaitGroup
		for class := range far {
			group.Go(func() {
				m, err := far[class].Receive(t.Context())
				must(t, err)
				m.Release()
				mu.Lock()
				defer mu.Unlock()
				order = append(order, Class(class))
			})
		}
		e.near.mu.Lock()
		e.near.bucket.tokens = -500_000
		e.near.mu.Unlock()
		for class := len(near) - 1; class >= 0; class-- {
			must(t, near[class].Send(t.Context(), 0, make([]byte, 200_000)))
		}
		group.Wait()
		for i, class := range order {
			if class != Class(i) {
				t.Errorf("came in the order %v", order)
				break
			}
		}
		e.end()
	})
}

// TestTurns: channels of one class share it.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := connect(t, newNetwork(time.Millisecond), Config{Rate: 80 * drover.Mbps}, Config{})
		stop := make(chan struct{})
		var group sync.WaitGroup
		var far [3]*Channel
		for i := range far {
			var near *Channel
			near, far[i] = e.channel(Disk, "disk")
			group.Go(func() { flood(t, near, 64<<10, stop) })
			group.Go(func() { sink(t, far[i]) })
		}
		time.Sleep(4 * time.Second)
		e.far.mu.Lock()
		for _, c := range far {
			if share := float64(c.consumed) / float64(e.far.stats.received[Disk]); math.Abs(share-1.0/3) > 0.05 {
				t.Errorf("one of three channels got %.2f of the bytes", share)
			}
		}
		e.far.mu.Unlock()
		close(stop)
		e.near.Close(errors.New("measured"))
		e.end()
		group.Wait()
	})
}

func TestGateHoldsOthersBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := NewGate()
		first := connect(t, newNetwork(time.Millisecond), Config{Gate: gate, Rate: 80 * drover.Mbps}, Config{})
		second := connect(t, newNetwork(time.Millisecond), Config{Gate: gate, Rate: 80 * drover.Mbps}, Config{})
		stop := make(chan struct{})
		var group sync.WaitGroup
		for _, e := range []*ends{first, second} {
			near, far := e.channel(Copy, "copy")
			group.Go(func() { flood(t, near, 64<<10, stop) })
			group.Go(func() { sink(t, far) })
		}
		control, far := second.channel(Control, "control")
		group.Go(func() { sink(t, far) })
		sent := func(e *ends, d time.Duration) int64 {
			before := e.near.Stats().Sent[Copy]
			time.Sleep(d)
			return e.near.Stats().Sent[Copy] - before
		}
		time.Sleep(time.Second)
		first.near.SetUrgent(true)
		time.Sleep(100 * time.Millisecond)
		if n := sent(second, time.Second); n != 0 {
			t.Errorf("another bundle sent %d bytes while one was urgent", n)
		}
		must(t, control.Send(t.Context(), 0, []byte("still through")))
		must(t, control.Drain(t.Context()))
		if n := sent(first, time.Second); n == 0 {
			t.Error("the urgent bundle sent nothing")
		}
		first.near.SetUrgent(false)
		if n := sent(second, time.Second); n == 0 {
			t.Error("nothing was sent after the urgency")
		}
		first.near.SetUrgent(true)
		time.Sleep(gateLimit + 100*time.Millisecond)
		if n := sent(second, time.Second); n == 0 {
			t.Error("nothing was sent after the gate's limit")
		}
		close(stop)
		for _, e := range []*ends{first, second} {
			e.near.Close(errors.New("measured"))
			e.end()
		}
		group.Wait()
	})
}

func TestWindowHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window, size = 1 << 20, 50_000
		e := connect(t, newNetwork(time.Millisecond), Config{}, Config{Window: window})
		near, far := e.channel(Memory, "memory")
		stop := make(chan struct{})
		var group sync.WaitGroup
		group.Go(func() { flood(t, near, size, stop) })
		time.Sleep(10 * time.Second)
		held := e.far.Stats().Received[Memory]
		if held > window || held < window-2*size {
			t.Errorf("%d bytes came without being released, want just below %d", held, window)
		}
		// Taken but not released is still held.
		var taken []Message
		for range 5 {
			m, err := far.Receive(t.Context())
			must(t, err)
			taken = append(taken, m)
		}
		time.Sleep(time.Second)
		if got := e.far.Stats().Received[Memory]; got != held {
			t.Errorf("%d bytes came after taking, want %d", got, held)
		}
		for i := range taken {
			taken[i].Release()
			taken[i].Release()
		}
		time.Sleep(time.Second)
		if got := e.far.Stats().Received[Memory]; got != held+5*size {
			t.Errorf("%d bytes came after releasing, want %d", got, held+5*size)
		}
		close(stop)
		group.Wait()
		e.near.Close(errors.New("measured"))
		e.end()
	})
}

// TestSlowDisksLeaveRoomForMemory: channels that nobody takes from fill the
// bundle's window only as far as their class may.
func TestSlowDisksLeaveRoomForMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := connect(t, newNetwork(time.Millisecond), Config{}, Config{Window: 2 << 20})
		stop := make(chan struct{})
		var group sync.WaitGroup
		for range 8 {
			near, _ := e.channel(Disk, "disk")
			group.Go(func() { flood(t, near, 100_000, stop) })
		}
		time.Sleep(5 * time.Second)
		total := int64(e.far.cfg.windows().Bundle)
		if held := e.far.Stats().Received[Disk]; held > total*3/4 || held < total/2 {
			t.Errorf("disks hold %d bytes, want up to three quarters of %d", held, total)
		}
		near, far := e.channel(Memory, "memory")
		group.Go(func() { send(t, near, 3, 30) })
		receive(t, far, 3, 30)
		close(stop)
		group.Wait()
		e.near.Close(errors.New("measured"))
		e.end()
	})
}

// peer is the far end of a protocol written by hand.
type peer struct {
	t    *testing.T
	conn net.Conn
}

func (p peer) write(h frame.Header, payload []byte) bool {
	_, err := p.conn.Write(h.Append(nil, payload))
	return err == nil
}

// closed waits for the other end to hang up.
func (p peer) closed() {
	p.t.Helper()
	if _, err := io.Copy(io.Discard, p.conn); err != nil && !errors.Is(err, errReset) {
		p.t.Errorf("read: %v", err)
	}
}

// introduce says hello by hand to an acceptor.
func introduce(t *testing.T, n *network, change func(*frame.Hello)) (peer, frame.Answer) {
	t.Helper()
	conn, err := n.dial(t.Context())
	must(t, err)
	h := frame.Hello{Lowest: 1, Highest: 1, Number: 1, Bundle: frame.BundleID{7}, Windows: frame.Windows{Channel: 1 << 20, Bundle: 4 << 20}, Token: testToken}
	if change != nil {
		change(&h)
	}
	_, err = conn.Write(h.Append(nil))
	must(t, err)
	a, err := frame.ReadAnswer(conn)
	must(t, err)
	return peer{t, conn}, a
}

// TestPeerThatBreaksTheProtocol: each violation costs the connection it came
// on; in the end the bundle gives up.
func TestPeerThatBreaksTheProtocol(t *testing.T) {
	const window = 1 << 20
	data := func(channel uint32, sequence uint64, n int) (frame.Header, []byte) {
		return frame.Header{Kind: frame.Data, Class: 3, Channel: channel, Sequence: sequence, Message: uint32(n)}, make([]byte, n)
	}
	violations := map[string]func(p peer){
		"ignores the window": func(p peer) {
			for i := uint64(1); ; i++ {
				if h, b := data(1, i, 30_000); !p.write(h, b) {
					return
				}
				if i > 2*window/30_000 {
					return
				}
			}
		},
		"acks what was not sent": func(p peer) {
			p.write(frame.Header{Kind: frame.Ack}, frame.AppendAck(nil, []frame.Count{{ID: 1, Value: 5}}, nil))
		},
		"changes a message's length": func(p peer) {
			h, b := data(1, 4, 30_000)
			p.write(h, b)
			h, b = data(1, 4, 30_001)
			p.write(h, b)
		},
		"changes a channel's class": func(p peer) {
			h, b := data(1, 2, 10)
			p.write(h, b)
			h.Class, h.Sequence = 1, 3
			p.write(h, b)
		},
		"uses a channel of ours": func(p peer) { h, b := data(2, 1, 10); p.write(h, b) },
		"opens too many": func(p peer) {
			h, b := data(1<<20+1, 1, 10)
			p.write(h, b)
		},
		"sends after the end": func(p peer) {
			p.write(frame.Header{Kind: frame.CloseSend, Class: 3, Channel: 1, Sequence: 1}, nil)
			h, b := data(1, 1, 10)
			p.write(h, b)
		},
		"answers a ping of the future": func(p peer) { p.write(frame.Header{Kind: frame.Pong, Sequence: math.MaxUint64}, nil) },
		"has an unknown kind":          func(p peer) { p.write(frame.Header{Kind: 77}, nil) },
	}
	for name, breaks := range violations {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(time.Millisecond)
				far, err := Accept(Config{Token: testToken, Window: window})
				must(t, err)
				n.accept = func(c net.Conn) {
					if h, err := frame.ReadHello(c); err == nil {
						_ = far.Attach(c, h)
					}
				}
				p, a := introduce(t, n, nil)
				must(t, a.Err(&frame.Hello{Lowest: 1, Highest: 1}))
				breaks(p)
				p.closed()
				if s := far.Stats(); s.Violations != 1 || s.Now != 0 || far.Err() != nil {
					t.Errorf("%d violations, %d connections, error %v; want one, none and none", s.Violations, s.Now, far.Err())
				}
				if held := far.buffered; held > int64(far.cfg.windows().Bundle) {
					t.Errorf("holds %d bytes", held)
				}
				far.abandon(errors.New("seen"))
				far.Close(nil)
				n.group.Wait()
			})
		})
	}
}

func TestStubbornPeerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		far, err := Accept(Config{Token: testToken})
		must(t, err)
		n.accept = func(c net.Conn) {
			if h, err := frame.ReadHello(c); err == nil {
				_ = far.Attach(c, h)
			}
		}
		for i := range violationLimit {
			p, a := introduce(t, n, func(h *frame.Hello) { h.Number = uint32(i + 1) })
			if a.Status != frame.Accepted {
				t.Fatalf("connection %d: %+v", i, a)
			}
			p.write(frame.Header{Kind: 77}, nil)
			p.closed()
		}
		<-far.Done()
		if drover.KindOf(far.Err()) != drover.Invalid {
			t.Errorf("ended with %v, want invalid", far.Err())
		}
		far.Close(nil)
		n.group.Wait()
	})
}

// TestForeignConnections are refused and disturb nothing.
func TestForeignConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		e := connect(t, n, Config{Conns: 2}, Config{})
		near, far := e.channel(Memory, "memory")
		var group sync.WaitGroup
		group.Go(func() { send(t, near, 6, 50) })
		group.Go(func() { receive(t, far, 6, 50) })
		same := func(h *frame.Hello) { h.Bundle, h.Number = e.near.id, 1000 }
		for name, change := range map[string]func(*frame.Hello){
			"another bundle":         func(h *frame.Hello) { h.Number = 1000 },
			"another token":          func(h *frame.Hello) { same(h); h.Token = []byte("another of twenty-four..") },
			"a replayed number":      func(h *frame.Hello) { same(h); h.Number = 1 },
			"no version in common":   func(h *frame.Hello) { same(h); h.Lowest, h.Highest = 2, 3 },
			"a number long ago used": func(h *frame.Hello) { same(h); h.Number = 2 },
		} {
			p, a := introduce(t, n, change)
			want := frame.Refused
			if name == "no version in common" {
				want = frame.WrongVersion
			}
			if a.Status != want {
				t.Errorf("%s: answer %d, want %d", name, a.Status, want)
			}
			p.closed()
		}
		// Noise instead of a hello.
		conn, err := n.dial(t.Context())
		must(t, err)
		_, err = conn.Write(binary.BigEndian.AppendUint64(nil, 0x1234))
		must(t, err)
		must(t, conn.Close())
		group.Wait()
		if s := e.far.Stats(); s.Lost != 0 || s.Now != 2 || s.Violations != 0 {
			t.Errorf("%d connections lost, %d up, %d violations", s.Lost, s.Now, s.Violations)
		}
		e.end()
	})
}

// TestFutureInitiator: a peer that speaks more versions gets one that both have.
func TestFutureInitiator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		far, err := Accept(Config{Token: testToken})
		must(t, err)
		n.accept = func(c net.Conn) {
			if h, err := frame.ReadHello(c); err == nil {
				_ = far.Attach(c, h)
			}
		}
		_, a := introduce(t, n, func(h *frame.Hello) {
			h.Highest, h.Features, h.Extension = 2, 0xff, []byte("what version 2 adds")
		})
		if a.Status != frame.Accepted || a.Version != 1 || a.Features != 0 {
			t.Errorf("answer %+v, want version 1 without features", a)
		}
		far.Close(errors.New("seen"))
		n.group.Wait()
	})
}

// TestRefusedForGood: an acceptor that does not know the session ends the
// initiator's bundle, at first and after a cut.
func TestRefusedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		e := connect(t, n, Config{}, Config{})
		n.set(func() {
			n.accept = func(c net.Conn) {
				if _, err := frame.ReadHello(c); err == nil {
					a := frame.Answer{Status: frame.Refused, Lowest: 1, Highest: 1, Text: "no such session"}
					_, _ = c.Write(a.Append(nil))
				}
				_ = c.Close()
			}
		})
		_, err := Initiate(t.Context(), Config{Token: testToken, Dial: n.dial})
		if drover.KindOf(err) != drover.Denied {
			t.Errorf("initiate: %v, want denied", err)
		}
		for i := range 20 {
			n.kill(i)
		}
		<-e.near.Done()
		if drover.KindOf(e.near.Err()) != drover.Denied {
			t.Errorf("after a cut: %v, want denied", e.near.Err())
		}
		e.far.Close(errors.New("seen"))
		e.end()
	})
}
