package agent

import (
	"context"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// flights are the data paths that send now, by move, as far as their rate can
// be changed.
type flights struct {
	mu sync.Mutex
	m  map[string]*rateSetter
}

type rateSetter struct {
	apply func(drover.BitRate)
	// generation is the newest that has set it.
	generation int64
}

// set makes the move's rate changeable by apply, until done is called. A move
// has one data path at a time: a later one takes the place of an earlier.
// apply is called with the registry locked: it must not block.
func (f *flights) set(move string, apply func(drover.BitRate)) (done func()) {
	s := &rateSetter{apply: apply}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = make(map[string]*rateSetter)
	}
	f.m[move] = s
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.m[move] == s {
			delete(f.m, move)
		}
	}
}

// rate changes the rate of a move that sends; drover.NotFound when it does not,
// drover.Refused when a newer generation has set it.
func (f *flights) rate(ref moveRef, r drover.BitRate) error {
	op := "set the rate of move " + ref.move
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.m[ref.move]
	switch {
	case s == nil:
		return drover.Errorf(drover.NotFound, op, "it sends nothing from this host now")
	case ref.generation < s.generation:
		return tooOld(op, ref.generation, s.generation)
	}
	s.generation = ref.generation
	s.apply(r)
	return nil
}

// SetRate changes how much a move may send while it does.
func (a agentService) SetRate(_ context.Context, req *droverv1.SetRateRequest) (*droverv1.SetRateResponse, error) {
	ref, err := checkRef(req.GetRef())
	if err != nil {
		return nil, err
	}
	if req.GetBandwidthBps() < 0 {
		return nil, drover.Errorf(drover.Invalid, "bandwidth_bps", "%d: want bits per second, or 0 for unlimited", req.GetBandwidthBps())
	}
	if err := a.admit(ref, false); err != nil {
		return nil, err
	}
	rate := drover.BitRate(req.GetBandwidthBps())
	if err := a.flights.rate(ref, rate); err != nil {
		return nil, err
	}
	a.log.Info("rate of a move changed", "move", ref.move, "rate", rateText(rate))
	return &droverv1.SetRateResponse{}, nil
}

func rateText(r drover.BitRate) string {
	if r == 0 {
		return "unlimited"
	}
	return r.String()
}
