package reduce

import "github.com/drover-vm/drover/wan/chunk"

// BlockBytes is the size of a block, the one that the content index knows.
const BlockBytes = chunk.BlockBytes

// Kind says how a block, or what is not a block, crossed.
type Kind uint8

// The kinds, in the order in which an encoder tries them.
const (
	// Zero is a block of zeros.
	Zero Kind = iota
	// Same is a block equal to the version that both ends have at its place.
	Same
	// Reference is a block that the receiver has at some other place.
	Reference
	// Delta is a block sent as its difference from the version at its place.
	Delta
	// Compressed is a block whose content went through the compressor.
	Compressed
	// Raw is a block that does not compress, sent as it is.
	Raw
	// Opaque is what is no block: bytes passed on as they are, compressed.
	Opaque

	kinds = int(Opaque) + 1
)

var kindNames = [kinds]string{"zero", "same", "reference", "delta", "compressed", "raw", "opaque"}

// String returns the kind's name, as used in metrics and results.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// Kinds returns all kinds, in order.
func Kinds() []Kind { return []Kind{Zero, Same, Reference, Delta, Compressed, Raw, Opaque} }

// Level says how hard the compressor tries.
type Level uint8

// The levels, from the fastest to the one that makes the least bytes.
const (
	// LevelStored does not compress.
	LevelStored Level = iota
	// LevelS2 is S2, for links that are faster than zstd.
	LevelS2
	// LevelFastest, LevelDefault and LevelBetter are zstd's; about levels 1, 3 and 7 of the
	// reference implementation.
	LevelFastest
	LevelDefault
	LevelBetter
	// LevelBest is zstd's best: about level 11 of the reference implementation.
	LevelBest

	levels = int(LevelBest) + 1
)

var levelNames = [levels]string{"stored", "s2", "zstd-fastest", "zstd-default", "zstd-better", "zstd-best"}

// String returns the level's name.
func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return "unknown"
}

// FixedLevel returns a Level function that always answers l.
func FixedLevel(l Level) func() Level { return func() Level { return l } }
