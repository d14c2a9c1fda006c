package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// What reaches the source while the guest is paused would be lost, and those who
// sent it would wait for as long as TCP makes them before they send again. So it
// is caught, handed to the destination at once, and put into the guest's port
// there in the moment in which it runs. So is what comes later: a route that is
// announced takes its time, and until all routers agree the old way goes on
// leading to the guest.
//
//	source agent                 destination agent          edge of the source
//	  │ guest PAUSED                 │
//	  │ ══ HandFrames ═════════════▶ │ held
//	  │ ── Finish ─────────────────▶ │ guest RUNS, is given what is held
//	  │ ◀──────────────── running ── │
//	  │ ── CutOver(routes only) ─────────────────────────────▶ │ withdraw
//	  │ ══ what still comes ═══════▶ │ given
//	  │ nothing has come for a while, or the limit           │
//	  │ ── CutOver ──────────────────────────────────────────▶ │ lead elsewhere
//
// All this decides nothing. A move whose frames cannot be caught goes on, and its
// clients send again.

const (
	// catchLead is how long before the news of the stop frames are wanted: the
	// news takes a few milliseconds, more on a busy host. What the guest has seen
	// already is of no harm a second time.
	catchLead = 30 * time.Millisecond
	// catchQuiet without a frame means that the old way leads here no more: BGP
	// next to the edges is done in 100 ms, and clients that speak at all
	// within a move speak more often.
	catchQuiet = 300 * time.Millisecond
	// catchPoll is how often that is looked at.
	catchPoll = 20 * time.Millisecond
	// handOverRoutes bounds how long the old way is kept for routers to agree on
	// the new one. A neighbour that stayed behind may speak all the time.
	handOverRoutes = 3 * time.Second
	// handOverMesh is the same where old sessions go on through the mesh: the
	// edge leads them there at once, and what was on its way to the guest's old
	// port has come within this.
	handOverMesh = 300 * time.Millisecond
	// handOverLayer2 is the same where the guest's own announcement moves the
	// way, and a neighbour's frames may come both ways until this ends.
	handOverLayer2 = time.Second
	// guestFirst is how long a guest that has just moved has its hosts'
	// processors to itself: it has all to answer that has waited for it. Making
	// its memory known for later moves, which reads all of it, comes after.
	guestFirst = time.Second
	// maxCards bounds the network cards of a guest that are looked after; libvirt
	// itself takes more, but nobody was seen to.
	maxCards = 16
)

// catching is what looks after one flight's frames. A nil one does nothing.
type catching struct {
	f       *flight
	client  *api.PeerClient // a connection of its own: Finish must not queue behind frames
	macs    []string
	catches []driver.Catch
	ctx     context.Context
	cancel  context.CancelFunc
	limit   time.Duration

	paused chan struct{} // closed when the guest is paused for certain
	stop   sync.Once
	moved  chan struct{} // closed when the guest runs at the destination
	done   chan struct{} // closed when nothing more is handed over
	quiet  chan struct{} // closed when the old way need not be kept
	last   atomic.Int64  // when a frame came last, UnixNano
	caught atomic.Int64

	sending sync.Mutex
}

