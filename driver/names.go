package driver

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// Names is the address records (A and AAAA) of the names of one zone, changed
// at the zone's primary server and read at every authoritative one.
//
// A name that is changed carries a mark in the zone itself, with its owner and
// what was there before, written in the same transaction as the change. It
// lasts from the first Lower or Set to Settle or Restore. A name without a mark
// is somebody else's, and so is every other record at a name: none is touched.
// Nothing is changed unless what is there is what the mark, or for a name
// without one the read just before, says; otherwise the kind is drover.Refused
// and everything stays as it is.
//
// Every method may be repeated, after any error and by another process: it
// finds what it did. Lower, Set, Settle and Restore are one transaction each:
// cancelling leaves all of it or nothing. Methods may be called concurrently.
// Names are absolute, with or without the final dot, in any case; they are
// returned in lower case without it. A name outside of the zone, and any other
// bad argument, gives drover.Invalid; a key that the server does not take
// drover.Denied; a primary that does not answer drover.Unavailable, or
// drover.Unknown when the change had been sent by then. The caller closes.
type Names interface {
	// Check reports whether changes of the names would be let in: it sends a
	// signed change that changes nothing. Without names it asks for the zone as
	// a whole. A primary that does not have the zone gives drover.NotFound.
	Check(ctx context.Context, names ...string) error
	// Answers asks every authoritative server for the name, past all caches.
	// A server that does not answer is in the list with its fault; the error is
	// for a list of servers that could not be had. A missing name has no
	// addresses.
	Answers(ctx context.Context, name string) ([]NameAnswer, error)
	// WaitAnswers returns when every authoritative server answers exactly the
	// addresses, with the TTLs that are not zero. When ctx ends first, the
	// answers are those of the last round and the error, which says who
	// answers otherwise, is drover.Unavailable for a deadline.
	WaitAnswers(ctx context.Context, name string, want NameRecords) ([]NameAnswer, error)
	// Lower gives the name's records a TTL of at most ttl and remembers what
	// was there. A missing name gives drover.NotFound, an alias drover.Refused,
	// a name of another owner drover.Exists.
	Lower(ctx context.Context, owner Owner, name string, ttl time.Duration) (OwnedName, error)
	// Set replaces all of the name's addresses; a missing name is made. Zero
	// ttl means what each family had before the owner's first change; a family
	// that had none gets the other's, a new name DefaultNameTTL. An alias gives
	// drover.Refused, a name of another owner drover.Exists.
	Set(ctx context.Context, owner Owner, name string, addresses []netip.Addr, ttl time.Duration) (OwnedName, error)
	// Settle makes the present addresses permanent: the TTLs are as they were
	// before and the mark goes. When somebody else has changed the addresses
	// meanwhile, only the mark goes. A name that is not the owner's is fine.
	Settle(ctx context.Context, owner Owner, name string) error
	// Restore puts back what was there before the owner's first change, TTLs
	// included, and removes the mark. A name that is not the owner's is fine.
	Restore(ctx context.Context, owner Owner, name string) error
	// Owned returns a name's mark; a name without one gives drover.NotFound.
	Owned(ctx context.Context, name string) (OwnedName, error)
	// List returns all marks of the zone, by name, in order. It needs to read
	// the whole zone: a server that does not allow it gives drover.Denied.
	List(ctx context.Context) ([]OwnedName, error)
	Close() error
}

// Bounds of a name's records.
const (
	// DefaultNameTTL is the TTL of a name that is made: five minutes, which a
	// name server answers without effort and a client waits out.
	DefaultNameTTL = 5 * time.Minute
	// maxNameTTL is a week: what resolvers cap TTLs at or above.
	maxNameTTL = 7 * 24 * time.Hour
	// MaxNameAddresses bounds a name's addresses, so that the mark that holds
	// them twice, and an answer by UDP, stay small.
	MaxNameAddresses = 32
	// maxNameBytes leaves room for the mark's own label in a name's 255 bytes.
	maxNameBytes = 240
)

// NameRecords is the address records of a name.
type NameRecords struct {
	// Addresses in order, IPv4 before IPv6, each once.
	Addresses []netip.Addr
	// TTL4 and TTL6 are those of the A and the AAAA records, in whole seconds;
	// zero for a family without addresses.
	TTL4, TTL6 time.Duration
}

// SameAddresses reports whether both have the same addresses.
func (r NameRecords) SameAddresses(o NameRecords) bool {
	return slices.Equal(r.Addresses, o.Addresses)
}

