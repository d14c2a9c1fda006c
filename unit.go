package drover

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a quantity of memory or storage in bytes. It prints in IEC units.
type Bytes int64

// IEC sizes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

// String prints b with three significant digits in IEC units: "1.50 GiB".
func (b Bytes) String() string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v, i := float64(b), 0
	for math.Abs(v) >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return significant(v) + " " + units[i]
}

// BitRate is a rate in bits per second. It prints in SI units.
type BitRate int64

// SI rates.
const (
	Kbps BitRate = 1e3
	Mbps BitRate = 1e6
	Gbps BitRate = 1e9
)

// String prints r with three significant digits in SI units: "200 Mbit/s".
func (r BitRate) String() string {
	units := []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"}
	v, i := float64(r), 0
	for math.Abs(v) >= 1000 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	return significant(v) + " " + units[i]
}

func significant(v float64) string {
	a := math.Abs(v)
	switch {
	case v == math.Trunc(v) && a < 1e4, a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
}

// ParseBytes reads "512M", "512 MiB", "1.5GiB" or plain bytes. Single letters
// mean IEC units, as QEMU and libvirt read them; "MB" and "GB" are SI.
func ParseBytes(s string) (Bytes, error) {
	t := strings.TrimSpace(s)
	i := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	unit := ""
	if i >= 0 {
		t, unit = t[:i], strings.TrimSpace(t[i:])
	}
	v, err := strconv.ParseFloat(t, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: want a number and a unit, such as 512MiB", s)
	}
	factor := map[string]float64{
		"": 1, "b": 1,
		"k": 1 << 10, "kib": 1 << 10, "kb": 1e3,
		"m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
		"g": 1 << 30, "gib": 1 << 30, "gb": 1e9,
		"t": 1 << 40, "tib": 1 << 40, "tb": 1e12,
	}[strings.ToLower(unit)]
	if factor == 0 {
		return 0, fmt.Errorf("size %q: unknown unit %q, want one of KiB MiB GiB TiB", s, unit)
	}
	if v*factor > math.MaxInt64/2 {
		return 0, fmt.Errorf("size %q: too large", s)
	}
	return Bytes(v * factor), nil
}

// maxBitRate keeps sums of rates far from overflow; it is a thousand times the
// fastest link there is.
const maxBitRate = 1e15

// ParseBitRate reads "200Mbit", "1.5 Gbit/s", "64kbps", "200M" or plain bits
// per second. Units are SI, in any case. A sign is read, so that a caller can
// say what it wants instead of a negative rate.
func ParseBitRate(s string) (BitRate, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	end := strings.LastIndexAny(t, "0123456789.") + 1
	number, unit := t[:end], strings.TrimSpace(t[end:])
	for _, suffix := range []string{"bit/s", "bits", "bit", "bps"} {
		if rest, ok := strings.CutSuffix(unit, suffix); ok {
			unit = rest
			break
		}
	}
	factor, known := map[string]float64{"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[unit]
	v, err := strconv.ParseFloat(number, 64)
	switch {
	case err != nil || strings.Trim(number, "-0123456789.") != "":
		return 0, fmt.Errorf("rate %q: want a number and a unit, such as 200Mbit", s)
	case !known:
		return 0, fmt.Errorf("rate %q: unknown unit, want one of k M G T, then nothing, bit, bit/s or bps", s)
	case math.Abs(v*factor) > maxBitRate:
		return 0, fmt.Errorf("rate %q: too high", s)
	}
	return BitRate(math.Round(v * factor)), nil
}
