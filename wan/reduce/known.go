package reduce

import (
	"sync"

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

// Known is what a sender knows of the receiver: which content it has and where. One Known
// serves all channels of a session. It is safe for concurrent use.
type Known struct {
	// Index finds the blocks of the sources that the receiver has; nil: none.
	Index *chunk.Index

	mu      sync.Mutex
	sources map[uint16]*trust
}

// trust counts how references to a source fared.
type trust struct {
	made, missed int64
	gone         bool
}

// useful reports whether a lookup may find anything.
func (k *Known) useful() bool { return k != nil && k.Index != nil && k.Index.Len() > 0 }

// lookup finds where the receiver has content with the fingerprint.
func (k *Known) lookup(fp chunk.Fingerprint) (chunk.Ref, bool) {
	ref, ok := k.Index.Lookup(fp)
	if !ok || k.distrusts(ref.Source) {
		return chunk.Ref{}, false
	}
	return ref, true
}

// distrusts reports whether a source has been given up, and counts the reference otherwise.
func (k *Known) distrusts(source uint16) bool {
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
	if t.gone {
		return true
	}
	t.made++
	return false
}

// missed notes that the receiver did not have a block as the index said, and forgets it.
func (k *Known) missed(d *dependent) {
	if k == nil || !d.known {
		return
	}
	if k.Index != nil && d.verified {
		k.Index.Forget(chunk.Fingerprint(d.digest), d.ref)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.sources[d.ref.Source]
	if t == nil {
		return
	}
	t.missed++
	t.gone = t.gone || (t.missed >= distrustAfter && t.missed*distrustShare >= t.made)
}
