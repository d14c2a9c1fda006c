package wanem

import (
	"math"
	"strconv"
	"strings"

	"github.com/drover-vm/drover"
)

// ParseRate reads a rate as drover.ParseBitRate does; "0" and "unlimited" mean
// no limit. Errors are of kind drover.Invalid.
func ParseRate(s string) (int64, error) {
	if strings.EqualFold(strings.TrimSpace(s), "unlimited") {
		return 0, nil
	}
	v, err := drover.ParseBitRate(s)
	switch {
	case err != nil:
		return 0, drover.E(drover.Invalid, "", err)
	case v < 0:
		return 0, drover.Errorf(drover.Invalid, "", "rate %q: want a number and a unit, such as 200Mbit", s)
	case v > MaxRateBps:
		return 0, drover.Errorf(drover.Invalid, "", "rate %q: too high, want at most %s", s, FormatRate(MaxRateBps))
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