// catch begins to catch what is sent to the guest.
func (f *flight) catch() *catching {
	a := f.a
	if a.catcher == nil {
		return nil
	}
	c := &catching{
		f: f, paused: make(chan struct{}), moved: make(chan struct{}), done: make(chan struct{}), quiet: make(chan struct{}),
		limit: handOverRoutes,
	}
	switch {
	case f.msg.GetSourceEdge() == nil:
		c.limit = handOverLayer2
	case f.msg.GetGuest() != nil:
		c.limit = handOverMesh
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for _, n := range f.nics[:min(len(f.nics), maxCards)] {
		got, err := a.catcher.Catch(c.ctx, driver.CaughtStation{MAC: n.MAC, Addresses: a.guests.addresses(f.ref.uuid, n)})
		if err != nil {
			f.log.Info("what arrives for the guest during its pause is not caught", "mac", n.MAC, "err", err)
			continue
		}
		c.macs, c.catches = append(c.macs, n.MAC), append(c.catches, got)
	}
	if len(c.catches) == 0 {
		c.cancel()
		return nil
	}
	c.client = api.NewPeerClient(f.msg.GetPeerAddress(), a.peers.config(), f.msg.GetPeerHost())
	a.jobs.group.Go(c.run)
	return c
}

// performed says that the guest is paused.
func (c *catching) performed() {
	if c != nil {
		c.stop.Do(func() { close(c.paused) })
	}
}

// arrived says that the guest runs at the destination.
func (c *catching) arrived() {
	if c == nil {
		return
	}
	c.performed()
	close(c.moved)
}

// end says that the flight has ended: where the guest has not moved, what was
// caught is dropped.
func (c *catching) end() {
	if c == nil {
		return
	}
	select {
	case <-c.moved:
	default:
		c.cancel()
	}
}

// oldWay is closed when the source's edge may lead the guest's addresses
// elsewhere; nil is at once. Where old sessions go on through the mesh the guest's
// answers come out of it as soon as it runs, and are dropped by an edge that has
// not cut over: what is gained for the requests is lost for the answers.
func (c *catching) oldWay() <-chan struct{} {
	if c == nil || c.f.msg.GetGuest() != nil {
		return nil
	}
	return c.quiet
}

// handedOver is closed when nobody comes by the old way any more, or has for long
// enough.
func (c *catching) handedOver() <-chan struct{} {
	if c == nil {
		over := make(chan struct{})
		close(over)
		return over
	}
	return c.quiet
}

func (c *catching) run() {
	f := c.f
	defer c.client.Close()
	defer close(c.done)
	defer c.cancel()
	warm, cool := context.WithCancel(c.ctx)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer cool()
	helpers.Go(func() {
		_, _ = ping(warm, c.client) // the first frame does not wait for a handshake
		keepWarm(warm, c.client)
	})
	handed, err := c.handOver()
	var dropped int64
	for _, got := range c.catches {
		dropped += got.Dropped()
		_ = got.Close()
	}
	f.a.metrics.frames(framesCaught, c.caught.Load())
	f.a.metrics.frames(framesDropped, dropped)
	switch {
	case err != nil && c.ctx.Err() == nil:
		f.log.Warn("what arrived for the guest during its pause was not handed over", "caught", c.caught.Load(), "err", err)
	case handed != nil:
		f.log.Info("frames handed over", "caught", c.caught.Load(), "no_room", dropped, "given", handed.GetGiven(), "dropped_there", handed.GetDropped())
	}
}

// handOver catches from the guest's stop on, until all is over.
func (c *catching) handOver() (*droverv1.HandFramesResponse, error) {
	defer close(c.quiet)
	since, ok := c.waitStop()
	if !ok {
		return nil, nil
	}
	c.last.Store(time.Now().UnixNano())
	for i, got := range c.catches {
		if err := got.Start(since.Add(-catchLead)); err != nil {
			c.f.log.Info("frames are caught only as long as the guest's port is here", "mac", c.macs[i], "err", err)
		}
	}
	stream, err := c.client.HandFrames(c.ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&droverv1.HandFramesRequest{Ref: c.f.ref.proto(), Token: c.f.token, Macs: c.macs})
	if err != nil {
		_, err = stream.CloseAndReceive() // says why
		return nil, err
	}
	var pumps sync.WaitGroup
	flow, halt := context.WithCancel(c.ctx)
	for i, got := range c.catches {
		pumps.Go(func() { c.pump(flow, uint32(i), got, stream.Send) })
	}
	c.waitQuiet(flow)
	halt()
	pumps.Wait()
	return stream.CloseAndReceive()
}

// waitStop waits for the guest's stop, and says when it was; false when the
// flight has ended before.
func (c *catching) waitStop() (time.Time, bool) {
	o := c.f.a.observer
	for {
		next := o.next()
		if at, ok := o.pausedSince(c.f.ref.vm, c.f.began); ok {
			return at, true
		}
		select {
		case <-c.paused:
			return time.Now(), true
		case <-c.ctx.Done():
			return time.Time{}, false
		case <-next:
		}
	}
}

// pump sends one card's frames. A stream that has ended ends it: the last word
// is the stream's.
func (c *catching) pump(ctx context.Context, card uint32, from driver.Catch, send func(*droverv1.HandFramesRequest) error) {
	for {
		frames, err := from.Next(ctx)
		if err != nil {
			return
		}
		m := &droverv1.HandFramesRequest{Frames: make([]*droverv1.CaughtFrame, 0, len(frames))}
		for _, f := range frames {
			m.Frames = append(m.Frames, &droverv1.CaughtFrame{Card: card, Offload: f.Offload, Data: f.Data})
		}
		c.last.Store(frames[len(frames)-1].At.UnixNano())
		c.caught.Add(int64(len(frames)))
		c.sending.Lock()
		err = send(m)
		c.sending.Unlock()
		if err != nil {
			return
		}
	}
}

// waitQuiet returns when the guest has moved and nothing has come for a while,
// or for too long.
func (c *catching) waitQuiet(ctx context.Context) {
	select {
	case <-c.moved:
	case <-ctx.Done():
		return
	}
	began := time.Now()
	for sleep(ctx, catchPoll, nil) == nil {
		now := time.Now()
		since := time.Unix(0, max(c.last.Load(), began.UnixNano()))
		if now.Sub(since) >= catchQuiet || now.Sub(began) >= c.limit {
			return
		}
	}
}

// addresses are those of a guest's card as far as they are known.
func (g *guestAddresses) addresses(uuid string, n drover.NIC) []netip.Addr {
	all := slices.Clone(n.Addresses)
	mac, err := driver.NormalMAC(n.MAC)
	if err != nil {
		return all
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if k := g.known[uuid]; k != nil {
		all = append(all, k.byMAC[mac]...)
	}
	return slices.DeleteFunc(all, func(a netip.Addr) bool {
		return driver.CaughtStation{MAC: n.MAC, Addresses: []netip.Addr{a}}.Validate() != nil
	})
}
