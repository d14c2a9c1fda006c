package labfile

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/wanem"
)

// Rate is a link's rate in bits per second, 0 for unlimited.
type Rate int64

// UnmarshalText reads a rate; see ParseRate.
func (r *Rate) UnmarshalText(b []byte) error {
	v, err := ParseRate(string(b))
	*r = Rate(v)
	return err
}

// ParseRate reads a link's rate in bits per second: "200Mbit", "1.5 Gbit/s", or
// "unlimited". 0 is refused: a link that carries nothing is a cut one.
func ParseRate(s string) (int64, error) {
	v, err := wanem.ParseRate(s)
	if err == nil && (v != 0 || strings.EqualFold(strings.TrimSpace(s), "unlimited")) {
		err = wanem.Shape{RateBps: v}.Validate()
		if err == nil {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%q: want %s", s, wantRate)
}

const (
	wantRate  = "a rate of at least 1kbit, such as 200Mbit, or unlimited"
	wantDelay = "a time from 0s to 10s, such as 25ms"
	wantLoss  = "a share of packets from 0% to below 100%, such as 0.1%"
)

// Delay is a time on the wire, at least zero.
type Delay time.Duration

// UnmarshalText reads a delay; see ParseDelay.
func (d *Delay) UnmarshalText(b []byte) error {
	v, err := ParseDelay(string(b))
	*d = Delay(v)
	return err
}

// ParseDelay reads a time of at least zero: "25ms", "0", "1.5s".
func ParseDelay(s string) (time.Duration, error) {
	v, err := time.ParseDuration(strings.ReplaceAll(s, " ", ""))
	if err != nil || v < 0 || v > wanem.MaxDelay {
		return 0, fmt.Errorf("%q: want %s", s, wantDelay)
	}
	return v, nil
}

// Duration is d as the standard library's type.
func (d Delay) Duration() time.Duration { return time.Duration(d) }

// String prints d as it is written in a lab file.
func (d Delay) String() string { return time.Duration(d).String() }

// Loss is a share of packets from 0 to below 1.
type Loss float64

// UnmarshalText reads a loss; see ParseLoss.
func (l *Loss) UnmarshalText(b []byte) error {
	v, err := ParseLoss(string(b))
	*l = Loss(v)
	return err
}

// ParseLoss reads a share of packets from 0 to below 1: "0.1%" or "0.001".
func ParseLoss(s string) (float64, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		v /= 100
	}
	if err != nil || math.IsNaN(v) || v < 0 || v >= 1 {
		return 0, fmt.Errorf("%q: want %s", s, wantLoss)
	}
	return v, nil
}

// Size is a quantity of memory or disk in bytes, above zero; written "512MiB".
type Size int64

// UnmarshalText reads a size.
func (z *Size) UnmarshalText(b []byte) error {
	v, err := drover.ParseBytes(string(b))
	if err == nil && v <= 0 {
		err = errors.New("not above zero")
	}
	*z = Size(v)
	return err
}

// MAC is the hardware address of a guest, as six bytes in hexadecimal.
type MAC string

// UnmarshalText reads a unicast hardware address.
func (m *MAC) UnmarshalText(b []byte) error {
	s := strings.ToLower(string(b))
	parts := strings.Split(s, ":")
	if len(parts) != 6 {
		return errors.New("not six bytes")
	}
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 16, 8)
		if err != nil || len(p) != 2 || (i == 0 && v&1 == 1) {
			return errors.New("not a unicast address")
		}
	}
	*m = MAC(s)
	return nil
}
