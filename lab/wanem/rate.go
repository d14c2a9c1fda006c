package wanem

import (
	"math"
	"strconv"
	"strings"

	"github.com/drover-vm/drover"
)

// ParseRate reads a rate in bits per second: a number, then optionally k, M, G
// or T (SI: powers of 1000), then optionally bit, bit/s or bps, in any case
// and with or without a space: "200M", "200 Mbit/s", "1.5Gbps", "64000". "0"
// and "unlimited" mean no limit. Errors are of kind drover.Invalid.
func ParseRate(s string) (int64, error) {
	bad := func(why string) (int64, error) {
		return 0, drover.Errorf(drover.Invalid, "", "rate %q: %s", s, why)
	}
	t := strings.ToLower(strings.TrimSpace(s))
	if t == "unlimited" {
		return 0, nil
	}
	end := strings.LastIndexAny(t, "0123456789.") + 1
	number, unit := t[:end], strings.TrimSpace(t[end:])
	if strings.Trim(number, "0123456789.") != "" || number == "" {
		return bad("want a number and a unit, such as 200Mbit")
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return bad("want a number and a unit, such as 200Mbit")
	}
	for _, suffix := range []string{"bit/s", "bps", "bit"} {
		if rest, ok := strings.CutSuffix(unit, suffix); ok {
			unit = rest
			break
		}
	}
	factor, ok := map[string]float64{"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[unit]
	if !ok {
		return bad("unknown unit, want one of k M G T, then nothing, bit, bit/s or bps")
	}
	v = math.Round(v * factor)
	if v > MaxRateBps {
		return bad("too high, want at most " + FormatRate(MaxRateBps))
	}
	return int64(v), nil
}

// FormatRate prints a rate in the largest SI unit that it reaches, without
// rounding, in a form that ParseRate reads: "622.08 Mbit/s". 0 is "unlimited".
func FormatRate(bps int64) string {
	if bps == 0 {
		return "unlimited"
	}
	unit, v := "bit/s", float64(bps)
	for _, u := range []struct {
		name string
		size float64
	}{{"Tbit/s", 1e12}, {"Gbit/s", 1e9}, {"Mbit/s", 1e6}, {"kbit/s", 1e3}} {
		if math.Abs(v) >= u.size {
			unit, v = u.name, v/u.size
			break
		}
	}
	return strconv.FormatFloat(v, 'f', -1, 64) + " " + unit
}
