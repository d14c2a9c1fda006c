package agent

import (
	"context"
	"time"
)

const (
	// defaultPause is the pause that is aimed at when the operator names none.
	defaultPause = 300 * time.Millisecond
	// mostPause is what it may grow to for a guest that does not converge, when
	// the operator names none: a move that ends with a second's pause is
	// better than one that never does.
	mostPause = time.Second
	// pauseTrips are the round trips in a pause besides the memory's last
	// round: the mirrors' flush and their end, the hypervisor's own "all has
	// arrived", and Finish.
	pauseTrips = 4
	// leastMemoryPause is the shortest last round to ask for. With less, a guest
	// that writes at all goes round after round for nothing.
	leastMemoryPause = 60 * time.Millisecond
	// leastMemoryTrips is the same in round trips. What is in flight is kept
	// small, so a round takes at least one, however little is in it; and the
	// hypervisor takes for the path's rate what it has just sent. With a limit
	// below one round trip what is left never fits but by chance, and twice that
	// leaves room for a round that is longer. It has its price, since the hypervisor
	// uses what it is allowed: over 120 Mbit/s and 80 ms the whole pause was 760 ms
	// at the median, for 470 ms with 60 ms, but rounds end.
	leastMemoryTrips = 2
)

// memoryPause is the part of the pause that is left to the last round of
// memory, which is what the hypervisor takes its limit to mean.
func memoryPause(aim, roundTrip time.Duration) time.Duration {
	if aim <= 0 {
		aim = defaultPause
	}
	return max(leastMemoryPause, leastMemoryTrips*roundTrip, aim-pauseTrips*roundTrip)
}

// roundTrip is that to the peer, as the preflight has measured it, or measured now; zero when there was no
// answer, which the next call will report.
func (a *Agent) roundTrip(ctx context.Context, address, host string) time.Duration {
	if rtt, ok := a.peers.roundTrip(address, host); ok {
		return rtt
	}
	r, err := a.measure(ctx, address, host)
	if err != nil {
		return 0
	}
	return r.rtt
}
