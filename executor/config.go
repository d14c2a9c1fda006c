package executor

import (
	"context"
	"log/slog"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
)

// Config is what an executor needs. Journal and Agents must be set.
type Config struct {
	Journal store.Journal
	Agents  Agents
	// Clock is nil for the real one.
	Clock Clock
	// Log is nil for none.
	Log *slog.Logger
	// Planner is needed for moves by stretch and route.
	Planner Planner
	// Observer is nil for none.
	Observer Observer
	// Limits: a zero field takes its default.
	Limits Limits
	// Random gives numbers in [0,1) for jitter and names; nil for the
	// runtime's own. It is called concurrently.
	Random func() float64
}

// Clock tells and spends time.
type Clock interface {
	Now() time.Time
	// Sleep returns early with ctx's error when ctx ends.
	Sleep(ctx context.Context, d time.Duration) error
}

// Observer measures what only others can see of a move: links' counters, a
// client's probe. A failing observer never fails a move; its errors are
// logged. Both calls are bounded by Limits.ObserverTime and must return when
// ctx ends.
type Observer interface {
	// MoveStarting is called before a move's first step, and again each time
	// another executor takes it up: m.Generation tells. No step that clients or
	// links could notice begins before it has returned; reservations do.
	MoveStarting(ctx context.Context, m drover.Move) error
	// MoveEnded is called before a final state is journaled, so at least once;
	// m.State says which. The figures that are not nil go into m.Measured.
	MoveEnded(ctx context.Context, m drover.Move) (drover.Figures, error)
}

// Limits bounds what an executor does at once and how long it tries.
type Limits struct {
	// MovesInFlight bounds moves that are being carried out and have not
	// passed their pivot.
	MovesInFlight int
	// MovesPerLink bounds those among them from one site to one other.
	MovesPerLink int
	// MovesQueued bounds accepted moves that wait for the two above.
	MovesQueued int
	// StepPatience is how long a step before the pivot is asked for again,
	// before the move is undone: since its agent was last heard, or since it
	// first failed, and might not another time, in a row.
	StepPatience time.Duration
	// RetryFirst and RetryMost are the first and the longest wait between two
	// attempts; it doubles from one to the other, less a random part of up to
	// half of it.
	RetryFirst, RetryMost time.Duration
	// ObserverTime bounds one call of the observer.
	ObserverTime time.Duration
}

// The defaults of Limits.
const (
	// A move costs the server a goroutine and some calls a second; more than
	// this many at once say that links are shared more thinly than is good.
	DefaultMovesInFlight = 64
	// Serial moves on a shared link end earlier on average than parallel ones
	// (341 s against 546 s for ten of 4 GiB on 1 Gbit/s), because each is sent again
	// what its guest wrote for as long as it takes. Per direction, since links
	// carry both at full rate.
	DefaultMovesPerLink = 1
	// Ten thousand moves are a large site's evacuation; each waits in about
	// 16 KiB of memory.
	DefaultMovesQueued = 10_000
	// An agent is back within seconds after a restart, a WAN within a minute or
	// two after most failures; whoever waits longer would rather have the VM
	// left where it is.
	DefaultStepPatience = 5 * time.Minute
	// Most faults are a restart or a lost packet and are over at once.
	DefaultRetryFirst = 500 * time.Millisecond
	// Half a minute loads nobody, and is soon enough for a person who has just
	// repaired what was broken.
	DefaultRetryMost = 30 * time.Second
	// Measuring is not worth holding a move up for longer.
	DefaultObserverTime = 30 * time.Second
)

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		v *int
		d int
	}{
		{&l.MovesInFlight, DefaultMovesInFlight},
		{&l.MovesPerLink, DefaultMovesPerLink},
		{&l.MovesQueued, DefaultMovesQueued},
	} {
		if *f.v <= 0 {
			*f.v = f.d
		}
	}
	for _, f := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&l.StepPatience, DefaultStepPatience},
		{&l.RetryFirst, DefaultRetryFirst},
		{&l.RetryMost, DefaultRetryMost},
		{&l.ObserverTime, DefaultObserverTime},
	} {
		if *f.v <= 0 {
			*f.v = f.d
		}
	}
	return l
}

// realClock is the machine's.
type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// noObserver measures nothing.
type noObserver struct{}

func (noObserver) MoveStarting(context.Context, drover.Move) error { return nil }

func (noObserver) MoveEnded(context.Context, drover.Move) (drover.Figures, error) {
	return drover.Figures{}, nil
}
