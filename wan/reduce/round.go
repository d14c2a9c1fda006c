package reduce

import "github.com/drover-vm/drover/wan/page"

// phaseWatch finds the beginnings of rounds and of the pause in a stream.
type phaseWatch struct {
	round  int
	block  int
	addr   uint64
	paused bool
}

// see looks at a record, and reports whether a round begins with it and whether the
// pause does.
func (w *phaseWatch) see(phase page.Phase, rec page.Record) (round, last bool) {
	if (phase == page.Last || phase == page.Devices) && !w.paused {
		w.paused, last = true, true
	}
	if rec.Kind == page.Bytes || w.paused {
		return false, last
	}
	if w.round == 0 || rec.Block < w.block || rec.Block == w.block && rec.Addr <= w.addr {
		w.round++
		round = true
	}
	w.block, w.addr = rec.Block, rec.Addr
	return round, last
}

// firstRound follows the first round of copying, in which every page comes once.
type firstRound struct {
	total, seen int64 // bytes
	over        bool
}

// allowStep is how often, in bytes of guest memory, it is judged anew what may be under way.
const allowStep = 1 << 20

// see looks at a record of a round, and says now and then how much is still to come of the first one.
func (f *firstRound) see(rec page.Record, round int, blocks []page.Block) (left int64, now bool) {
	if rec.Kind == page.Bytes || f.over {
		return 0, false
	}
	if round > 1 {
		f.over = true
		return 0, true
	}
	if f.total == 0 {
		for _, b := range blocks {
			f.total += int64(b.Bytes)
		}
	}
	f.seen += page.PageBytes
	return max(0, f.total-f.seen), f.seen%allowStep == 0
}
