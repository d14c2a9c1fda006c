package bundle

// idSet remembers the far end's channels that have ended. They are opened in
// order of their ids, every second number.
type idSet struct {
	next uint32 // all before it have ended
	some map[uint32]struct{}
}

func (s *idSet) has(id uint32) bool {
	_, is := s.some[id]
	return is || id < s.next
}

func (s *idSet) add(id uint32) {
	if s.some == nil {
		s.some = make(map[uint32]struct{})
	}
	s.some[id] = struct{}{}
	for {
		if _, is := s.some[s.next]; !is {
			return
		}
		delete(s.some, s.next)
		s.next += 2
	}
}

// replay remembers which connection numbers were used. Dials overtake each
// other by a few; anything that is older than the window is refused.
type replay struct {
	highest uint32
	seen    uint64 // bit i: highest-i
}

// use reports whether a number is new, and remembers it.
func (r *replay) use(n uint32) bool {
	switch {
	case n > r.highest:
		if by := n - r.highest; by < 64 {
			r.seen <<= by
		} else {
			r.seen = 0
		}
		r.highest = n
		r.seen |= 1
		return true
	case r.highest-n >= 64 || r.seen&(1<<(r.highest-n)) != 0:
		return false
	}
	r.seen |= 1 << (r.highest - n)
	return true
}
