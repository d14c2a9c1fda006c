package drover_test

import (
	"testing"

	"github.com/drover-vm/drover"
)

func TestParseUnits(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want drover.BitRate
		ok   bool
	}{
		{"200Mbit", 200e6, true},
		{" 1.5 Gbit/s ", 1.5e9, true},
		{"64kbps", 64e3, true},
		{"200m", 200e6, true},
		{"64000", 64000, true},
		{"0", 0, true},
		{"-5M", -5e6, true},
		{"", 0, false},
		{"fast", 0, false},
		{"1e9", 0, false},
		{"5 parsec", 0, false},
		{"inf", 0, false},
		{"99999T", 0, false},
	} {
		got, err := drover.ParseBitRate(tt.in)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("ParseBitRate(%q) = %d, %v; want %d, ok %v", tt.in, got, err, tt.want, tt.ok)
		}
	}
	for _, tt := range []struct {
		in   string
		want drover.Bytes
		ok   bool
	}{
		{"512M", 512 * drover.MiB, true},
		{"1.5GiB", 3 * drover.GiB / 2, true},
		{"1GB", 1e9, true},
		{"42", 42, true},
		{"", 0, false},
		{"-1M", 0, false},
		{"12 apples", 0, false},
		{"99999999T", 0, false},
	} {
		got, err := drover.ParseBytes(tt.in)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d, ok %v", tt.in, got, err, tt.want, tt.ok)
		}
	}
}

func TestUnitsPrint(t *testing.T) {
	for got, want := range map[string]string{
		drover.Bytes(0).String():               "0 B",
		(1536 * drover.MiB).String():           "1.50 GiB",
		(200 * drover.Mbps).String():           "200 Mbit/s",
		drover.BitRate(622_080_000).String():   "622 Mbit/s",
		(12 * drover.KiB).String():             "12 KiB",
		drover.Bytes(123 << 20).String():       "123 MiB",
		drover.BitRate(1_250_000_000).String(): "1.25 Gbit/s",
	} {
		if got != want {
			t.Errorf("printed %q, want %q", got, want)
		}
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	cause := drover.Errorf(drover.Refused, "inner", "no")
	if drover.E(drover.Internal, "op", nil) != nil {
		t.Error("E of no error is an error")
	}
	if k := drover.KindOf(drover.E(drover.Unavailable, "outer", cause)); k != drover.Unavailable {
		t.Errorf("kind %v, want the outermost", k)
	}
	for k := drover.Internal; k <= drover.Unknown; k++ {
		want := map[drover.Kind]int{drover.Invalid: 2, drover.Refused: 3}[k]
		if want == 0 {
			want = 1
		}
		if got := k.ExitStatus(); got != want {
			t.Errorf("%v: exit status %d, want %d", k, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"web1", "a", "db-2.example_x"} {
		if err := drover.CheckName("vm", good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "-x", "a/b", "..", "a b", "ä", string(make([]byte, 64))} {
		if err := drover.CheckName("vm", bad); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%q is taken for a name", bad)
		}
	}
	for in, want := range map[string]drover.Place{"south": {Site: "south"}, "south/s1": {Site: "south", Host: "s1"}} {
		if got, err := drover.ParsePlace(in); err != nil || got != want || got.String() != in {
			t.Errorf("ParsePlace(%q) = %v, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "/", "south/", "/s1", "a/b/c"} {
		if _, err := drover.ParsePlace(bad); err == nil {
			t.Errorf("%q is taken for a place", bad)
		}
	}
}
