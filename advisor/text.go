package advisor

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// The words for figures, each with its unit.

func digits(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0")
	default:
		return strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(v, 'f', 2, 64), "0"), ".")
	}
}

func ms(v float64) string {
	switch {
	case v >= 2*60*1000:
		return span(v / 1000)
	case v >= 10_000:
		return digits(v/1000) + " s"
	}
	return digits(v) + " ms"
}

// span is a time of a move in s, min or h.
func span(seconds float64) string {
	switch {
	case seconds >= 2*3600:
		return digits(seconds/3600) + " h"
	case seconds >= 2*60:
		return digits(seconds/60) + " min"
	default:
		return digits(seconds) + " s"
	}
}

func km(v float64) string {
	if v >= 10 {
		return strconv.FormatFloat(v, 'f', 0, 64) + " km"
	}
	return digits(v) + " km"
}

func percent(share float64) string { return digits(100*share) + " %" }

// perSecond is a rate of a guest's bytes.
func perSecond(bytes float64) string {
	switch {
	case bytes >= 1e9:
		return digits(bytes/1e9) + " GB/s"
	case bytes >= 1e6:
		return digits(bytes/1e6) + " MB/s"
	default:
		return digits(bytes/1e3) + " kB/s"
	}
}

func bitRate(v float64) string { return drover.BitRate(v).String() }

// spread says a range: "12 s (10 to 18 s)".
func spread(r *drover.Range, unit func(float64) string) string {
	if r.P10 == r.P90 {
		return unit(r.P50)
	}
	return fmt.Sprintf("%s (%s to %s)", unit(r.P50), unit(r.P10), unit(r.P90))
}

func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

func list[T ~string](items []T) string {
	words := make([]string, len(items))
	for i, it := range items {
		words[i] = string(it)
	}
	switch n := len(words); n {
	case 0:
		return "none"
	case 1:
		return words[0]
	default:
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
}

// sentence joins findings.
func sentence(parts []string) string { return strings.Join(parts, "; ") }
