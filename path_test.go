package drover_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
)

// TestPathFiguresJSON checks the names that others rely on, with what follows
// from the figures, and that the figures are read back as they were.
func TestPathFiguresJSON(t *testing.T) {
	f := drover.PathFigures{
		Memory: drover.PathPhase{
			Seconds: 2, GuestBytes: 4000, WireBytes: 1000, RetransmittedBytes: 10, Cuts: 1, CutSeconds: 0.5, MissedReferences: 3, CPUSeconds: 0.25,
			Kinds: drover.PathKinds{Reference: drover.PathCount{Blocks: 1, GuestBytes: 2000, WireBytes: 2}},
		},
		Switchover:      drover.PathPhase{Seconds: 2, GuestBytes: 1000, WireBytes: 1000},
		ThrottlePercent: 20,
	}
	raw, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	memory, total := got["memory"].(map[string]any), got["total"].(map[string]any)
	for name, want := range map[string]float64{
		"seconds": 2, "guest_bytes": 4000, "wire_bytes": 1000, "retransmitted_bytes": 10, "cuts": 1, "cut_s": 0.5,
		"missed_references": 3, "cpu_s": 0.25, "ratio": 0.25, "guest_bytes_per_s": 2000, "wire_bps": 4000,
	} {
		if memory[name] != want {
			t.Errorf("memory.%s: %v, want %v", name, memory[name], want)
		}
	}
	for name, want := range map[string]float64{"guest_bytes": 5000, "ratio": 0.4, "guest_bytes_per_s": 1250} {
		if total[name] != want {
			t.Errorf("total.%s: %v, want %v", name, total[name], want)
		}
	}
	kinds := memory["kinds"].(map[string]any)
	for _, k := range f.Memory.Kinds.Each() {
		v := kinds[k.Name].(map[string]any)
		if v["blocks"] != float64(k.Blocks) || v["guest_bytes"] != float64(k.GuestBytes) || v["wire_bytes"] != float64(k.WireBytes) {
			t.Errorf("kinds.%s: %v, want %+v", k.Name, v, k.PathCount)
		}
	}
	if len(kinds) != len(f.Memory.Kinds.Each()) {
		t.Errorf("kinds: %v", kinds)
	}
	if got["throttle_percent"] != 20.0 {
		t.Errorf("throttle_percent: %v", got["throttle_percent"])
	}
	var back drover.PathFigures
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(f, back); diff != "" {
		t.Errorf("read back (-sent +read)\n%s", diff)
	}
}

// TestPathPhaseDifference makes every field by reflection, so that one that is
// forgotten in Plus or Minus fails here.
func TestPathPhaseDifference(t *testing.T) {
	phase := rapid.MakeCustom[drover.PathPhase](rapid.MakeConfig{})
	rapid.Check(t, func(t *rapid.T) {
		a, b := phase.Draw(t, "a"), phase.Draw(t, "b")
		// Of floats the difference of a sum need not be what it was.
		for _, p := range []*drover.PathPhase{&a, &b} {
			p.Seconds, p.CutSeconds, p.CPUSeconds = float64(p.Cuts%1000), float64(p.Cuts%77), float64(p.Cuts%5)
		}
		if diff := cmp.Diff(a, a.Plus(b).Minus(b)); diff != "" {
			t.Fatalf("a+b-b (-want +got)\n%s", diff)
		}
		if diff := cmp.Diff(drover.PathPhase{}, a.Minus(a)); diff != "" {
			t.Fatalf("a-a (-want +got)\n%s", diff)
		}
		if diff := cmp.Diff(a.Plus(b), b.Plus(a)); diff != "" {
			t.Fatalf("a+b and b+a\n%s", diff)
		}
	})
}

func TestPathRatios(t *testing.T) {
	var none drover.PathPhase
	if none.Ratio() != 0 || none.KnownRatio() != 0 || none.GuestRate() != 0 || none.WireRate() != 0 {
		t.Errorf("nothing carried: %v %v %v %v, want zeros", none.Ratio(), none.KnownRatio(), none.GuestRate(), none.WireRate())
	}
	p := drover.PathPhase{GuestBytes: 10, Kinds: drover.PathKinds{
		Zero: drover.PathCount{GuestBytes: 1}, Same: drover.PathCount{GuestBytes: 2}, Reference: drover.PathCount{GuestBytes: 3}, Raw: drover.PathCount{GuestBytes: 4},
	}}
	if p.KnownRatio() != 0.6 {
		t.Errorf("known: %v, want 0.6", p.KnownRatio())
	}
}
