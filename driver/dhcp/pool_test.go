package dhcp

import (
	"math"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestParsePool(t *testing.T) {
	for text, want := range map[string]struct {
		first, last string
		size        uint64
	}{
		"10.0.0.1 - 10.0.0.9":     {"10.0.0.1", "10.0.0.9", 9},
		"10.0.0.1-10.0.0.1":       {"10.0.0.1", "10.0.0.1", 1},
		"10.0.0.0/30":             {"10.0.0.0", "10.0.0.3", 4},
		"2001:db8::/64":           {"2001:db8::", "2001:db8::ffff:ffff:ffff:ffff", math.MaxUint64},
		"2001:db8::/48":           {"2001:db8::", "2001:db8:0:ffff:ffff:ffff:ffff:ffff", math.MaxUint64},
		"2001:db8::1-2001:db8::3": {"2001:db8::1", "2001:db8::3", 3},
	} {
		p, err := parsePool(text)
		if err != nil || p.first.String() != want.first || p.last.String() != want.last || p.size() != want.size {
			t.Errorf("%s: %v, %d, %v", text, p, p.size(), err)
		}
	}
	for _, text := range []string{"", "10.0.0.1", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "x-y", "10.0.0.0/33"} {
		if p, err := parsePool(text); err == nil {
			t.Errorf("%q is read as %v", text, p)
		}
	}
}

// TestPick: as many addresses can be picked as are free, each once, and none
// that is taken.
func TestPick(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pools := []pool{
			{netip.MustParseAddr("10.0.0.0"), netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 5).Draw(t, "last"))})},
			{netip.MustParseAddr("255.255.255.250"), netip.MustParseAddr("255.255.255.255")},
		}
		used := make(map[netip.Addr]use)
		for range rapid.IntRange(0, 12).Draw(t, "used") {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 8).Draw(t, "address"))})
			used[a] = use(rapid.IntRange(int(taken), int(ended)).Draw(t, "use"))
		}
		left := free(pools, used)
		for left > 0 {
			a, ok := pick(pools, used)
			if !ok || used[a] == taken || !inPools(pools, a) {
				t.Fatalf("picked %v, %v with %d free of %v", a, ok, left, used)
			}
			used[a] = taken
			left--
			if now := free(pools, used); now != left {
				t.Fatalf("free: %d, want %d", now, left)
			}
		}
		if a, ok := pick(pools, used); ok {
			t.Fatalf("picked %v of none", a)
		}
	})
}
