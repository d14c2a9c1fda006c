package executor_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor/executortest"
)

var (
	firstSeed = flag.Uint64("seed", 1, "first seed of the random campaign")
	seeds     = flag.Uint64("seeds", 400, "how many seeds the random campaign plays")
)

// Many things befall a move at once: calls fail, answers are lost, agents crash
// or do not answer for minutes, executors die, an operator cancels. Each seed is
// one such move; a failure names it. Replay with -run TestRandom -seed N -seeds 1.
func TestRandom(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
		if bubble(t, fmt.Sprintf("seed %d", seed), misfortune(seed)); t.Failed() {
			return
		}
	}
}

// misfortune returns the scenario of a seed. Faults stop after a while, so that
// every move ends.
func misfortune(seed uint64) scenario {
	r := rand.New(rand.NewPCG(seed, 0))
	sc := scenario{method: drover.Live, keep: r.IntN(4) == 0}
	if r.IntN(2) == 0 {
		sc.method, sc.off = drover.Cold, r.IntN(3) == 0
	}
	if r.IntN(3) == 0 && sc.method == drover.Live {
		sc.method = drover.Warm
	}
	if r.IntN(2) == 0 && sc.method != drover.Live {
		sc.gate = &drover.Gate{
			Health: httpCheck, Manual: r.IntN(2) == 0,
			OnUnhealthy: []drover.Unhealthy{drover.UnhealthyReturn, drover.UnhealthyKeep, drover.UnhealthyCommit}[r.IntN(3)],
		}
		sc.sick = []string{"", "it does not answer"}[r.IntN(2)]
		sc.word = []string{"commit", "return"}[r.IntN(2)]
	}
	if r.IntN(2) == 0 {
		sc.killAt = 1 + r.IntN(80)
	}
	if r.IntN(3) == 0 {
		sc.cancelAt = 1 + r.IntN(80)
	}
	faults := r.IntN(12)
	each := []float64{0.02, 0.1, 0.4}[r.IntN(3)]
	var mu sync.Mutex
	sc.fault = func(w *executortest.World, c executortest.Call) error {
		mu.Lock()
		defer mu.Unlock()
		if faults == 0 || r.Float64() >= each {
			return nil
		}
		faults--
		return befall(w, c, r)
	}
	return sc
}

func befall(w *executortest.World, c executortest.Call, r *rand.Rand) error {
	host := []string{"west1", "east1"}[r.IntN(2)]
	switch r.IntN(6) {
	case 0:
		w.Crash(host)
	case 1: // an outage, shorter or longer than a step's patience
		w.SetUp(host, false)
		time.AfterFunc(time.Duration(1+r.IntN(600))*time.Second, func() { w.SetUp(host, true) })
	case 2: // in the middle of what comes now
		time.AfterFunc(time.Duration(r.IntN(500))*time.Millisecond, func() { w.Crash(host) })
	case 3:
		if k := kinds[r.IntN(len(kinds))]; k != drover.NotFound { // which may rightly end in stuck
			return drover.Errorf(k, "test", "made to fail with %v", k)
		}
	default:
		return drover.Errorf(drover.Unavailable, "test", "lost, after %v", c.After)
	}
	return nil
}
