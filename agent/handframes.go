package agent

import (
	"context"
	"crypto/subtle"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

const (
	// maxHeld and maxHeldBytes bound what is held for a guest that does not run
	// yet, for all its cards.
	maxHeld      = 2 * driver.CatchFrames
	maxHeldBytes = 2 * driver.CatchBytes
	// giveTries and giveWait are for a port that has no room: a guest that has
	// just begun to run empties it in no time.
	giveTries = 50
	giveWait  = 2 * time.Millisecond
)

// HandFrames implements PeerService. It takes no lock of the move: Finish, which
// it serves, holds that.
func (a peerService) HandFrames(ctx context.Context, in *connect.ClientStream[droverv1.HandFramesRequest]) (*droverv1.HandFramesResponse, error) {
	const op = "hand frames"
	if !in.Receive() {
		return nil, errors.Join(drover.Errorf(drover.Invalid, op, "the first message is missing"), in.Err())
	}
	first := in.Msg()
	ref, err := checkRef(first.GetRef())
	if err != nil {
		return nil, err
	}
	id, ok := api.Caller(ctx)
	arr := a.incoming.receiving(ref.move)
	switch {
	case !ok || arr == nil || arr.in == nil || subtle.ConstantTimeCompare(arr.token, first.GetToken()) != 1:
		return nil, drover.Errorf(drover.Refused, op, "nothing was prepared under this token")
	case arr.peer != id.Name:
		return nil, drover.Errorf(drover.Denied, op, "the other end of move %s is agent %s, not %s", ref.move, arr.peer, id.Name)
	case a.catcher == nil:
		return nil, drover.Errorf(drover.Refused, op, "host %s does not reach its guests' ports", a.config.Name)
	case len(first.GetMacs()) == 0 || len(first.GetMacs()) > maxCards:
		return nil, drover.Errorf(drover.Invalid, op, "%d network cards: want 1 to %d", len(first.GetMacs()), maxCards)
	}
	h := &handing{some: make(chan struct{}, 1), ended: make(chan struct{})}
	defer h.close()
	for _, mac := range first.GetMacs() {
		p, err := a.catcher.Port(ctx, mac)
		if err != nil {
			a.log.Info("frames for a guest cannot be given to it", "move", ref.move, "vm", ref.vm, "mac", mac, "err", err)
			return nil, err
		}
		h.ports = append(h.ports, p)
	}
	var giver sync.WaitGroup
	giver.Go(func() { h.give(ctx, arr) })
	for in.Receive() {
		h.put(in.Msg().GetFrames())
	}
	close(h.ended)
	giver.Wait()
	a.metrics.frames(framesGiven, h.given)
	a.metrics.frames(framesDropped, h.dropped)
	a.log.Info("frames given to the guest", "move", ref.move, "vm", ref.vm, "held", h.held, "given", h.given, "dropped", h.dropped)
	return &droverv1.HandFramesResponse{Given: h.given, Dropped: h.dropped}, in.Err()
}

// handing is one stream of frames on its way to a guest's ports.
type handing struct {
	ports []driver.Port
	some  chan struct{} // holds a token when there is something
	ended chan struct{} // closed when nothing more comes

	mu    sync.Mutex
	queue []heldFrame
	bytes int
	// held is how many waited for the guest to run; given and dropped are the
	// rest of the story.
	held, given, dropped int64
}

type heldFrame struct {
	card  int
	frame driver.Frame
}

func (h *handing) close() {
	for _, p := range h.ports {
		_ = p.Close()
	}
}

// put takes frames in, as many as there is room for.
func (h *handing) put(frames []*droverv1.CaughtFrame) {
	h.mu.Lock()
	for _, f := range frames {
		n := len(f.GetData())
		if int(f.GetCard()) >= len(h.ports) || len(h.queue) >= maxHeld || h.bytes+n > maxHeldBytes {
			h.dropped++
			continue
		}
		h.queue = append(h.queue, heldFrame{int(f.GetCard()), driver.Frame{Offload: f.GetOffload(), Data: f.GetData()}})
		h.bytes += n
	}
	h.mu.Unlock()
	select {
	case h.some <- struct{}{}:
	default:
	}
}

func (h *handing) take() []heldFrame {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.queue
	h.queue, h.bytes = nil, 0
	return all
}

// give waits until the guest may run, and then gives it what is held and what
// comes, until nothing more comes. What is held for a guest that never will is
// dropped.
func (h *handing) give(ctx context.Context, arr *arrival) {
	select {
	case <-arr.runs:
	case <-arr.over:
	case <-ctx.Done():
	case <-h.ended:
	}
	if !arr.mayRun() {
		<-h.ended
		h.drop(h.take())
		return
	}
	for first := true; ; first = false {
		frames := h.take()
		if first {
			h.note(&h.held, len(frames))
		}
		h.pass(ctx, frames)
		select {
		case <-h.some:
		case <-h.ended:
			h.pass(ctx, h.take())
			return
		}
	}
}

func (h *handing) drop(frames []heldFrame) { h.note(&h.dropped, len(frames)) }

func (h *handing) note(counter *int64, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*counter += int64(n)
}

func (h *handing) pass(ctx context.Context, frames []heldFrame) {
	for _, f := range frames {
		err := h.ports[f.card].Give(f.frame)
		for n := 1; n < giveTries && drover.KindOf(err) == drover.Exhausted && sleep(ctx, giveWait, nil) == nil; n++ {
			err = h.ports[f.card].Give(f.frame)
		}
		if err != nil {
			h.note(&h.dropped, 1)
		} else {
			h.note(&h.given, 1)
		}
	}
}
