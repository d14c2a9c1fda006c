package reduce

import (
	"encoding/binary"
	"slices"

	"github.com/klauspost/compress/s2"

	"github.com/drover-vm/drover"
)

// fillBlocks is how many blocks go into one fill: 512 KiB, within a message
// even if nothing compresses.
const fillBlocks = 128

// Retained keeps the blocks of a batch that the receiver makes from what it has stored, until it has said that
// it could.
type Retained struct {
	// Seq is the batch's number.
	Seq     uint64
	bytes   int64
	content blockStore
	// mirror has the blocks instead of content, unless nil.
	mirror Mirror
	deps   []dependent
	known  *Known
	old    *trust
	stats  *Stats
}

// Bytes returns how much guest memory is held, here or in the mirror.
func (r *Retained) Bytes() int64 { return r.bytes }

// block returns the content of a dependent block.
func (r *Retained) block(d *dependent) ([]byte, error) {
	if r.mirror == nil {
		return r.content.at(int(d.at)), nil
	}
	p := make([]byte, BlockBytes)
	err := r.mirror.Recall(d.place, p)
	return p, drover.E(drover.Internal, "read what the destination misses", err)
}

// Release gives the memory back. The Retained is not to be used after it.
func (r *Retained) Release() {
	if r.mirror == nil {
		r.content.drop()
	}
	r.deps = nil
}

// A miss, all numbers uvarint:
//
//	seq      of the batch
//	all      1: every dependent block is wanted, nothing follows; 0
//	count    of wanted blocks
//	         for each, how many dependent blocks lie between it and the one before
//	         then, for each other dependent block that is verified, in order: the
//	         first 8 bytes of the BLAKE3-256 of what the receiver has
//
// A fill:
//
//	seq      of the batch
//	last     1: no more fills follow for this miss; 0
//	count    of blocks, 1 to 128
//	         for each, how many dependent blocks lie between it and the one before in this fill
//	         then the blocks, S2

// Fill answers a miss for this batch with the payloads of one or more fills, in order.
// The Packer and its Known learn what the receiver does not have. Every payload is shorter than
// 1 MiB. It returns drover.Corrupt for a malformed miss.
func (r *Retained) Fill(miss []byte) ([][]byte, error) {
	wanted, err := r.wanted(miss)
	if err != nil {
		return nil, err
	}
	for _, i := range wanted {
		if d := &r.deps[i]; d.known && d.ref.Source != OwnMemory {
			content, err := r.block(d)
			if err != nil {
				return nil, err
			}
			r.known.missed(d, content)
		} else {
			r.old.missed.Add(1)
		}
	}
	var out [][]byte
	for len(wanted) > 0 {
		n := min(len(wanted), fillBlocks)
		var last byte
		if n == len(wanted) {
			last = 1
		}
		fill := append(binary.AppendUvarint(nil, r.Seq), last)
		fill = binary.AppendUvarint(fill, uint64(n))
		plain := make([]byte, 0, n*BlockBytes)
		before := -1
		for _, i := range wanted[:n] {
			fill = binary.AppendUvarint(fill, uint64(i-before-1))
			before = i
			content, err := r.block(&r.deps[i])
			if err != nil {
				return nil, err
			}
			plain = append(plain, content...)
		}
		fill = append(fill, s2.Encode(nil, plain)...)
		r.stats.Missed.Add(int64(n))
		r.stats.FillBytes.Add(int64(len(fill)))
		out = append(out, fill)
		wanted = wanted[n:]
	}
	return out, nil
}

// wanted returns the dependent blocks that a miss asks for, ascending: those it names, and those of
// which the receiver has something else.
func (r *Retained) wanted(miss []byte) ([]int, error) {
	const op = "read miss"
	in := reader{p: miss}
	if seq := in.uvarint(); in.bad || seq != r.Seq {
		return nil, drover.Errorf(drover.Corrupt, op, "not of batch %d", r.Seq)
	}
	all := in.uvarint() != 0
	var wanted []int
	if !in.bad && !all {
		var err error
		if wanted, err = r.different(&in); err != nil {
			return nil, err
		}
	}
	if in.bad {
		return nil, drover.Errorf(drover.Corrupt, op, "cut short")
	}
	if len(wanted) == 0 {
		wanted = make([]int, len(r.deps))
		for i := range wanted {
			wanted[i] = i
		}
	}
	return wanted, nil
}

func (r *Retained) different(in *reader) ([]int, error) {
	const op = "read miss"
	at, named := -1, make([]int, in.count(len(r.deps)))
	for i := range named {
		at += 1 + in.count(len(r.deps))
		if at >= len(r.deps) {
			return nil, drover.Errorf(drover.Corrupt, op, "wants block %d of %d", at, len(r.deps))
		}
		named[i] = at
	}
	wanted := slices.Clone(named)
	for i, d := range r.deps {
		if len(named) > 0 && named[0] == i {
			named = named[1:]
			continue
		}
		if !d.verified {
			continue
		}
		if binary.LittleEndian.Uint64(in.bytes(8, zeroNumber[:])) != d.digest {
			wanted = append(wanted, i)
		}
	}
	slices.Sort(wanted)
	return wanted, nil
}

// SeqOf returns the batch number that a miss or a fill begins with.
func SeqOf(p []byte) (uint64, error) {
	seq, n := binary.Uvarint(p)
	if n <= 0 {
		return 0, drover.Errorf(drover.Corrupt, "read batch number", "cut short")
	}
	return seq, nil
}
