package bench

import "math"

// forecastGoals are what the held-out half is judged by: the median and the 90 %
// quantile of the relative error.
var forecastGoals = map[string]struct{ median, p90 float64 }{
	"total_s": {0.10, 0.20}, "wire_bytes": {0.10, 0.20}, "pause_ms": {0.25, math.Inf(1)},
}

// The range from P10 to P90 has to hold between so much and so much of the truths,
// and the verdict on convergence has to be right so often.
const (
	leastCoverage, mostCoverage = 0.75, 0.90
	leastConverged              = 0.95
)

// summariseForecast judges each half on its own; only held_out counts.
func summariseForecast(rows []Row) map[string]any {
	summary := map[string]any{}
	for _, half := range []string{"tuning", "held_out"} {
		right, moves := 0, 0
		for figure, goal := range forecastGoals {
			errs, simple, geometric, inside := []float64{}, []float64{}, []float64{}, 0
			for _, r := range rows {
				if r["split"] != half || r["figure"] != figure {
					continue
				}
				errs = append(errs, math.Abs(r["error"].(float64)))
				if r["inside"].(bool) {
					inside++
				}
				simple = append(simple, math.Abs(r["baseline_memory_over_bandwidth"].(float64)))
				geometric = append(geometric, math.Abs(r["baseline_geometric"].(float64)))
				if figure == "total_s" {
					moves++
					if r["converged"] == r["will_converge"] {
						right++
					}
				}
			}
			if len(errs) == 0 {
				continue
			}
			coverage := float64(inside) / float64(len(errs))
			one := map[string]any{
				"n": len(errs), "median_error": quantile(errs, 0.5), "p90_error": quantile(errs, 0.9), "coverage": coverage,
				"geometric_median_error": quantile(geometric, 0.5), "geometric_p90_error": quantile(geometric, 0.9),
				"ok": quantile(errs, 0.5) <= goal.median && quantile(errs, 0.9) <= goal.p90 && coverage >= leastCoverage && coverage <= mostCoverage,
			}
			if figure != "pause_ms" { // of which memory over bandwidth says nothing
				one["memory_over_bandwidth_median_error"], one["memory_over_bandwidth_p90_error"] = quantile(simple, 0.5), quantile(simple, 0.9)
			}
			summary[half+"_"+figure] = one
		}
		if moves > 0 {
			share := float64(right) / float64(moves)
			summary[half+"_converges"] = map[string]any{"n": moves, "right": share, "ok": share >= leastConverged}
		}
	}
	return summary
}
