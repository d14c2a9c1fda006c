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

type rateSetter struct{ apply func(drover.BitRate) }

// set makes the move's rate changeable by apply, until done is called. A move
// has one data path at a time: a later one takes the place of an earlier.
// apply is called with the registry locked: it must not block.
func (f *flights) set(move string, apply func(drover.BitRate)) (done func()) {
	s := &rateSetter{apply}
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

// rate changes the rate of a move that sends; ok is false when it does not.
func (f *flights) rate(move string, r drover.BitRate) (ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.m[move]
	if s != nil {
		s.apply(r)
	}
	return s != nil
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
	if !a.flights.rate(ref.move, rate) {
		return nil, drover.Errorf(drover.NotFound, "set the rate of move "+ref.move, "it sends nothing from host %s now", a.config.Name)
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
