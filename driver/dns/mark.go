package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover/driver"
)

const (
	// markLabel is the label of a mark before the name that is marked.
	markLabel = "_drover."
	// markVersion begins a mark's text.
	markVersion = "drover1"
	// checkText is a text that is no mark, which Check deletes without its
	// being there.
	checkText = "drover check"
)

// markName is where the mark of an absolute name is.
func markName(name string) string { return markLabel + name }

// mark is a name's mark; its format is in the package's comment.
type mark struct{ driver.OwnedName }

// text writes the mark.
func (m mark) text() string {
	return fmt.Sprintf("%s owner=%s since=%d before=%s now=%s", markVersion, m.Owner, m.Since.Unix(), recordsText(m.Before), recordsText(m.Now))
}

func recordsText(r driver.NameRecords) string {
	list := make([]string, len(r.Addresses))
	for i, a := range r.Addresses {
		list[i] = a.String()
	}
	return fmt.Sprintf("%d/%d:%s", r.TTL4/time.Second, r.TTL6/time.Second, strings.Join(list, ","))
}

// settled is what the TTLs of the present addresses are to be when the mark
// goes: those of before, and for a name that was made those it was made with.
func (m mark) settled() driver.NameRecords {
	if len(m.Before.Addresses) == 0 {
		return m.Now
	}
	return m.Before
}

// markOf returns what the TXT records at a mark's name say, or nil when they
// are not exactly one mark of Drover's.
func markOf(name string, texts []dns.RR) *mark {
	if len(texts) != 1 {
		return nil
	}
	txt, ok := texts[0].(*dns.TXT)
	if !ok {
		return nil
	}
	m, ok := parseMark(name, strings.Join(txt.Txt, ""))
	if !ok {
		return nil
	}
	return &m
}

// parseMark reads a mark's text. It takes exactly what text writes: what a mark
// says is put back into the zone.
func parseMark(name, text string) (mark, bool) {
	m := mark{driver.OwnedName{Name: name}}
	fields := strings.Split(text, " ")
	if len(fields) != 5 || fields[0] != markVersion {
		return m, false
	}
	for i, key := range []string{"owner=", "since=", "before=", "now="} {
		value, ok := strings.CutPrefix(fields[i+1], key)
		if !ok {
			return m, false
		}
		switch key {
		case "owner=":
			m.Owner = driver.Owner(value)
			ok = m.Owner.Validate() == nil
		case "since=":
			var seconds int64
			seconds, ok = number(value)
			m.Since = time.Unix(seconds, 0).UTC()
		case "before=":
			m.Before, ok = parseRecords(value)
		case "now=":
			m.Now, ok = parseRecords(value)
		}
		if !ok {
			return m, false
		}
	}
	return m, m.text() == text
}

func parseRecords(text string) (driver.NameRecords, bool) {
	var r driver.NameRecords
	ttls, list, ok := strings.Cut(text, ":")
	ttl4, ttl6, ok2 := strings.Cut(ttls, "/")
	if !ok || !ok2 {
		return r, false
	}
	n4, ok := number(ttl4)
	n6, ok2 := number(ttl6)
	if !ok || !ok2 {
		return r, false
	}
	r.TTL4, r.TTL6 = time.Duration(n4)*time.Second, time.Duration(n6)*time.Second
	if list == "" {
		return r, true
	}
	for field := range strings.SplitSeq(list, ",") {
		a, err := netip.ParseAddr(field)
		if err != nil || a.Zone() != "" || a != a.Unmap() || len(r.Addresses) == driver.MaxNameAddresses {
			return r, false
		}
		r.Addresses = append(r.Addresses, a)
	}
	sorted := slices.IsSortedFunc(r.Addresses, netip.Addr.Compare)
	return r, sorted && len(slices.Compact(slices.Clone(r.Addresses))) == len(r.Addresses)
}

// number reads seconds, which fit in 32 bits as TTLs and as times of this
// century do.
func number(text string) (int64, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return int64(n), err == nil
}
