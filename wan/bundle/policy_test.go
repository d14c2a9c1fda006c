package bundle

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
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
