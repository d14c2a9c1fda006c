package agent

import (
	"testing"
	"time"
)

// The limit of the last round is more than a round takes at least.
func TestMemoryPause(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct{ aim, roundTrip, want time.Duration }{
		{0, 0, defaultPause},
		{0, 10 * ms, 260 * ms},
		{0, 50 * ms, 100 * ms},
		{0, 80 * ms, 160 * ms},
		{0, 300 * ms, 600 * ms},
		{50 * ms, 0, leastMemoryPause},
		{100 * ms, 20 * ms, leastMemoryPause},
		{100 * ms, 40 * ms, 80 * ms},
		{time.Second, 50 * ms, 800 * ms},
	} {
		if got := memoryPause(c.aim, c.roundTrip); got != c.want {
			t.Errorf("aim %s, round trip %s: %s, want %s", c.aim, c.roundTrip, got, c.want)
		}
	}
}
