package server

import (
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// TestReadings: rates are those of the last seconds; counters that begin anew do
// not count backwards, and what is old is not known.
func TestReadings(t *testing.T) {
	start := time.Unix(1e9, 0)
	var r readings
	add := func(second int, bytes drover.Bytes) time.Time {
		at := start.Add(time.Duration(second) * time.Second)
		r.add(reading{at, [3]drover.Bytes{bytes}}, at)
		return at
	}
	check := func(now time.Time, want float64, ok bool) {
		t.Helper()
		if bps, known := r.rates(now); known != ok || bps[0] != want {
			t.Errorf("rate %v, known %v, want %v, %v", bps[0], known, want, ok)
		}
	}
	check(add(0, 1_000_000), 0, false)
	for s := 1; s <= 60; s++ {
		add(s, 1_000_000+drover.Bytes(s)*1000)
	}
	check(add(60, 7), 8000, true) // the same moment twice says nothing new
	for s := 61; s <= 90; s++ {
		add(s, 1_060_000)
	}
	check(start.Add(90*time.Second), 0, true)
	if bps, ok := r.mean(); !ok || bps[0] != 60_000*8/90. {
		t.Errorf("mean %v, %v", bps, ok)
	}
	check(start.Add(90*time.Second+rateStale), 0, true)
	check(start.Add(91*time.Second+rateStale), 0, false)
	check(add(92, 5), 0, false)
	check(add(93, 1005), 8000, true)
	for ms := range 30_000 {
		at := start.Add(94*time.Second + time.Duration(ms)*time.Millisecond)
		r.add(reading{at, [3]drover.Bytes{2000 + drover.Bytes(ms)}}, at)
	}
	check(start.Add(124*time.Second), 8000, true)
	if most := int(rateWindow/readingsApart) + 3; len(r.last) > most {
		t.Errorf("%d readings are kept", len(r.last))
	}
}

// TestGauges: what an edge does not have any more is gone, what it could not say
// is not.
func TestGauges(t *testing.T) {
	now := time.Unix(1e9, 0)
	var g gauges
	say := func(read bool, in ...drover.Bytes) {
		now = now.Add(3 * time.Second)
		r := &droverv1.DescribeResponse{ClockUnixNanos: now.UnixNano(), MeshRttMs: map[string]float64{"south": 50}}
		if read {
			r.PassagesUnixNanos = now.UnixNano()
		}
		for _, b := range in {
			r.Passages = append(r.Passages, api.EdgePassageToProto(drover.EdgePassage{Owner: "move/m", Method: drover.Renumber, In: b}))
		}
		g.take(r, now)
	}
	sights := []sight{{&agent{AgentConfig: AgentConfig{Site: "north"}}, &g}}
	check := func(what string, n int, in float64, known bool) {
		t.Helper()
		of := passings(sights, now)["move/m"]
		if len(of) != n || n > 0 && (of[0].InBPS != in || of[0].Known != known || of[0].Site != "north") {
			t.Errorf("%s: %+v", what, of)
		}
	}
	check("nothing yet", 0, 0, false)
	say(true, 0)
	check("once", 1, 0, false)
	say(true, 3000)
	check("twice", 1, 8000, true)
	say(false)
	check("not read for once", 1, 8000, true)
	now = now.Add(rateStale)
	check("not heard of", 1, 0, false)
	if _, ok := trip(sights, now)("south", "north"); !ok {
		t.Error("the trip is not known")
	}
	if _, ok := trip(sights, now.Add(time.Second))("south", "north"); ok {
		t.Error("the trip of then is known now")
	}
	say(true)
	check("taken away", 0, 0, false)
	if bps, ok := g.passages["move/m"].mean(); !ok || bps[0] != 8000 {
		t.Errorf("mean %v, %v", bps, ok)
	}
	now = now.Add(rateForget)
	say(true)
	if len(g.passages) != 0 {
		t.Error("it is remembered for ever")
	}
}
