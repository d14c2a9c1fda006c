package agent

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

func TestSetRate(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	set := func(generation, bps int64) error {
		_, err := w.client("north1").SetRate(context.Background(), &droverv1.SetRateRequest{
			Ref: request("transfer", generation, &droverv1.Release{}).GetRef(), BandwidthBps: bps,
		})
		return err
	}
	want := func(what string, err error, kind drover.Kind) {
		t.Helper()
		if err == nil || drover.KindOf(err) != kind {
			t.Errorf("%s: %v, want %s", what, err, kind)
		}
	}
	want("a move that nobody knows", set(1, 1000), drover.Refused)
	w.ask("north1", "reserve-source", 2, &droverv1.Reserve{})
	want("a move that sends nothing", set(2, 1000), drover.NotFound)

	flights := &w.hosts["north1"].current().agent.flights
	var mu sync.Mutex
	var got []drover.BitRate
	note := func(r drover.BitRate) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r)
	}
	first := flights.set(moveName, func(drover.BitRate) { t.Error("a data path that has been replaced was told") })
	second := flights.set(moveName, note)
	first() // late: it does not end its successor
	must(t, set(2, 1000))
	must(t, set(3, 0))
	want("an older generation", set(2, 2000), drover.Refused)
	want("a negative rate", set(3, -1), drover.Invalid)
	second()
	want("a move that sends no more", set(3, 1000), drover.NotFound)
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(got, []drover.BitRate{1000, 0}) {
		t.Errorf("rates %v", got)
	}
}
