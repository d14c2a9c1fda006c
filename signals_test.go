package drover_test

import (
	"math"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

func TestReading(t *testing.T) {
	now := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		r     drover.Reading
		known bool
	}{
		{"zero", drover.Reading{}, false},
		{"a measured zero", drover.Reading{At: now}, true},
		{"never measured", drover.Reading{Value: 3}, false},
		{"not a number", drover.Reading{Value: math.NaN(), At: now}, false},
		{"infinite", drover.Reading{Value: math.Inf(-1), At: now}, false},
	} {
		if got := c.r.Known(); got != c.known {
			t.Errorf("%s: Known is %v", c.name, got)
		}
		want := 7.0
		if c.known {
			want = c.r.Value
		}
		if got := c.r.Or(7); got != want {
			t.Errorf("%s: Or(7) is %v, want %v", c.name, got, want)
		}
	}
	if got := (drover.Reading{At: now}).Age(now.Add(-time.Hour)); got != 0 {
		t.Errorf("a reading from the future is %v old", got)
	}
}

func TestHourOfWeek(t *testing.T) {
	monday := time.Date(2026, 3, 2, 0, 30, 0, 0, time.UTC)
	for i := range drover.HoursOfWeek {
		if got := drover.HourOfWeek(monday.Add(time.Duration(i) * time.Hour)); got != i {
			t.Fatalf("hour %d of the week is %d", i, got)
		}
	}
	if got := drover.HourOfWeek(monday.In(time.FixedZone("east", 9*3600))); got != 0 {
		t.Errorf("in another zone the hour is %d", got)
	}
}

func TestFiguresAndForecastAgree(t *testing.T) {
	forecast, figures := drover.Forecast{}.Each(), drover.Figures{WireBytes: new(int64(5))}.Each()
	if len(forecast) != len(figures) {
		t.Fatalf("%d figures are forecast, %d measured", len(forecast), len(figures))
	}
	for i := range forecast {
		if forecast[i].Name != figures[i].Name {
			t.Errorf("figure %d is forecast as %s and measured as %s", i, forecast[i].Name, figures[i].Name)
		}
		if v := figures[i].Value; (v != nil) != (figures[i].Name == "wire_bytes") || v != nil && *v != 5 {
			t.Errorf("%s is %v", figures[i].Name, v)
		}
	}
}
