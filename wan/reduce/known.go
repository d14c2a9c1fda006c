package reduce

import (
	"sync"
	"sync/atomic"

	"github.com/drover-vm/drover/wan/chunk"
)

// When references to a source are given up: it is not what its catalogue says.
const (
	// distrustAfter references of a source that did not hold are needed at least: a disk that
	// has just been written to misses a few.
	distrustAfter = 64
	// distrustShare: and they are at least one in so many of all references made.
	distrustShare = 8
)

// OwnMemory is the source number of the guest's own memory as it has crossed in this session,
// the mirror at both ends. Advertised sources and those of the session's disks have
// other numbers.
const OwnMemory uint16 = 1<<16 - 1

// Known is what a sender knows of the receiver: which content it has and where. One Known
// serves all channels of a session. It is safe for concurrent use.
type Known struct {
	// Index finds the blocks of the sources that the receiver has; nil: none.
	Index *chunk.Index

	mu      sync.Mutex
	sources map[uint16]*trust
}

// trust counts how what was taken for granted of one source fared. It is safe for concurrent use.
type trust struct{ made, missed atomic.Int64 }

// gone reports whether the source has been given up.
func (t *trust) gone() bool {
	missed := t.missed.Load()
	return missed >= distrustAfter && missed*distrustShare >= t.made.Load()
}

// useful reports whether a lookup may find anything.
func (k *Known) useful() bool { return k != nil && k.Index != nil && k.Index.Len() > 0 }

// lookup finds where the receiver has content with the fingerprint.
func (k *Known) lookup(fp chunk.Fingerprint) (chunk.Ref, bool) {
	ref, ok := k.Index.Lookup(fp)
	if !ok {
		return chunk.Ref{}, false
	}
	t := k.trust(ref.Source)
	if t.gone() {
		return chunk.Ref{}, false
	}
	t.made.Add(1)
	return ref, true
}

func (k *Known) trust(source uint16) *trust {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.sources[source]
	if t == nil {
		if k.sources == nil {
			k.sources = make(map[uint16]*trust)
		}
		t = new(trust)
		k.sources[source] = t
	}
	return t
}

// missed notes that the receiver did not have a block as the index said, and forgets it.
func (k *Known) missed(d *dependent, content []byte) {
	if k == nil {
		return
	}
	k.trust(d.ref.Source).missed.Add(1)
	if k.Index != nil && d.verified {
		k.Index.Forget(chunk.FingerprintOf(content), d.ref)
	}
}
