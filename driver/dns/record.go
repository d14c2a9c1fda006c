package dns

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover/driver"
)

func typeOf(v4 bool) uint16 {
	if v4 {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// header names a set of records without saying what is in them.
func header(name string, kind uint16) dns.RR {
	return &dns.ANY{Hdr: dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET}}
}

// records makes a name's address records.
func records(name string, r driver.NameRecords) []dns.RR {
	return append(family(name, r, true), family(name, r, false)...)
}

// family makes a name's records of one family.
func family(name string, r driver.NameRecords, v4 bool) []dns.RR {
	addresses, ttl := r.Family(v4)
	list := make([]dns.RR, 0, len(addresses))
	for _, a := range addresses {
		hdr := dns.RR_Header{Name: name, Rrtype: typeOf(v4), Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}
		if v4 {
			list = append(list, &dns.A{Hdr: hdr, A: net.IP(a.AsSlice())})
		} else {
			list = append(list, &dns.AAAA{Hdr: hdr, AAAA: net.IP(a.AsSlice())})
		}
	}
	return list
}

// addAddress adds an address of a record, in order.
func addAddress(r *driver.NameRecords, ip net.IP) {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return
	}
	// An AAAA record with a mapped address is an AAAA record nevertheless; a
	// name with one cannot be put back as it was, and its prerequisite fails.
	a = a.Unmap()
	if i, found := slices.BinarySearchFunc(r.Addresses, a, netip.Addr.Compare); !found {
		r.Addresses = slices.Insert(r.Addresses, i, a)
	}
}

// maxString is what one string of a TXT record can hold.
const maxString = 255

// textRecord makes a TXT record of a text of any length.
func textRecord(name, text string) dns.RR {
	rr := &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}}
	for len(text) > maxString {
		rr.Txt, text = append(rr.Txt, text[:maxString]), text[maxString:]
	}
	rr.Txt = append(rr.Txt, text)
	return rr
}
