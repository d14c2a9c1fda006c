package wanem

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "unlimited": 0, "64000": 64000, "200M": 200e6, "200Mbit": 200e6, "200 Mbit/s": 200e6,
		"622.08mbps": 622_080_000, "1G": 1e9, "1.5Gbit/s": 15e8, "10k": 10e3, "9600bit": 9600, "9600 bps": 9600, " 1T ": 1e12,
	} {
		if got, err := ParseRate(in); err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "fast", "-1", "-5M", "1e9", "1.2.3M", "10 MB/s", "10Mi", "2T", "M", "NaN", "inf", "+3", "0x10"} {
		got, err := ParseRate(in)
		if drover.KindOf(err) != drover.Invalid {
			t.Errorf("ParseRate(%q) = %d, %v, want an error of kind invalid", in, got, err)
		} else if !strings.Contains(err.Error(), `"`+in+`"`) || strings.Contains(err.Error(), "\n") {
			t.Errorf("ParseRate(%q): %q does not name the value in one line", in, err)
		}
	}
}

func TestFormatRate(t *testing.T) {
	for in, want := range map[int64]string{
		0: "unlimited", 999: "999 bit/s", 1000: "1 kbit/s", 622_080_000: "622.08 Mbit/s", 1e9: "1 Gbit/s", 1_234_567_891: "1.234567891 Gbit/s",
	} {
		if got := FormatRate(in); got != want {
			t.Errorf("FormatRate(%d) = %q, want %q", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Int64Range(0, MaxRateBps).Draw(t, "rate")
		if got, err := ParseRate(FormatRate(rate)); err != nil || got != rate {
			t.Fatalf("%d printed as %q is read as %d, %v", rate, FormatRate(rate), got, err)
		}
	})
}

func TestValidate(t *testing.T) {
	for _, s := range []Shape{
		{},
		{RateBps: MinRateBps},
		{RateBps: MaxRateBps},
		{Delay: MaxDelay, Jitter: MaxDelay},
		{Loss: 1},
		{QueueBytes: MaxQueueBytes},
		{Jitter: time.Second},
		{Cut: true},
	} {
		if err := s.Validate(); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
	}
	for want, s := range map[string]Shape{
		"rate -1 bit/s: want 0 (unlimited) or a positive rate":       {RateBps: -1},
		"rate 999 bit/s: want 0 (unlimited) or 1 kbit/s to 1 Tbit/s": {RateBps: 999},
		"rate 2 Tbit/s: want 0 (unlimited) or 1 kbit/s to 1 Tbit/s":  {RateBps: 2e12},
		"delay -1ms: want 0s to 10s, one way":                        {Delay: -time.Millisecond},
		"delay 10.001s: want 0s to 10s, one way":                     {Delay: 10_001 * time.Millisecond},
		"jitter -1ns: want 0s to 10s":                                {Jitter: -1},
		"loss 1.01: want a probability from 0 to 1":                  {Loss: 1.01},
		"loss -0.1: want a probability from 0 to 1":                  {Loss: -0.1},
		"loss NaN: want a probability from 0 to 1":                   {Loss: math.NaN()},
		"queue -1 bytes: want 0 (one round trip) to 67108864":        {QueueBytes: -1},
		"queue 67108865 bytes: want 0 (one round trip) to 67108864":  {QueueBytes: MaxQueueBytes + 1},
	} {
		err := s.Validate()
		if err == nil || err.Error() != want || drover.KindOf(err) != drover.Invalid {
			t.Errorf("%+v: %v, want %s", s, err, want)
		}
	}
}

func TestDefaultQueue(t *testing.T) {
	for _, c := range []struct {
		shape Shape
		want  int
	}{
		{Shape{RateBps: 1e9, Delay: 25 * time.Millisecond}, 6_250_000},
		{Shape{RateBps: 1e9}, 1_250_000},
		{Shape{RateBps: 1e6}, minQueueBytes},
		{Shape{RateBps: 100e9, Delay: time.Second}, MaxQueueBytes},
		{Shape{RateBps: 1e9, QueueBytes: 5000}, 5000},
	} {
		if got := c.shape.queueLimit(); got != c.want {
			t.Errorf("%v: queue of %d bytes, want %d", c.shape, got, c.want)
		}
	}
}

func TestChangeTouchesOnlyWhatItNames(t *testing.T) {
	old := Shape{RateBps: 1e6, Delay: 2, Jitter: 3, Loss: 0.4, QueueBytes: 5, Cut: true}
	if diff := cmp.Diff(old, ShapeChange{}.Apply(old)); diff != "" {
		t.Errorf("an empty change:\n%s", diff)
	}
	heal, loss := false, 0.0
	want := old
	want.Cut, want.Loss = false, 0
	if diff := cmp.Diff(want, ShapeChange{Cut: &heal, Loss: &loss}.Apply(old)); diff != "" {
		t.Errorf("heal, no loss:\n%s", diff)
	}
	full := Shape{RateBps: 7e6, Delay: 8, Jitter: 9, Loss: 0.1, QueueBytes: 11, CorruptEvery: 12}
	all := ShapeChange{&full.RateBps, &full.Delay, &full.Jitter, &full.Loss, &full.QueueBytes, &full.Cut, &full.CorruptEvery}
	if diff := cmp.Diff(full, all.Apply(old)); diff != "" {
		t.Errorf("a full change:\n%s", diff)
	}
}
