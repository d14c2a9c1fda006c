package disk

import (
	"context"

	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/reduce"
)

// batchRoom is what a batch that holds back anything may hold back beyond its
// own bytes: package reduce keeps content in pieces of this size.
const batchRoom = 256 << 10

// blockContent is a block that a batch writes, by fingerprint.
type blockContent struct {
	block int64
	fp    chunk.Fingerprint
}

// sender packs what was taken. It belongs to one goroutine.
type sender struct {
	*export
	ctx     context.Context
	batch   *sent // what is in the packer
	staged  int64 // what it counts against the limit
	seq     uint64
	out     []byte
	opBytes []byte
}

// send packs and sends what is taken until ctx ends. Batches form by
// themselves: while one is compressed and sent, the next gathers.
func (e *export) send(ctx context.Context) error {
	s := &sender{export: e, ctx: ctx, batch: new(sent)}
	var spare []queued
	for {
		e.mu.Lock()
		queue := e.queue
		e.queue = spare[:0]
		e.mu.Unlock()
		if err := s.all(queue); err != nil {
			return err
		}
		clear(queue)
		spare = queue
		if len(queue) > 0 {
			continue
		}
		select {
		case <-e.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// all packs and sends a queue, and the fills that are wanted meanwhile.
func (s *sender) all(queue []queued) error {
	for i := range queue {
		q := &queue[i]
		var err error
		switch {
		case s.err() != nil:
			s.drop(q)
		case q.message != 0:
			if err = s.flush(); err == nil {
				err = s.ch.Send(s.ctx, q.message, q.payload)
			}
		default:
			err = s.pack(q)
		}
		if err != nil {
			return err
		}
	}
	if err := s.flush(); err != nil {
		return err
	}
	return s.sendFills()
}

// drop gives back what an operation holds that will not be sent.
func (s *sender) drop(q *queued) {
	if q.message == 0 {
		s.budget.Release(int64(len(q.data)) + opCost)
		s.source.pool.put(q.data)
	}
}

// pack puts an operation into one or more batches.
func (s *sender) pack(q *queued) error {
	if q.kind != opBytes {
		kind := q.kind | opLast
		if q.keep {
			kind |= opKeepSpace
		}
		s.run(q)
		s.meta(kind, q.off, q.len)
		s.end(q)
		return s.flushFull()
	}
	off, data := q.off, q.data
	for len(data) > 0 {
		n := 0
		if off%blockBytes == 0 && len(data) >= blockBytes {
			n = s.packBlocks(off/blockBytes, data)
		} else {
			n = s.packPart(off, data)
		}
		s.staged += int64(n)
		off, data = off+int64(n), data[n:]
		if len(data) == 0 {
			s.end(q)
			s.source.pool.put(q.data)
		}
		if err := s.flushFull(); err != nil {
			return err
		}
	}
	return nil
}

// end notes that an operation is complete with the batch.
func (s *sender) end(q *queued) {
	s.staged += opCost
	s.batch.done.Operations++
	s.batch.done.Bytes += uint64(q.len)
}

func (s *sender) meta(kind opKind, a, b int64) {
	s.opBytes = appendOp(s.opBytes[:0], kind, a, b)
	s.packer.Meta(s.opBytes)
}

// packBlocks appends whole blocks until the batch is full, and returns their
// bytes.
func (s *sender) packBlocks(first int64, data []byte) int {
	n := 0
	for n+blockBytes <= len(data) && (n == 0 || !s.packer.Full()) {
		p := data[n : n+blockBytes]
		s.note(first+int64(n/blockBytes), p)
		s.packer.Block(p)
		n += blockBytes
	}
	kind := opBlocks
	if n == len(data) {
		kind |= opLast
	}
	s.meta(kind, first, int64(n/blockBytes))
	return n
}

// packPart appends bytes up to the next border of blocks.
func (s *sender) packPart(off int64, data []byte) int {
	n := min(len(data), int(blockBytes-off%blockBytes))
	kind := opBytes
	if n == len(data) {
		kind |= opLast
	}
	s.meta(kind, off, int64(n))
	s.packer.Opaque(data[:n])
	s.written.fill(off/blockBytes, off/blockBytes+1, false, s.forget)
	return n
}

// note records a block's new content.
func (s *sender) note(block int64, p []byte) {
	fp := chunk.FingerprintOf(p)
	if old, known := s.written.At(block); known && old != fp {
		s.forget(block, old)
	}
	s.written.set(block, fp)
	if fp != 0 {
		s.batch.blocks = append(s.batch.blocks, blockContent{block, fp})
	}
}

// run records what a run of zeros or a trim does.
func (s *sender) run(q *queued) {
	first, end := q.off/blockBytes, (q.off+q.len)/blockBytes
	if q.off%blockBytes != 0 {
		s.written.fill(first, first+1, false, s.forget)
		first++
	}
	if (q.off+q.len)%blockBytes != 0 {
		s.written.fill(end, end+1, false, s.forget)
	}
	if first < end {
		s.written.fill(first, end, q.kind == opZero, s.forget)
	}
}

// forget takes a block out of the index whose content is about to change.
func (s *sender) forget(block int64, fp chunk.Fingerprint) {
	if x := s.source.index(); x != nil {
		x.Forget(fp, chunk.Ref{Source: s.number, Block: uint32(block)})
	}
}

func (s *sender) flushFull() error {
	if !s.packer.Full() {
		return nil
	}
	return s.flush()
}

// flush sends the batch, if there is anything in it, as soon as few enough
// are on their way.
func (s *sender) flush() error {
	if s.packer.Empty() {
		return nil
	}
	if err := s.room(); err != nil {
		return err
	}
	out, retained, err := s.packer.Flush(s.out[:0])
	if err != nil {
		return err
	}
	s.out = out
	s.seq++
	b := s.batch
	b.seq, b.retained = s.seq, retained
	real := int64(len(out)) + int64(len(b.blocks))*16
	if retained != nil {
		real += retained.Bytes()
	}
	b.held = min(s.staged, real)
	s.budget.Release(s.staged - b.held)
	s.batch, s.staged = new(sent), 0
	s.mu.Lock()
	s.pending = append(s.pending, b)
	s.mu.Unlock()
	return s.ch.Send(s.ctx, kindBatch, out)
}

// room waits until one more batch may be on its way, and sends the fills that
// are wanted meanwhile, without which it might never. It bounds what batches
// of few blocks hold back.
func (s *sender) room() error {
	limit := int(s.source.o.Limit / batchRoom)
	for {
		if err := s.sendFills(); err != nil {
			return err
		}
		s.mu.Lock()
		full, changed := len(s.pending) >= limit, s.changed
		s.mu.Unlock()
		if !full || s.err() != nil {
			return nil
		}
		select {
		case <-changed:
		case <-s.failed.Done():
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

func (s *sender) sendFills() error {
	s.mu.Lock()
	fills := s.fills
	s.fills = nil
	s.mu.Unlock()
	for _, f := range fills {
		if err := s.ch.Send(s.ctx, kindFill, f); err != nil {
			return err
		}
	}
	return nil
}

// confirm ends the batches up to seq: they are applied.
func (e *export) confirm(seq uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.pending) == 0 || seq < e.pending[0].seq || seq > e.pending[len(e.pending)-1].seq {
		return corrupt("confirmation of batch %d, which is not on its way", seq)
	}
	for len(e.pending) > 0 && e.pending[0].seq <= seq {
		b := e.pending[0]
		e.pending[0] = nil
		e.pending = e.pending[1:]
		e.applied.Operations += b.done.Operations
		e.applied.Bytes += b.done.Bytes
		if b.retained != nil {
			b.retained.Release()
		}
		e.arrived(b.blocks)
		e.budget.Release(b.held)
	}
	e.announce()
	return nil
}

// announce tells whoever waits that something has changed; mu is held.
func (e *export) announce() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// arrived notes that blocks can be referred to, if they still are what they
// were. What is known from elsewhere stays: an image does not change.
func (e *export) arrived(blocks []blockContent) {
	x := e.source.index()
	if x == nil {
		return
	}
	for _, b := range blocks {
		if _, known := x.Lookup(b.fp); known {
			continue
		}
		if now, known := e.written.At(b.block); known && now == b.fp {
			x.Add(b.fp, chunk.Ref{Source: e.number, Block: uint32(b.block)})
		}
	}
}

// miss answers the destination's question for blocks.
func (e *export) miss(p []byte) error {
	seq, err := reduce.SeqOf(p)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range e.pending {
		if b.retained == nil || b.retained.Seq != seq {
			continue
		}
		fills, err := b.retained.Fill(p)
		if err != nil {
			return err
		}
		e.fills = append(e.fills, fills...)
		e.announce()
		e.nudge()
		return nil
	}
	return corrupt("miss of batch %d, which is not on its way", seq)
}
