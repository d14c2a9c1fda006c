package journal

import (
	"fmt"
	"io"
	"slices"
)

// maxListed bounds the sequence and slot numbers that a report lists: enough
// to see a pattern, little enough to print.
const maxListed = 100

// Scan is what a disk holds, without any knowledge of acknowledgements.
type Scan struct {
	Geometry
	// Records counts whole records of this journal.
	Records uint64 `json:"records"`
	// MinSeq and MaxSeq are the oldest and the newest of them, 0 for none.
	MinSeq uint64 `json:"min_seq"`
	MaxSeq uint64 `json:"max_seq"`
	// Corrupt counts slots that hold something else than a whole record in
	// its place; CorruptSlots lists the first of them.
	Corrupt      uint64   `json:"corrupt"`
	CorruptSlots []uint64 `json:"corrupt_slots,omitempty"`
	// Torn says that one of the corrupt slots is the one a crash may tear.
	Torn bool `json:"torn"`
	// Boots lists the boots that wrote the records, in no particular order.
	Boots []ID `json:"boots,omitempty"`

	slots []uint64 // by slot: sequence number, slotBlank or slotCorrupt
}

// Check reads the journal on r, whose size is diskBytes. It returns
// ErrNoJournal when there is none. Corrupt records are not an error here:
// they are counted in the Scan.
func Check(r io.ReaderAt, diskBytes int64) (Scan, error) {
	if diskBytes < RingOffset {
		return Scan{}, fmt.Errorf("%w: disk has %d bytes", ErrNoJournal, diskBytes)
	}
	super := alignedBuffer(superblockBytes)
	if _, err := r.ReadAt(super, SuperblockOffset); err != nil {
		return Scan{}, fmt.Errorf("read superblock: %w", err)
	}
	g, err := parseGeometry(super, diskBytes)
	if err != nil {
		return Scan{}, err
	}
	s := Scan{Geometry: g, slots: make([]uint64, g.Slots)}
	per := uint64(max(1, MaxBlockBytes/g.BlockBytes))
	buf := alignedBuffer(int(per) * g.BlockBytes)
	for slot := uint64(0); slot < g.Slots; slot += per {
		n := min(per, g.Slots-slot)
		b := buf[:int(n)*g.BlockBytes]
		if _, err := r.ReadAt(b, g.offset(slot)); err != nil {
			return Scan{}, fmt.Errorf("read slots from %d: %w", slot, err)
		}
		for i := range n {
			s.add(slot+i, b[int(i)*g.BlockBytes:int(i+1)*g.BlockBytes])
		}
	}
	s.Torn = s.slots[(s.MaxSeq+1)%g.Slots] == slotCorrupt
	return s, nil
}

func (s *Scan) add(slot uint64, b []byte) {
	state, boot := s.readSlot(slot, b)
	s.slots[slot] = state
	switch state {
	case slotBlank:
	case slotCorrupt:
		s.Corrupt++
		if len(s.CorruptSlots) < maxListed {
			s.CorruptSlots = append(s.CorruptSlots, slot)
		}
	default:
		s.Records++
		s.MaxSeq = max(s.MaxSeq, state)
		if s.MinSeq == 0 || state < s.MinSeq {
			s.MinSeq = state
		}
		if !slices.Contains(s.Boots, boot) && len(s.Boots) < maxListed {
			s.Boots = append(s.Boots, boot)
		}
	}
}

// Verdict is a Scan judged against the acknowledgements.
type Verdict struct {
	// OK says that no acknowledged write is lost and nothing is corrupt
	// except for a slot that a crash may tear.
	OK bool `json:"ok"`
	// Acked is the number of acknowledged records: Present of them are on
	// the disk, Overwritten were replaced by a newer lap of the ring, and
	// LostCount are neither.
	Acked       uint64 `json:"acked"`
	Present     uint64 `json:"present"`
	Overwritten uint64 `json:"overwritten"`
	LostCount   uint64 `json:"lost_count"`
	// Lost lists the first lost sequence numbers.
	Lost []uint64 `json:"lost,omitempty"`
	// Reason says in a line why OK is false.
	Reason string `json:"reason,omitempty"`
}

// Verify proves or refutes that every record in acked is safe on the scanned
// disk: it is there and whole, or its slot holds a newer record, or its slot
// was being overwritten when the writer died.
func (s Scan) Verify(acked Acks) Verdict {
	v := Verdict{Acked: acked.Count()}
	foreign := v.Acked > 0 && acked.Journal != s.Journal
	for seq := range acked.All() {
		switch state := s.slots[seq%s.Slots]; {
		case foreign:
			v.lose(seq)
		case state == seq:
			v.Present++
		case state != slotCorrupt && state > seq:
			v.Overwritten++
		case state == slotCorrupt && seq%s.Slots == (s.MaxSeq+1)%s.Slots && seq < s.MaxSeq:
			v.Overwritten++ // the next lap's record was in flight
		default:
			v.lose(seq)
		}
	}
	corrupt := s.Corrupt
	if s.Torn {
		corrupt--
	}
	switch {
	case foreign:
		v.Reason = fmt.Sprintf("the disk holds journal %s, the acknowledgements are of %s", s.Journal, acked.Journal)
	case v.LostCount > 0:
		v.Reason = fmt.Sprintf("%d acknowledged records are not on the disk, the first is %d", v.LostCount, v.Lost[0])
	case corrupt > 0:
		v.Reason = fmt.Sprintf("%d slots are corrupt, the first is %d", corrupt, s.CorruptSlots[0])
	default:
		v.OK = true
	}
	return v
}

func (v *Verdict) lose(seq uint64) {
	v.LostCount++
	if len(v.Lost) < maxListed {
		v.Lost = append(v.Lost, seq)
	}
}
