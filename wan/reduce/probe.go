package reduce

import "math/bits"

const (
	// probePieces pieces of probeBytes each, spread over a block, are what compressible looks at. Pieces
	// rather than single bytes, because records of 4 or 8 bytes would make a regular sample see
	// only one of their columns.
	probePieces = 16
	probeBytes  = 64
	// probeDistinct: of 128 random bytes 100.7 differ from each other on average, with
	// a deviation of 4. With fewer than this a block is certainly not random.
	probeDistinct = 84
	// probeChiSquare bounds the chi-square of the sample's histogram against the uniform one: 255 on
	// average for random bytes, deviation 22.6. Content at this bound has 7.87 bits a byte: a compressor would
	// gain 1.6 % and spend its slowest time on it.
	probeChiSquare = 440
)

// compressible reports whether a block is worth showing to a compressor. It
// looks at a quarter of the block at most, and at a few dozen bytes of most.
func compressible(block []byte) bool {
	var seen [4]uint64
	const stride = BlockBytes / probePieces
	for piece := 0; piece < 4; piece++ {
		p := block[piece*4*stride : piece*4*stride+32]
		for _, b := range p {
			seen[b>>6] |= 1 << (b & 63)
		}
	}
	distinct := 0
	for _, w := range seen {
		distinct += bits.OnesCount64(w)
	}
	if distinct < probeDistinct {
		return true
	}
	var histogram [256]uint16
	for piece := range probePieces {
		p := block[piece*stride : piece*stride+probeBytes]
		for _, b := range p {
			histogram[b]++
		}
	}
	sum := 0
	for _, n := range histogram {
		sum += int(n) * int(n)
	}
	const n = probePieces * probeBytes
	return sum*256/n-n > probeChiSquare
}