// Family returns the IPv4 or the IPv6 part.
func (r NameRecords) Family(v4 bool) (addresses []netip.Addr, ttl time.Duration) {
	for _, a := range r.Addresses {
		if a.Is4() == v4 {
			addresses = append(addresses, a)
		}
	}
	if v4 {
		return addresses, r.TTL4
	}
	return addresses, r.TTL6
}

// Answer reports whether an answer is what is wanted: the same addresses, and
// the TTLs that the wish names.
func (r NameRecords) Answer(got NameRecords) bool {
	return r.SameAddresses(got) && (r.TTL4 == 0 || r.TTL4 == got.TTL4) && (r.TTL6 == 0 || r.TTL6 == got.TTL6)
}

// Lowered returns the records with TTLs of at most ttl.
func (r NameRecords) Lowered(ttl time.Duration) NameRecords {
	r.TTL4, r.TTL6 = min(r.TTL4, ttl), min(r.TTL6, ttl)
	return r
}

// WithTTL returns the addresses with the TTL, or for zero with those of before
// as Names.Set says.
func (r NameRecords) WithTTL(ttl time.Duration, before NameRecords) NameRecords {
	r.TTL4, r.TTL6 = 0, 0
	for _, v4 := range []bool{true, false} {
		if list, _ := r.Family(v4); len(list) == 0 {
			continue
		}
		t := ttl
		if t == 0 {
			t = before.familyTTL(v4)
		}
		if v4 {
			r.TTL4 = t
		} else {
			r.TTL6 = t
		}
	}
	return r
}

// familyTTL is the family's TTL, the other's when it has no addresses, or
// DefaultNameTTL without any.
func (r NameRecords) familyTTL(v4 bool) time.Duration {
	for _, f := range []bool{v4, !v4} {
		if list, ttl := r.Family(f); len(list) > 0 {
			return ttl
		}
	}
	return DefaultNameTTL
}

// OwnedName is a name that Drover has changed.
type OwnedName struct {
	Name  string
	Owner Owner
	// Before is what was there before the owner's first change, without
	// addresses for a name that was made.
	Before NameRecords
	// Now is what Drover put there last.
	Now NameRecords
	// Since is when the mark was made, to the second: a cache may hold Before
	// for as long after as its TTLs say.
	Since time.Time
}

// NameAnswer is what one authoritative server answers.
type NameAnswer struct {
	// Server is its name or address.
	Server  string
	Records NameRecords
	// Fault says why it gave no usable answer; Records is empty then.
	Fault string
}

// CheckNameAddresses puts addresses in NameRecords' order, or reports what is
// wrong with them; the kind is drover.Invalid.
func CheckNameAddresses(addresses []netip.Addr) ([]netip.Addr, error) {
	list := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return nil, drover.Errorf(drover.Invalid, "addresses", "%v is not an address of a host", a)
		}
		list = append(list, a.Unmap())
	}
	slices.SortFunc(list, netip.Addr.Compare)
	list = slices.Compact(list)
	if len(list) == 0 || len(list) > MaxNameAddresses {
		return nil, drover.Errorf(drover.Invalid, "addresses", "%d of them: want 1 to %d", len(list), MaxNameAddresses)
	}
	return list, nil
}

// CheckNameTTL reports what is wrong with a TTL; the kind is drover.Invalid.
func CheckNameTTL(ttl time.Duration) error {
	if ttl < time.Second || ttl > maxNameTTL || ttl%time.Second != 0 {
		return drover.Errorf(drover.Invalid, "ttl", "%v: want whole seconds from 1s to %v", ttl, maxNameTTL)
	}
	return nil
}

// NameInZone returns the name in lower case without the final dot, or what is
// wrong with it as a name in the zone; the kind is drover.Invalid.
func NameInZone(name, zone string) (string, error) {
	n, z := strings.ToLower(strings.TrimSuffix(name, ".")), strings.ToLower(strings.TrimSuffix(zone, "."))
	fault := func(why string) (string, error) {
		return "", drover.E(drover.Invalid, "name", fmt.Errorf("%q: %s", name, why))
	}
	if len(n) > maxNameBytes {
		return fault(fmt.Sprintf("longer than %d bytes", maxNameBytes))
	}
	for label := range strings.SplitSeq(n, ".") {
		if !hostLabel(label) {
			return fault("want labels of 1 to 63 letters, digits, dashes and underscores, without a dash at the ends")
		}
	}
	if n != z && !strings.HasSuffix(n, "."+z) {
		return fault("not in the zone " + z)
	}
	return n, nil
}

// hostLabel reports whether a label is one of a host's name. Underscores are
// no letters of hosts' names but are seen in many.
func hostLabel(label string) bool {
	if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for _, c := range []byte(label) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
