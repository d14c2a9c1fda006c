package reduce

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"github.com/drover-vm/drover/wan/chunk"
)

// Draft is a batch that is complete and not yet compressed.
type Draft struct {
	packer  *Packer
	seq     uint64
	blocks  int
	content blockStore // of all blocks but zeros, in order
	hash    xxh3.Hasher

	meta     []byte
	ops      []byte
	deltas   []byte
	literals []int32 // places in content
	raws     []int32
	deps     []dependent
	digests  []byte // of those to be verified

	lastOp, lastCount int
	refArg            []byte
	// mirror has all blocks of deps at their places, so that they need not be kept.
	mirror Mirror

	tally tally
}

// dependent is a block that the receiver makes from something it has stored.
type dependent struct {
	at     int32  // place in content
	digest uint64 // the first 8 bytes of its BLAKE3-256, if verified
	ref    chunk.Ref
	// place is where a memory's mirror has it.
	place int64
	// verified: the batch's hash is over it. known: ref names it.
	verified, known bool
}

// keep copies a block's content into the batch.
func (d *Draft) keep(content []byte) {
	b := d.content.add()
	copy(b, content)
	_, _ = d.hash.Write(b)
}

// depend keeps a block that the receiver may miss. sum is nil when it is not verified.
func (d *Draft) depend(content []byte, sum *[hashBytes]byte, ref chunk.Ref, known bool) {
	d.keep(content)
	dep := dependent{at: int32(d.content.n - 1), ref: ref, known: known}
	if sum != nil {
		dep.verified, dep.digest = true, binary.LittleEndian.Uint64(sum[:])
		d.digests = append(d.digests, sum[:]...)
	}
	d.deps = append(d.deps, dep)
}

// op appends n blocks of an operation, joining them with equal ones before. References are
// joined by the caller, who knows where they point.
func (d *Draft) op(op, n int) {
	d.blocks += n
	if op == d.lastOp && d.lastCount > 0 && op&opMask != opReference {
		d.lastCount += n
		return
	}
	d.endOp()
	d.lastOp, d.lastCount = op, n
}

// endOp writes the operation that is being counted.
func (d *Draft) endOp() {
	if d.lastCount == 0 {
		return
	}
	d.ops = binary.AppendUvarint(d.ops, uint64(d.lastCount-1)<<opBits|uint64(d.lastOp))
	if d.lastOp&opMask == opReference {
		d.ops = append(d.ops, d.refArg...)
	}
	d.lastCount = 0
}

// payload returns the bytes that the batch carries before compression.
func (d *Draft) payload() int {
	return len(d.meta) + len(d.ops) + len(d.deltas) + (len(d.literals)+len(d.raws))*BlockBytes
}

func (d *Draft) retains() int64 {
	if len(d.deps) == 0 {
		return 0
	}
	return d.content.bytes()
}

// parts gives write the sections that are compressed, in order.
func (d *Draft) parts(write func([]byte) error) error {
	for _, p := range [][]byte{d.meta, d.ops, d.deltas} {
		if err := write(p); err != nil {
			return err
		}
	}
	for i := 0; i < len(d.literals); {
		first := int(d.literals[i])
		n := 1
		for i+n < len(d.literals) && int(d.literals[i+n]) == first+n {
			n++
		}
		run := d.content.run(first, n)
		if err := write(run); err != nil {
			return err
		}
		i += len(run) / BlockBytes
	}
	return nil
}

// Done ends the use of a draft after its batch has been made, and returns what has
// to be kept until the batch is acknowledged, if anything.
func (d *Draft) Done() *Retained {
	var r *Retained
	if len(d.deps) > 0 {
		r = &Retained{
			Seq: d.seq, bytes: d.content.bytes(), deps: d.deps, mirror: d.mirror,
			known: d.packer.o.Known, old: &d.packer.old, stats: d.packer.o.Stats,
		}
		d.deps = nil
		if r.mirror == nil {
			r.content, d.content = d.content, blockStore{pool: d.content.pool}
		}
	}
	d.content.drop()
	d.reset()
	select {
	case d.packer.free <- d:
	default:
	}
	return r
}

// reset makes the draft ready for another batch.
func (d *Draft) reset() {
	d.hash.Reset()
	d.meta, d.ops, d.deltas, d.digests = d.meta[:0], d.ops[:0], d.deltas[:0], d.digests[:0]
	d.literals, d.raws, d.deps = d.literals[:0], d.raws[:0], d.deps[:0]
	d.blocks, d.lastCount, d.tally, d.mirror = 0, 0, tally{}, nil
}
