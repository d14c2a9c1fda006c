package dhcp

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"strings"
)

// pool is a range of addresses, both ends included.
type pool struct{ first, last netip.Addr }

// parsePool reads "first - last" or a prefix.
func parsePool(text string) (pool, error) {
	if from, to, ok := strings.Cut(text, "-"); ok {
		first, err1 := netip.ParseAddr(strings.TrimSpace(from))
		last, err2 := netip.ParseAddr(strings.TrimSpace(to))
		if err1 != nil || err2 != nil || first.Is4() != last.Is4() || last.Less(first) {
			return pool{}, fmt.Errorf("pool %q is not a range", text)
		}
		return pool{first, last}, nil
	}
	prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
	if err != nil {
		return pool{}, fmt.Errorf("pool %q: %w", text, err)
	}
	return pool{prefix.Masked().Addr(), lastOf(prefix)}, nil
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(raw); i++ {
		raw[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(raw)
	return last
}

func (p pool) contains(a netip.Addr) bool {
	return a.Is4() == p.first.Is4() && !a.Less(p.first) && !p.last.Less(a)
}

// size is the number of addresses, or the largest number.
func (p pool) size() uint64 {
	a, b := p.first.As16(), p.last.As16()
	lo, borrow := bits.Sub64(binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(a[8:]), 0)
	hi, _ := bits.Sub64(binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(a[:8]), borrow)
	if hi > 0 || lo == math.MaxUint64 {
		return math.MaxUint64
	}
	return lo + 1
}

// use says what an address is used for.
type use int

const (
	// taken is somebody's.
	taken use = iota + 1
	// ended is a lease that has ended, which the service still remembers.
	ended
)

// free counts the pools' addresses that are not taken.
func free(pools []pool, used map[netip.Addr]use) uint64 {
	var total uint64
	for _, p := range pools {
		var carry uint64
		if total, carry = bits.Add64(total, p.size(), 0); carry > 0 {
			total = math.MaxUint64
		}
	}
	if total == math.MaxUint64 {
		return total
	}
	for a, u := range used {
		if u == taken && inPools(pools, a) {
			total--
		}
	}
	return total
}

func inPools(pools []pool, a netip.Addr) bool {
	for _, p := range pools {
		if p.contains(a) {
			return true
		}
	}
	return false
}

// pick returns a free address of the pools. It begins at their ends, because
// services begin at their beginnings, and prefers addresses that nobody had.
func pick(pools []pool, used map[netip.Addr]use) (netip.Addr, bool) {
	var second netip.Addr
	for i := len(pools) - 1; i >= 0; i-- {
		// Of n+1 addresses one is not among n used ones: this ends.
		for a := pools[i].last; pools[i].contains(a); a = a.Prev() {
			switch used[a] {
			case 0:
				return a, true
			case ended:
				if !second.IsValid() {
					second = a
				}
			}
		}
	}
	return second, second.IsValid()
}
