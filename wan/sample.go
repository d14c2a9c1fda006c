package wan

import (
	"context"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/reduce"
)

// Limits of a question what is held here.
const (
	// MaxHeld bounds the fingerprints of one question, 32 KiB: of 4096 pages, what is
	// not held when nine in ten are is within 5 % in two cases of three.
	MaxHeld = 4096
	// MinHeld is the least: who asks for fewer wants to know of pages, not of
	// a share.
	MinHeld = 64
	// maxKnownBlocks bounds the catalogues that are read for an answer: 512 MiB of
	// fingerprints, about half a second of a core.
	maxKnownBlocks = 64 << 20
)

// Fingerprint names the content of a block of 4 KiB, as the catalogues do: 0 for
// zeros and nothing else.
func Fingerprint(block []byte) uint64 { return uint64(chunk.FingerprintOf(block)) }

// Known says for each of the fingerprints whether it is of content that the
// subject's sender may refer to here: exactly the sources that Offer lists, so
// that nobody learns more than a move would. Fewer than MinHeld or more than
// MaxHeld fingerprints, and a node without a library, are drover.Refused.
func (n *Node) Known(ctx context.Context, s Subject, prints []uint64) ([]bool, error) {
	const op = "look for content"
	switch {
	case n.library == nil:
		return nil, drover.Errorf(drover.Refused, op, "nothing is kept here")
	case len(prints) < MinHeld || len(prints) > MaxHeld:
		return nil, drover.Errorf(drover.Refused, op, "%d fingerprints: want %d to %d", len(prints), MinHeld, MaxHeld)
	}
	wanted := make(map[chunk.Fingerprint][]int, len(prints))
	for i, p := range prints {
		wanted[chunk.Fingerprint(p)] = append(wanted[chunk.Fingerprint(p)], i)
	}
	delete(wanted, 0) // zeros are nobody's content
	known, blocks := make([]bool, len(prints)), int64(0)
	for _, src := range n.Offer(s) {
		c, err := n.library.Peek(src.ID)
		if err != nil {
			continue // it is not made yet: a move would not find its blocks either
		}
		if blocks += src.Blocks; blocks > maxKnownBlocks || len(wanted) == 0 {
			break
		}
		err = c.Each(ctx, func(_ int64, fps []chunk.Fingerprint) error {
			for _, fp := range fps {
				if at, ok := wanted[fp]; ok {
					for _, i := range at {
						known[i] = true
					}
					delete(wanted, fp)
				}
			}
			return ctx.Err()
		})
		if ctx.Err() != nil {
			return nil, drover.E(drover.Canceled, op, ctx.Err())
		}
		if err != nil {
			n.log.Debug("a catalogue cannot be read", "source", chunk.SourceID(src.ID).String(), "err", err)
		}
	}
	return known, nil
}

// Packed returns how many bytes the data path's compressor, at its usual level,
// makes of blocks of 4 KiB that follow each other.
func Packed(blocks [][]byte) (drover.Bytes, error) {
	p := reduce.NewPacker(reduce.PackerOptions{})
	var sum drover.Bytes
	var buf []byte
	flush := func() (err error) {
		if buf, _, err = p.Flush(buf[:0]); err == nil {
			sum += drover.Bytes(len(buf))
		}
		return err
	}
	for _, b := range blocks {
		if p.Full() {
			if err := flush(); err != nil {
				return 0, err
			}
		}
		p.Block(b)
	}
	if p.Empty() {
		return sum, nil
	}
	err := flush()
	return sum, err
}
