package bench

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseEvent(t *testing.T) {
	at, vm, what, ok := parseEvent("2026-01-02 03:04:05.678+0000: event 'lifecycle' for domain 'deb1': Suspended Migrated")
	if want := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC); !ok || vm != "deb1" || what != "Suspended Migrated" || !at.Equal(want) {
		t.Errorf("read %v %q %q %v", at, vm, what, ok)
	}
	for _, line := range []string{"", "event loop interrupted", "yesterday: event 'lifecycle' for domain 'deb1': Resumed"} {
		if _, _, _, ok := parseEvent(line); ok {
			t.Errorf("%q was taken for an event", line)
		}
	}
}

func TestPauseIsFromTheSourcesStopToTheDestinationsStart(t *testing.T) {
	const stamp = "2026-01-02 03:04:"
	event := func(second, vm, what string) string {
		return stamp + second + "+0000: event 'lifecycle' for domain '" + vm + "': " + what + "\n"
	}
	p := &pauseWatch{vm: "a"}
	p.read(strings.NewReader(event("01.000", "a", "Suspended Paused")+event("02.000", "a", "Suspended Migrated")+event("09.000", "b", "Suspended Paused")), true)
	p.read(strings.NewReader(event("00.500", "b", "Resumed Migrated")+event("02.250", "a", "Resumed Migrated")+event("05.000", "a", "Resumed Unpaused")), false)
	if got := p.stop(); got != 250 {
		t.Errorf("pause %v ms, want 250", got)
	}
	if got := (&pauseWatch{}).stop(); got != -1 {
		t.Errorf("pause %v ms of a guest that was not seen to stop", got)
	}
}

func TestParseSegmentBytes(t *testing.T) {
	got, err := parseSegmentBytes("lo 100 1 100 1\nvx-blue 1000 10 2000 20\nvx-red 1 1 0 0\nwan0 9999 9 9999 9\nvxlan vx-blue\nvxlan vx-red@if3\n")
	if want := int64(1000 + 2000 + 30*vxlanFrame + 1 + vxlanFrame); err != nil || got != want {
		t.Errorf("%d bytes, %v, want %d", got, err, want)
	}
	if _, err := parseSegmentBytes("lo 1 1 1 1\nvxlan vx-blue\n"); err == nil {
		t.Error("a tunnel without counters is no error")
	}
	if _, err := parseSegmentBytes("lo 1 x 1 1\n"); err == nil {
		t.Error("counters that are no numbers are no error")
	}
}

// ownRow is a good row of the summary's tests.
func ownRow(c, way string, trip int, wire int64, total, pause float64) Row {
	return Row{
		"scene": c, "guest": "g", "link": "l", "golden": goldenBoth, "trip": trip, "way": way, "ok": true,
		"wire_bytes": wire, "total_s": total, "pause_ms": pause, "outage_ms": 2 * pause,
	}
}

func TestSummaryComparesWithTheBest(t *testing.T) {
	failed := ownRow("first", "xbzrle", 1, 1, 1, 1)
	failed["ok"] = false
	s := summariseWAN([]Row{
		ownRow("first", "plain", 1, 1000, 50, 700), ownRow("first", "multifd-zstd3", 1, 400, 20, 300), ownRow("first", "multifd-zstd1", 1, 500, 10, 400),
		ownRow("first", "drover", 1, 100, 5, 350), failed,
	})
	got := s["first g l golden=both trip=1"].(map[string]any)
	for key, want := range map[string]any{
		"best_wire_way": "multifd-zstd3", "best_time_way": "multifd-zstd1", "wire_ratio": 0.25, "time_ratio": 0.5,
		"wire_ok": true, "time_ok": false, "pause_ms_over_best": -50.0, "pause_ms_ok": true, "drover_converges": true, "wire_plain_to_drover": 10.0,
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

func TestSummaryOfReturns(t *testing.T) {
	s := summariseWAN([]Row{ownRow("return", "drover", 1, 1000, 5, 1), ownRow("return", "drover", 2, 140, 5, 1)})
	got := s["return g l golden=both trip=2"].(map[string]any)
	if got["wire_of_first_trip"] != 0.14 || got["return_ok"] != true {
		t.Errorf("return: %v", got)
	}
	if _, judged := got["wire_ratio"]; judged {
		t.Error("compared with ways that were not measured")
	}
}

func TestDroverMustConvergeWhereOthersDo(t *testing.T) {
	stuck := ownRow("dirty", "drover", 1, 1, 1, 1)
	stuck["ok"] = false
	rows := map[string][]Row{"postcopy": {ownRow("dirty", "postcopy", 1, 1, 1, 1)}, "drover": {stuck}}
	if all, any := converges(rows); all || !any {
		t.Errorf("converges %v of %v", all, any)
	}
	if _, any := converges(map[string][]Row{"drover": {stuck}}); any {
		t.Error("judged without another way")
	}
	if m := medianOf(rows["drover"], "wire_bytes"); !math.IsNaN(m) {
		t.Errorf("a failed run has the figure %v", m)
	}
}

// Every way is measured on every link for the cases themselves, and what came
// before a later trip is made but not measured twice.
func TestWhatIsMeasured(t *testing.T) {
	find := func(name string) *wanCase {
		all := wanCases(1)
		return all[slices.IndexFunc(all, func(c *wanCase) bool { return c.name == name })]
	}
	drover := ways[slices.IndexFunc(ways, func(y way) bool { return y.drover })]
	plain := ways[0]
	for _, test := range []struct {
		only map[string][]string
		c    string
		link wanLink
		y    way
		want int
	}{
		{nil, "first", wanLinks[2], plain, 1},
		{nil, "return", wanLinks[0], drover, 2},
		{nil, "return", wanLinks[1], drover, 0},
		{nil, "return", wanLinks[0], plain, 0},
		{nil, "fleet", wanLinks[0], drover, 4},
		{map[string][]string{"trip": {"3"}}, "fleet", wanLinks[0], drover, 3},
		{map[string][]string{"trip": {"1"}}, "fleet", wanLinks[0], drover, 0},
		{map[string][]string{"scene": {"fleet"}, "trip": {"1"}}, "fleet", wanLinks[0], drover, 1},
		{map[string][]string{"way": {"plain"}}, "return", wanLinks[0], plain, 2},
		{map[string][]string{"way": {"ssh"}}, "first", wanLinks[0], plain, 0},
		{map[string][]string{"golden": {goldenNone}}, "first", wanLinks[0], plain, 0},
		{map[string][]string{"guest": {"sheep-2MB"}}, "dirty", wanLinks[0], plain, 1},
	} {
		b := &wanBench{Options: Options{Only: test.only}}
		if got := b.wanted(find(test.c), test.link, test.y); got != test.want {
			t.Errorf("--only %v, %s %s %s: %d hops, want %d", test.only, test.c, test.link.name, test.y.name, got, test.want)
		}
	}
}

func TestFillLeavesOutTheRise(t *testing.T) {
	got, err := fillOf([]byte(`{"seconds":1,"bytes":1}
{"seconds":5,"bytes":1000}
{"seconds":6,"bytes":2000}
{"seconds":20,"bytes":16000}
{"seconds":99,"bytes":16000}
`))
	if want := 8 * 15000.0 / 15; err != nil || got != want {
		t.Errorf("%v bit/s, %v, want %v", got, err, want)
	}
	if _, err := fillOf([]byte(`{"seconds":5,"bytes":1000}`)); err == nil {
		t.Error("a rate out of one reading")
	}
}
