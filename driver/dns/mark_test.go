package dns

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/drover-vm/drover/driver"
)

// drawRecords draws a name's records.
func drawRecords(t *rapid.T, what string) driver.NameRecords {
	var r driver.NameRecords
	var list []netip.Addr
	for range rapid.IntRange(0, driver.MaxNameAddresses).Draw(t, what) {
		if rapid.Bool().Draw(t, "four") {
			list = append(list, netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 254).Draw(t, "host"))}))
			r.TTL4 = time.Duration(rapid.IntRange(0, 604800).Draw(t, "ttl")) * time.Second
		} else {
			raw := [16]byte{0x20, 1, 0xd, 0xb8, 15: byte(rapid.IntRange(1, 254).Draw(t, "host"))}
			list = append(list, netip.AddrFrom16(raw))
			r.TTL6 = time.Duration(rapid.IntRange(0, 604800).Draw(t, "ttl")) * time.Second
		}
	}
	if len(list) > 0 {
		var err error
		if r.Addresses, err = driver.CheckNameAddresses(list); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// TestMarkRoundTrip: what is written is read, and fits in a record.
func TestMarkRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := mark{driver.OwnedName{
			Name:   "web1.lab.test",
			Owner:  driver.MoveOwner(rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,62}`).Draw(t, "move")),
			Before: drawRecords(t, "before"), Now: drawRecords(t, "now"),
			Since: time.Unix(rapid.Int64Range(0, 1<<32-1).Draw(t, "since"), 0).UTC(),
		}}
		rr := textRecord(markName("web1.lab.test."), m.text())
		got := markOf("web1.lab.test", []dns.RR{rr})
		if got == nil || got.text() != m.text() || !got.Before.SameAddresses(m.Before) || !got.Now.Answer(m.Now) || got.Owner != m.Owner || !got.Since.Equal(m.Since) {
			t.Fatalf("wrote %s, read %+v", m.text(), got)
		}
	})
}

// FuzzParseMark: a mark that is read is exactly what would be written.
func FuzzParseMark(f *testing.F) {
	f.Add("drover1 owner=vm/a since=1 before=300/60:192.0.2.1,2001:db8::1 now=0/0:")
	f.Add("drover1 owner=vm/a since=1 before=300/60:192.0.2.1,192.0.2.1 now=0/0:")
	f.Add("drover check")
	f.Fuzz(func(t *testing.T, text string) {
		m, ok := parseMark("web1.lab.test", text)
		if !ok {
			return
		}
		if m.text() != text || m.Owner.Validate() != nil {
			t.Errorf("%q is read as %q", text, m.text())
		}
		for _, r := range []driver.NameRecords{m.Before, m.Now} {
			if len(r.Addresses) > driver.MaxNameAddresses || r.TTL4 < 0 || r.TTL6 < 0 {
				t.Errorf("%q: %+v", text, r)
			}
		}
	})
}
