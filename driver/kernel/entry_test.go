package kernel

import (
	"net"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// TestEntryLine: a line is read back as what was written, and fits.
func TestEntryLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := entry{
			owner:  driver.MoveOwner(rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,62}`).Draw(t, "owner")),
			role:   rapid.SampledFrom(driver.AddressRoles).Draw(t, "role"),
			prefix: hostPrefix(netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")))),
		}
		if e.role != driver.RoleWatch && e.role != driver.RoleMeter {
			e.bridge = rapid.StringMatching(`[A-Za-z0-9_.:@-]{1,15}`).Draw(t, "bridge")
		}
		if e.role == driver.RoleForwardOld || e.role == driver.RoleAcceptOld {
			e.remote = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "remote")))
			e.table = rapid.IntRange(firstTable, lastTable).Draw(t, "table")
			e.all = rapid.Bool().Draw(t, "all")
		}
		if e.prefix.Addr().Is4In6() {
			t.Skip("no address of a VM")
		}
		line := e.String()
		got, err := parseEntry(line)
		if err != nil || got != e || len(line) > maxLine {
			t.Errorf("%q: %+v, %v, want %+v", line, got, err, e)
		}
	})
}

// TestHalves: two halves cover a subnet and nothing else.
func TestHalves(t *testing.T) {
	for subnet, want := range map[string][2]string{
		"10.1.0.0/24": {"10.1.0.0/25", "10.1.0.128/25"}, "10.1.0.0/16": {"10.1.0.0/17", "10.1.128.0/17"},
		"2001:db8:1::/64": {"2001:db8:1::/65", "2001:db8:1:0:8000::/65"}, "192.0.2.4/30": {"192.0.2.4/31", "192.0.2.6/31"},
	} {
		low, high := halves(netip.MustParsePrefix(subnet))
		if low.String() != want[0] || high.String() != want[1] {
			t.Errorf("%s: %v and %v, want %v", subnet, low, high, want)
		}
	}
}

// TestConflict: one owner too cannot have an address in two places.
func TestConflict(t *testing.T) {
	at := func(role driver.AddressRole, bridge string) entry {
		return entry{owner: owner, role: role, prefix: hostPrefix(guest4), bridge: bridge}
	}
	if err := conflict([]entry{at(driver.RoleDeliver, "a"), at(driver.RoleDeliver, "b")}); drover.KindOf(err) != drover.Exists {
		t.Errorf("two bridges: %v", err)
	}
	if err := conflict([]entry{at(driver.RoleDeliver, "a"), at(driver.RoleRest, "b"), at(driver.RoleMeter, "")}); err != nil {
		t.Error(err)
	}
}

// FuzzSolicitation: whatever comes from a bridge is answered or not.
func FuzzSolicitation(f *testing.F) {
	own := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	f.Add(advertisement(own, own, own, guest6, guest6, guest6, advertiseAnswer))
	good := advertisement(own, own, own, guest6, guest6, guest6, advertiseAnswer)
	good[icmpAt] = neighborSolicitation
	f.Add(good)
	f.Fuzz(func(t *testing.T, frame []byte) {
		q, ok := parseSolicitation(frame)
		if ok && (len(q.mac) != 6 || !q.source.Is6() || !q.target.Is6() || q.source.IsUnspecified()) {
			t.Errorf("%x: %+v", frame, q)
		}
	})
}
