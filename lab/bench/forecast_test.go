package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
	"github.com/drover-vm/drover/lab/labfile"
)

// TestForecastSettings: the draw is by the seed alone, half is held out, and the
// halves have no link in common while guests always find one that leads on.
func TestForecastSettings(t *testing.T) {
	all := forecastSettings(3, 200)
	again := forecastSettings(3, 200)
	other := forecastSettings(4, 200)
	same, held := 0, 0
	at := map[string]string{}
	used := map[string]map[bool]bool{}
	for i, s := range all {
		if s != again[i] {
			t.Fatalf("setting %d differs between two draws of one seed", i)
		}
		if s == other[i] {
			same++
		}
		if s.HeldOut {
			held++
		}
		if err := s.Load.Validate(); err != nil {
			t.Errorf("setting %d: %v", i, err)
		}
		site := at[s.Guest]
		if site == "" {
			site = "a"
		}
		to, err := s.to(site)
		if err != nil || to == site {
			t.Fatalf("setting %d: from %s to %q: %v", i, site, to, err)
		}
		at[s.Guest] = to
		link := min(site, to) + max(site, to)
		if used[link] == nil {
			used[link] = map[bool]bool{}
		}
		used[link][s.HeldOut] = true
	}
	if same == len(all) || held != 100 {
		t.Errorf("%d of 200 are the same with another seed; %d are held out", same, held)
	}
	if len(used) != len(forecastLinks) {
		t.Errorf("%d links were used of %d", len(used), len(forecastLinks))
	}
	for link, halves := range used {
		if len(halves) != 1 {
			t.Errorf("link %s is in both halves", link)
		}
	}
	if _, err := labfile.Parse("forecast.yaml", []byte(forecastLab())); err != nil {
		t.Error(err)
	}
}

// recordedMove is a move that took as long as the link needs for what is not zero.
func recordedMove(i int, held bool) forecastRecord {
	now := time.Date(2026, 1, 1, 0, i, 0, 0, time.UTC)
	setting := forecastSettings(1, 60)[i]
	setting.HeldOut = held
	link := drover.Link{Name: "a-b", A: "a", B: "b", Rate: drover.BitRate(50e6 * (1 + i%3)), RTTMillis: 10}
	r := forecastRecord{Run: i, Setting: setting, Bought: link}
	copied := drover.Bytes(0)
	r.Input = forecast.Input{
		Now: now, Method: drover.Live, VM: drover.VM{Name: setting.Guest, MemoryBytes: 128 << 20, State: drover.VMRunning},
		Signals: drover.Signals{
			ZeroShare:       drover.Reading{Value: 0.5, At: now, Samples: 8000},
			CompressedShare: drover.Reading{Value: 0.4, At: now, Samples: 500}, Dirty: setting.curve(now),
		},
		From: drover.Place{Site: "a", Host: "a1"}, To: drover.Place{Site: "b", Host: "b1"},
		Link: forecast.MeasuredLink(link, "a", "b", now), Terms: forecast.Terms{CopyBytes: &copied},
	}
	f := forecast.New(nil, now).Forecast(r.Input)
	wire := int64(128<<20) / 5
	total := float64(8*wire)/float64(link.Rate) + 2
	r.Move = drover.Move{
		Name: "m", Method: drover.Live, State: drover.MoveDone, Ended: now, Forecast: &f,
		Measured: drover.Figures{TotalSeconds: new(total), WireBytes: new(wire), PauseMillis: new(400.0)},
	}
	return r
}

// TestForecastReplay writes records as a run does, reads them and judges them:
// forecasts learn from what came before, those that did not converge have no
// duration, and truths that are another's are seen.
func TestForecastReplay(t *testing.T) {
	var records []forecastRecord
	for i := range 60 {
		records = append(records, recordedMove(i, i >= 30))
	}
	records[59].Move.State, records[59].Throttle, records[59].Move.Measured = drover.MoveUndone, 20, drover.Figures{}
	path := filepath.Join(t.TempDir(), "moves")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := json.NewEncoder(f).Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := Run(t.Context(), "forecast", Options{Replay: path})
	if err != nil {
		t.Fatal(err)
	}
	get := func(key, what string) float64 {
		t.Helper()
		m, _ := report.Summary[key].(map[string]any)
		switch v := m[what].(type) {
		case float64:
			return v
		case int:
			return float64(v)
		}
		t.Fatalf("%s has no %s: %v", key, what, report.Summary[key])
		return 0
	}
	if n := get("held_out_total_s", "n"); n != 29 {
		t.Errorf("%v durations are held out, want 29: one did not converge", n)
	}
	if n := get("held_out_converges", "n"); n != 30 {
		t.Errorf("%v verdicts are held out, want 30", n)
	}
	learned := get("held_out_total_s", "median_error")
	if first := get("tuning_total_s", "median_error"); learned > 0.1 || learned > first {
		t.Errorf("off by %.2f after thirty moves of a world without chance, by %.2f in them", learned, first)
	}
	if simple := get("held_out_total_s", "memory_over_bandwidth_median_error"); simple < 0.3 {
		t.Errorf("memory over bandwidth is off by %.2f: half of the memory is zeros", simple)
	}
	get("held_out_tuned_once_wire_bytes", "median_error")

	for name, content := range map[string]string{"no JSON": "moves", "no forecast": "{}"} {
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Run(t.Context(), "forecast", Options{Replay: path}); err == nil || !strings.Contains(err.Error(), "record 1") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Run(t.Context(), "wan", Options{Replay: path}); drover.KindOf(err) != drover.Invalid {
		t.Errorf("another benchmark: %v", err)
	}
}
