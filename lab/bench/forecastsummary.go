package bench

import "math"

// forecastGoals are what each half is judged by: the median and the 90 % quantile
// of the relative error.
var forecastGoals = map[string]struct{ median, p90 float64 }{
	"total_s": {0.10, 0.20}, "wire_bytes": {0.10, 0.20}, "pause_ms": {0.25, math.Inf(1)},
}

// The range from P10 to P90 has to hold between so much and so much of the truths,
// and the verdict on convergence has to be right so often.
const (
	leastCoverage, mostCoverage = 0.75, 0.90
	leastConverged              = 0.95
)

// summariseForecast judges each half on its own.
func summariseForecast(rows []Row, halves ...string) map[string]any {
	summary := map[string]any{}
	for _, half := range halves {
		by := map[string][]Row{}
		for _, r := range rows {
			if r["split"] == half {
				by[r["figure"].(string)] = append(by[r["figure"].(string)], r)
			}
		}
		for figure, goal := range forecastGoals {
			if mine := by[figure]; len(mine) > 0 {
				summary[summaryName(half, figure)] = summariseFigure(figure, mine, goal.median, goal.p90)
			}
		}
		if mine := by["converges"]; len(mine) > 0 {
			right, ended := shareOf(mine, "right"), shareOf(mine, "converged")
			summary[summaryName(half, "converges")] = map[string]any{
				"n": len(mine), "did": ended, "right": right, "geometric_right": shareOf(mine, "baseline_geometric_right"), "ok": right >= leastConverged,
			}
		}
	}
	return summary
}

// summariseFigure judges one figure's rows, beside the simpler models.
func summariseFigure(figure string, rows []Row, median, p90 float64) map[string]any {
	errs := func(key string) []float64 {
		out := make([]float64, len(rows))
		for i, r := range rows {
			out[i] = math.Abs(r[key].(float64))
		}
		return out
	}
	own, geometric, simple := errs("error"), errs("baseline_geometric"), errs("baseline_memory_over_bandwidth")
	coverage := shareOf(rows, "inside")
	s := map[string]any{
		"n": len(rows), "median_error": quantile(own, 0.5), "p90_error": quantile(own, 0.9), "coverage": coverage,
		"geometric_median_error": quantile(geometric, 0.5), "geometric_p90_error": quantile(geometric, 0.9),
	}
	beats := quantile(own, 0.5) < quantile(geometric, 0.5) && quantile(own, 0.9) < quantile(geometric, 0.9)
	if figure != "pause_ms" { // of which memory over bandwidth says nothing
		s["memory_over_bandwidth_median_error"], s["memory_over_bandwidth_p90_error"] = quantile(simple, 0.5), quantile(simple, 0.9)
		beats = beats && quantile(own, 0.5) < quantile(simple, 0.5) && quantile(own, 0.9) < quantile(simple, 0.9)
	}
	s["beats"] = beats
	s["ok"] = beats && quantile(own, 0.5) <= median && quantile(own, 0.9) <= p90 && coverage >= leastCoverage && coverage <= mostCoverage
	return s
}

// shareOf is in which part of the rows a key is true.
func shareOf(rows []Row, key string) float64 {
	n := 0
	for _, r := range rows {
		if r[key] == true {
			n++
		}
	}
	return float64(n) / float64(len(rows))
}
