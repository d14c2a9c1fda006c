package reduce

import "sync/atomic"

// Stats counts what crossed. All counters only grow; it is safe for concurrent use, and
// several encoders may share one.
//
// The wire bytes of a batch are told apart by kind like this: raw blocks have exactly their
// own; the rest of the batch, which is compressed as a whole, is shared out in proportion to the
// bytes that went into the compressor for each kind: a literal's content, a
// delta, the opaque bytes; operations, positions and the hash belong to all kinds by their
// number of blocks.
type Stats struct {
	kinds [kinds]kindCounters
	// Missed counts blocks that the receiver did not have as expected and that were sent again.
	Missed atomic.Int64
	// FillBytes counts the wire bytes of those.
	FillBytes atomic.Int64
	// Batches counts batches.
	Batches atomic.Int64
	// WaitNanoseconds is the time that was waited for the hypervisor, RetainNanoseconds that for what is
	// retained to be acknowledged, HandNanoseconds that for a compressor to be free.
	WaitNanoseconds, RetainNanoseconds, HandNanoseconds atomic.Int64
	// EncodeNanoseconds is the time spent finding out how to send each block,
	// CompressNanoseconds that in the compressor, SendNanoseconds that in which the channel's
	// Send did not take more.
	EncodeNanoseconds, CompressNanoseconds, SendNanoseconds atomic.Int64
}

type kindCounters struct{ blocks, guestBytes, wireBytes atomic.Int64 }

// Count is what Stats has counted for one kind.
type Count struct {
	// Blocks is the number of blocks; of Opaque, the number of pieces.
	Blocks int64
	// GuestBytes is their length before the encoding.
	GuestBytes int64
	// WireBytes is what they took on the wire, shared out as the comment of Stats says.
	WireBytes int64
}

// Of returns the counters of a kind.
func (s *Stats) Of(k Kind) Count {
	c := &s.kinds[k]
	return Count{Blocks: c.blocks.Load(), GuestBytes: c.guestBytes.Load(), WireBytes: c.wireBytes.Load()}
}

// Total returns the sum over all kinds. Fills are not in it.
func (s *Stats) Total() Count {
	var t Count
	for _, k := range Kinds() {
		c := s.Of(k)
		t.Blocks, t.GuestBytes, t.WireBytes = t.Blocks+c.Blocks, t.GuestBytes+c.GuestBytes, t.WireBytes+c.WireBytes
	}
	return t
}

// tally is what one batch holds, for Stats.
type tally struct {
	blocks [kinds]int64
	guest  [kinds]int64
	packed [kinds]int64 // bytes that go into the compressor for the kind
}

// record adds a batch: shared are the bytes that go into the compressor for all kinds together
// (opaque bytes among them), compressed what came out of it with the head, raw the raw blocks.
func (s *Stats) record(t *tally, shared, compressed, raw int64) {
	s.Batches.Add(1)
	shared = max(0, shared-t.packed[Opaque])
	var blocks, weights int64
	for _, n := range t.blocks {
		blocks += n
	}
	var weight [kinds]int64
	for k, n := range t.blocks {
		weight[k] = t.packed[k]
		if blocks > 0 {
			weight[k] += (shared + 1) * n / blocks
		}
		weights += weight[k]
	}
	left, last := compressed, 0
	for k, n := range t.blocks {
		if n == 0 {
			continue
		}
		last = k
		var share int64
		if weights > 0 {
			share = compressed * weight[k] / weights
		}
		left -= share
		c := &s.kinds[k]
		c.blocks.Add(n)
		c.guestBytes.Add(t.guest[k])
		c.wireBytes.Add(share)
	}
	s.kinds[last].wireBytes.Add(left) // what rounding left
	s.kinds[Raw].wireBytes.Add(raw)
}
