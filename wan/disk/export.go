package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/reduce"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

const (
	// opCost is what an operation without data counts against the limit, and
	// every other beside its data: its place in queues at both ends.
	opCost = 256
	// maxReads bounds the reads of a disk on their way, each of readBytes at
	// most.
	maxReads = 8
	// maxFlushes bounds the flushes of a disk on their way; one serves all that
	// wait.
	maxFlushes = 64
)

// export is one disk on its way: the backend of the hypervisor's connections,
// a queue, and what is to be known until the destination has confirmed it.
type export struct {
	source  *Source
	ch      Channel
	name    string
	number  uint16
	size    int64
	block   int64 // what QEMU's ranges at the destination are multiples of
	written *Written
	packer  *reduce.Packer
	budget  *semaphore.Weighted
	reads   chan struct{} // one place for each on its way
	asked   chan struct{} // the same for flushes
	// failed ends when the export has, its cause says why.
	failed context.Context
	fail   context.CancelCauseFunc

	wake chan struct{} // one place: there is something to send

	mu      sync.Mutex
	queue   []queued
	fills   [][]byte
	pending []*sent // sent and not confirmed, in order
	taken   Position
	applied Position
	nextID  uint64
	flushes map[uint64]chan struct{} // closed when done; they stay after a cancel
	answers map[uint64]*answer
	changed chan struct{} // closed and replaced when applied or pending changes
}

// queued is an operation that was taken, or a question.
type queued struct {
	kind     opKind
	keep     bool
	off, len int64
	data     []byte // of the pool
	// message, if not 0, is kindFlush or kindRead instead.
	message uint8
	payload []byte
}

// sent is a batch that has not been confirmed.
type sent struct {
	seq      uint64
	held     int64 // of the budget
	retained *reduce.Retained
	blocks   []blockContent
	done     Position // what the batch completes
}

// answer is a read that waits.
type answer struct {
	p    []byte
	err  error
	done chan struct{}
}

var (
	_ nbd.Backend = (*export)(nil)
	_ nbd.Blocked = (*export)(nil)
)

// newExport asks the destination to open the export.
func newExport(ctx context.Context, s *Source, ch Channel, name string, number uint16) (*export, error) {
	hello := append([]byte{Version}, binary.BigEndian.AppendUint16(nil, number)...)
	hello = binary.BigEndian.AppendUint32(hello, uint32(s.o.Limit))
	if err := ch.Send(ctx, kindOpen, append(hello, name...)); err != nil {
		return nil, err
	}
	kind, p, release, err := ch.Receive(ctx)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = drover.Errorf(drover.Unavailable, "", "the destination has closed the channel")
		}
		return nil, err
	}
	defer release()
	switch {
	case kind == kindRefused && len(p) <= maxText:
		return nil, drover.Errorf(drover.Refused, "", "at the destination: %s", p)
	case kind != kindOpened || len(p) != 12:
		return nil, corrupt("message of kind %d, %d bytes, in answer to the opening", kind, len(p))
	}
	size, block := binary.BigEndian.Uint64(p), binary.BigEndian.Uint32(p[8:])
	if size > maxSize || block == 0 || block > blockBytes || block&(block-1) != 0 || size%uint64(block) != 0 {
		return nil, corrupt("export of %d bytes in blocks of %d", size, block)
	}
	e := &export{
		source: s, ch: ch, name: name, number: number, size: int64(size), block: int64(block),
		written: newWritten(int64((size+blockBytes-1)/blockBytes), s.o.WrittenLimit),
		packer:  reduce.NewPacker(reduce.PackerOptions{Known: s.o.Known, Level: s.o.Level, Stats: s.o.Stats}),
		budget:  semaphore.NewWeighted(s.o.Limit), reads: make(chan struct{}, maxReads), asked: make(chan struct{}, maxFlushes),
		wake: make(chan struct{}, 1), changed: make(chan struct{}),
		flushes: map[uint64]chan struct{}{}, answers: map[uint64]*answer{},
	}
	e.failed, e.fail = context.WithCancelCause(context.Background())
	return e, nil
}

// maxSize is what references can address: 16 TiB.
const maxSize = 1 << 44

// carry sends and receives until ctx ends or the channel fails, and closes the
// channel.
func (e *export) carry(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return e.send(gctx) })
	group.Go(func() error { return e.receive(gctx) })
	err := group.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		// The destination still applies what has been sent. A path that is cut
		// is not waited for.
		_ = e.ch.CloseSend()
	}
	e.fail(err)
	e.ch.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range e.pending {
		if b.retained != nil {
			b.retained.Release()
		}
	}
	e.pending, e.queue, e.fills = nil, nil, nil
	return err
}

// Size is the export's size at the destination.
func (e *export) Size() int64 { return e.size }

// BlockBytes is what the destination's ranges must be multiples of; the
// hypervisor is told the same.
func (e *export) BlockBytes() int64 { return e.block }

// err is why the export has failed, or nil.
func (e *export) err() error {
	if e.failed.Err() == nil {
		return nil
	}
	return context.Cause(e.failed)
}

// Write takes a piece of a write.
func (e *export) Write(ctx context.Context, p []byte, off int64) error {
	data := e.source.pool.get(len(p))
	copy(data, p)
	err := e.take(ctx, queued{kind: opBytes, off: off, len: int64(len(p)), data: data}, int64(len(p)))
	if err != nil {
		e.source.pool.put(data)
	}
	return err
}

// Zero takes a run of zeros. It is no slower than any write, whatever the
// flag.
func (e *export) Zero(ctx context.Context, off, length int64, o nbd.ZeroOptions) error {
	return e.take(ctx, queued{kind: opZero, keep: o.KeepSpace, off: off, len: length}, 0)
}

