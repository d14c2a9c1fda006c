package bench

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

func fields(s string) []string { return strings.Fields(s) }

// What Drover must reach against the best of QEMU's own ways, by what the
// destination has of the disk.
var (
	wireTargets = map[string]float64{goldenBoth: 0.30, goldenNone: 0.45, goldenShared: 0.95}
	timeTargets = map[string]float64{goldenBoth: 0.40, goldenNone: 1, goldenShared: 1}
)

// returnTarget is the share of the first trip's bytes that a return may take.
const returnTarget = 0.15

// group are the rows that are compared with each other.
type group struct{ scene, guest, link, golden, trip string }

func groupOf(r Row) group {
	s := func(k string) string { return fmt.Sprint(r[k]) }
	return group{scene: s("scene"), guest: s("guest"), link: s("link"), golden: s("golden"), trip: s("trip")}
}

func (g group) String() string {
	return fmt.Sprintf("%s %s %s golden=%s trip=%s", g.scene, g.guest, g.link, g.golden, g.trip)
}

// summariseWAN compares, in each group, Drover with the best of QEMU's own ways
// that came to an end, by medians over the runs.
func summariseWAN(rows []Row) map[string]any {
	groups := map[group]map[string][]Row{}
	for _, r := range rows {
		g, way := groupOf(r), fmt.Sprint(r["way"])
		if groups[g] == nil {
			groups[g] = map[string][]Row{}
		}
		groups[g][way] = append(groups[g][way], r)
	}
	summary := map[string]any{}
	for g, byWay := range groups {
		summary[g.String()] = compare(g, byWay, groups)
	}
	return summary
}

// medianOf is the median of a figure over the good rows, NaN without any.
func medianOf(rows []Row, key string) float64 {
	var v []float64
	for _, r := range rows {
		if r["ok"] == true {
			if f := number(r[key]); f >= 0 {
				v = append(v, f)
			}
		}
	}
	return quantile(v, 0.5)
}

// number is a figure as it is in a row, -1 where it is missing.
func number(v any) float64 {
	switch n := v.(type) {
	case float64:
		return n
	case int64:
		return float64(n)
	case int:
		return float64(n)
	default:
		return -1
	}
}

// best is the way of QEMU's own with the least of a figure.
func best(byWay map[string][]Row, key string) (string, float64) {
	name, least := "", math.NaN()
	for _, w := range slices.Sorted(maps.Keys(byWay)) {
		if w == "drover" {
			continue
		}
		if m := medianOf(byWay[w], key); m < least || math.IsNaN(least) && !math.IsNaN(m) {
			name, least = w, m
		}
	}
	return name, least
}

// compare is one group's part of the summary. What was not measured is left out.
func compare(g group, byWay map[string][]Row, groups map[group]map[string][]Row) map[string]any {
	out := map[string]any{}
	put := func(key string, v float64) bool {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return false
		}
		out[key] = v
		return true
	}
	own := byWay["drover"]
	wire, total := medianOf(own, "wire_bytes"), medianOf(own, "total_s")
	put("drover_wire_bytes", wire)
	put("drover_total_s", total)
	wireWay, leastWire := best(byWay, "wire_bytes")
	timeWay, leastTime := best(byWay, "total_s")
	if wireWay != "" {
		out["best_wire_way"], out["best_time_way"] = wireWay, timeWay
		put("best_wire_bytes", leastWire)
		put("best_total_s", leastTime)
	}
	if put("wire_ratio", wire/leastWire) {
		out["wire_ok"] = wire/leastWire <= wireTargets[g.golden]
	}
	if put("time_ratio", total/leastTime) {
		out["time_ok"] = total/leastTime <= timeTargets[g.golden]
	}
	for _, key := range []string{"pause_ms", "outage_ms"} {
		// Not above that of the ways that Drover is compared with.
		theirs := max(medianOf(byWay[wireWay], key), medianOf(byWay[timeWay], key))
		if put(key+"_over_best", medianOf(own, key)-theirs) {
			out[key+"_ok"] = medianOf(own, key) <= theirs
		}
	}
	if converged, any := converges(byWay); any {
		out["drover_converges"] = converged
	}
	if g.scene == "return" && g.trip != "1" {
		first := g
		first.trip = "1"
		if put("wire_of_first_trip", wire/medianOf(groups[first]["drover"], "wire_bytes")) {
			out["return_ok"] = out["wire_of_first_trip"].(float64) <= returnTarget
		}
	}
	for _, w := range slices.Sorted(maps.Keys(byWay)) {
		if w == "drover" {
			continue
		}
		put("wire_"+w+"_to_drover", medianOf(byWay[w], "wire_bytes")/wire)
		put("time_"+w+"_to_drover", medianOf(byWay[w], "total_s")/total)
	}
	return out
}

// converges reports whether Drover came to an end in every run, where one of
// QEMU's own ways did.
func converges(byWay map[string][]Row) (all, any bool) {
	own := byWay["drover"]
	theirs := false
	for w, rows := range byWay {
		theirs = theirs || w != "drover" && slices.ContainsFunc(rows, func(r Row) bool { return r["ok"] == true })
	}
	return !slices.ContainsFunc(own, func(r Row) bool { return r["ok"] != true }), len(own) > 0 && theirs
}
