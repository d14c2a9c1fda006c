package journal

import (
	"fmt"
	"iter"
	"slices"
)

// Ack is one acknowledged record, as the guest streams it.
type Ack struct {
	Journal ID     `json:"journal"`
	Boot    ID     `json:"boot"`
	Seq     uint64 `json:"seq"`
}

// Range is the sequence numbers First to Last, both included.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Acks is the set of acknowledged records of one journal. The zero value is
// empty and takes the journal of the first record added.
type Acks struct {
	Journal ID `json:"journal"`
	// Ranges are ascending, disjoint and not adjacent.
	Ranges []Range `json:"ranges"`
}

// Add adds one acknowledgement; adding it again changes nothing. It is an
// error to mix journals: a guest whose disk was formatted in between has lost
// its records, and the caller must notice.
func (a *Acks) Add(ack Ack) error {
	if len(a.Ranges) == 0 {
		a.Journal = ack.Journal
	}
	if ack.Journal != a.Journal {
		return fmt.Errorf("acknowledgement %d is of journal %s, the earlier ones of %s", ack.Seq, ack.Journal, a.Journal)
	}
	if ack.Seq == 0 || ack.Seq == slotCorrupt {
		return fmt.Errorf("acknowledgement of sequence %d: out of range", ack.Seq)
	}
	a.insert(ack.Seq)
	return nil
}

func (a *Acks) insert(seq uint64) {
	// i is the first range that ends at or after seq-1: the only one that
	// can contain seq or grow upwards to it.
	i, _ := slices.BinarySearchFunc(a.Ranges, seq-1, func(r Range, s uint64) int {
		switch {
		case r.Last < s:
			return -1
		case r.Last > s:
			return 1
		default:
			return 0
		}
	})
	switch {
	case i == len(a.Ranges) || a.Ranges[i].First > seq+1:
		a.Ranges = slices.Insert(a.Ranges, i, Range{seq, seq})
	case a.Ranges[i].First == seq+1:
		a.Ranges[i].First = seq
	case a.Ranges[i].Last == seq-1:
		a.Ranges[i].Last = seq
		if i+1 < len(a.Ranges) && a.Ranges[i+1].First == seq+1 {
			a.Ranges[i].Last = a.Ranges[i+1].Last
			a.Ranges = slices.Delete(a.Ranges, i+1, i+2)
		}
	}
}

// Count returns the number of acknowledged records.
func (a Acks) Count() uint64 {
	var n uint64
	for _, r := range a.Ranges {
		n += r.Last - r.First + 1
	}
	return n
}

// Max returns the newest acknowledged sequence number, 0 for none.
func (a Acks) Max() uint64 {
	if len(a.Ranges) == 0 {
		return 0
	}
	return a.Ranges[len(a.Ranges)-1].Last
}

// All yields the acknowledged sequence numbers, ascending.
func (a Acks) All() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for _, r := range a.Ranges {
			for seq := r.First; seq <= r.Last; seq++ {
				if !yield(seq) {
					return
				}
			}
		}
	}
}