// Trim takes a run whose content does not matter.
func (e *export) Trim(ctx context.Context, off, length int64) error {
	return e.take(ctx, queued{kind: opTrim, off: off, len: length}, 0)
}

// take queues an operation when there is room. From then on the hypervisor
// may be told that it is written.
func (e *export) take(ctx context.Context, q queued, bytes int64) error {
	if !e.budget.TryAcquire(bytes + opCost) {
		wctx, cancel := context.WithCancelCause(ctx)
		stop := context.AfterFunc(e.failed, func() { cancel(context.Cause(e.failed)) })
		err := e.budget.Acquire(wctx, bytes+opCost)
		stop()
		if err != nil {
			err = context.Cause(wctx)
		}
		cancel(nil)
		if err != nil {
			return err
		}
	}
	e.mu.Lock()
	err := e.err()
	if err == nil {
		e.queue = append(e.queue, q)
		e.taken.Operations++
		e.taken.Bytes += uint64(q.len)
	}
	e.mu.Unlock()
	if err != nil {
		e.budget.Release(bytes + opCost)
		return err
	}
	e.nudge()
	return nil
}

// nudge tells the sender that there is something.
func (e *export) nudge() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// ask queues a question behind everything taken so far, prepared under the
// lock with a new id.
func (e *export) ask(kind uint8, prepare func(id uint64) []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.err(); err != nil {
		return err
	}
	e.nextID++
	e.queue = append(e.queue, queued{message: kind, payload: prepare(e.nextID)})
	e.nudge()
	return nil
}

// Flush waits until everything taken before has been applied and flushed by the
// destination.
func (e *export) Flush(ctx context.Context) error {
	if err := e.place(ctx, e.asked); err != nil {
		return err
	}
	done := make(chan struct{})
	err := e.ask(kindFlush, func(id uint64) []byte {
		e.flushes[id] = done
		return numbered(id)
	})
	if err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-e.failed.Done():
		return e.err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// place takes a place among the questions on their way. It is given back by
// the answer.
func (e *export) place(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-e.failed.Done():
		return e.err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ReadAt reads at the destination, after everything taken before.
func (e *export) ReadAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), readBytes)
		if err := e.readPiece(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (e *export) readPiece(ctx context.Context, p []byte, off int64) error {
	if err := e.place(ctx, e.reads); err != nil {
		return err
	}
	a := &answer{p: make([]byte, len(p)), done: make(chan struct{})}
	err := e.ask(kindRead, func(id uint64) []byte {
		e.answers[id] = a
		b := binary.BigEndian.AppendUint64(numbered(id), uint64(off))
		return binary.BigEndian.AppendUint32(b, uint32(len(p)))
	})
	if err != nil {
		return err
	}
	select {
	case <-a.done:
		copy(p, a.p)
		return a.err
	case <-e.failed.Done():
		err = e.err()
	case <-ctx.Done():
		err = ctx.Err()
	}
	e.mu.Lock()
	a.p = nil // what comes now has nowhere to go
	e.mu.Unlock()
	return err
}

// drain waits until everything taken so far is applied.
func (e *export) drain(ctx context.Context) error {
	e.mu.Lock()
	goal := e.taken
	e.mu.Unlock()
	for {
		e.mu.Lock()
		there, changed := e.applied.Operations >= goal.Operations, e.changed
		e.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-changed:
		case <-e.failed.Done():
			return e.err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *export) position() Position {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.taken
}

func (e *export) appliedPosition() Position {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.applied
}

// receive takes the destination's messages.
func (e *export) receive(ctx context.Context) error {
	for {
		kind, p, release, err := e.ch.Receive(ctx)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = drover.Errorf(drover.Unavailable, "", "the destination has closed disk %s", e.name)
			}
			return err
		}
		err = e.heard(kind, p)
		release()
		if err != nil {
			return err
		}
	}
}

// heard serves one message of the destination.
func (e *export) heard(kind uint8, p []byte) error {
	switch kind {
	case kindApplied:
		seq, rest, err := parseNumbered(p)
		if err != nil || len(rest) > 0 {
			return corrupt("malformed confirmation")
		}
		return e.confirm(seq)
	case kindFlushed:
		id, rest, err := parseNumbered(p)
		if err != nil || len(rest) > 0 {
			return corrupt("malformed confirmation of a flush")
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		for have, done := range e.flushes {
			if have <= id {
				close(done)
				delete(e.flushes, have)
				<-e.asked
			}
		}
		return nil
	case kindData:
		return e.data(p)
	case kindMiss:
		return e.miss(p)
	case kindFailed:
		far, err := parseFailure(p)
		if err != nil {
			return err
		}
		e.source.fail(fmt.Errorf("disk %s: %w", e.name, far))
		e.fail(far)
		return nil
	default:
		return corrupt("message of kind %d", kind)
	}
}

// data serves the answer to a read.
func (e *export) data(p []byte) error {
	id, p, err := parseNumbered(p)
	if err != nil {
		return err
	}
	if len(p) < 4 {
		return corrupt("answer to a read of %d bytes", len(p))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.answers[id]
	if a != nil {
		delete(e.answers, id)
		<-e.reads
	}
	switch errno := binary.BigEndian.Uint32(p); {
	case a == nil:
		return corrupt("answer to a read that was not asked for")
	case a.p == nil:
		return nil
	case errno != 0:
		a.err = &farError{errno: wireErrno(errno), text: string(p[4:min(len(p), 4+maxText)])}
	case len(p)-4 != len(a.p):
		return corrupt("%d bytes in answer to a read of %d", len(p)-4, len(a.p))
	default:
		copy(a.p, p[4:])
	}
	close(a.done)
	return nil
}
