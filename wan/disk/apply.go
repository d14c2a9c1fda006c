package disk

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/reduce"
	"golang.org/x/sync/errgroup"
)

const (
	// maxItems bounds the messages that wait: the batches that maxLimit allows,
	// and the questions.
	maxItems = maxLimit/batchRoom + maxFlushes + maxReads
	// maxFills bounds the fills that wait: one batch's, twice.
	maxFills = 2 * reduce.MaxBlocks / 128
	// limitSlack is what messages may have beyond what the source counts.
	limitSlack = 4 << 20
	// writers is how many operations are under way at QEMU's server: what it
	// serves at a time on one connection.
	writers = nbd.MaxInFlight
	// maxTasks bounds the goroutines of a disk: operations, reads and a flush.
	maxTasks = writers + maxReads + 1
	// pieceBytes is the largest write asked of QEMU at once; 16 of them are
	// the most that a disk's operations hold.
	pieceBytes = 512 << 10
	// zeroRun is how many blocks of zeros are worth an operation of their own:
	// a cluster.
	zeroRun = 16
)

// disk is one disk that is arriving. All of its state but what other
// goroutines are given belongs to the goroutine of apply.
type disk struct {
	target *Target
	ch     Channel
	client Volume
	number uint16
	name   string
	size   int64
	block  int64 // what ranges are multiples of
	limit  int64

	waiting atomic.Int64 // bytes in in
	in      chan item
	fills   chan []byte
	done    chan *task // has room for all that run
	group   sync.WaitGroup

	unpacker *reduce.Unpacker
	running  []*task // operations under way
	batches  []*batch
	seq      uint64 // of the last batch that came
	applied  uint64 // of the last that is applied, with all before
	flushes  []question
	flushing bool
	reads    []question
	reading  int
	err      error // the first failure of an operation: nothing follows it
}

// item is a message that waits.
type item struct {
	kind    uint8
	payload []byte
}

// batch is one whose operations are under way.
type batch struct {
	seq    uint64
	left   int // operations under way
	closed bool
	done   Position
}

// question is a flush or a read that waits for the batches before it.
type question struct {
	id    uint64
	after uint64 // batch
	off   int64
	len   int
}

// task is something that QEMU is doing.
type task struct {
	batch  *batch // of an operation
	flush  bool
	id     uint64
	off    int64
	len    int64
	data   []byte
	result error
}

// run applies what comes until the source has ended the channel.
func (d *disk) run(ctx context.Context) error {
	d.unpacker = reduce.NewUnpacker()
	defer d.unpacker.Close()
	group, gctx := errgroup.WithContext(ctx)
	// Whatever is under way at QEMU ends with the connection.
	stop := context.AfterFunc(gctx, func() { d.client.Close() })
	group.Go(func() error { return d.receive(gctx) })
	group.Go(func() error { return d.apply(gctx) })
	err := group.Wait()
	stop()
	d.client.Close()
	d.group.Wait()
	if err == nil {
		err = d.err
	}
	return err
}

// apply serves what waits, in order.
func (d *disk) apply(ctx context.Context) error {
	in := d.in
	for in != nil || len(d.running) > 0 || d.flushing || d.reading > 0 {
		select {
		case it, ok := <-in:
			if !ok {
				in = nil
				continue
			}
			if err := d.serve(ctx, it); err != nil {
				d.tell(ctx, err)
				return err
			}
			d.waiting.Add(-int64(len(it.payload)))
		case t := <-d.done:
			if err := d.finished(ctx, t); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// serve begins what one message asks for.
func (d *disk) serve(ctx context.Context, it item) error {
	switch it.kind {
	case kindBatch:
		d.seq++
		if d.err != nil {
			return nil // the source has been told
		}
		return d.batch(ctx, it.payload)
	case kindFlush:
		id, rest, err := parseNumbered(it.payload)
		if err != nil || len(rest) != 0 || len(d.flushes) >= maxFlushes {
			return corrupt("malformed flush, or one too many")
		}
		d.flushes = append(d.flushes, question{id: id, after: d.seq})
	case kindRead:
		id, rest, err := parseNumbered(it.payload)
		if err != nil || len(rest) != 12 || len(d.reads) >= maxReads {
			return corrupt("malformed read, or one too many")
		}
		q := question{id: id, after: d.seq, off: int64(binary.BigEndian.Uint64(rest)), len: int(binary.BigEndian.Uint32(rest[8:]))}
		if q.len == 0 || q.len > readBytes || q.off < 0 || q.off > d.size-int64(q.len) {
			return corrupt("read of %d bytes at %d", q.len, q.off)
		}
		d.reads = append(d.reads, q)
	default:
		return corrupt("message of kind %d", it.kind)
	}
	d.questions()
	return nil
}

// batch decodes a batch and begins its operations, each as soon as none that
// it overlaps is under way.
func (d *disk) batch(ctx context.Context, p []byte) error {
	u := d.unpacker
	if err := u.Open(p); err != nil {
		return err
	}
	miss, err := u.Resolve(d.target, nil)
	for err == nil && miss != nil {
		if err = d.ch.Send(ctx, kindMiss, miss); err == nil {
			miss, err = d.fill(ctx)
		}
	}
	if err != nil {
		return err
	}
	b := &batch{seq: d.seq}
	d.batches = append(d.batches, b)
	next := 0
	for meta := u.Meta(); len(meta) > 0; {
		var o operation
		if o, meta, err = parseOp(meta, d.size); err != nil {
			return err
		}
		if err := d.operation(ctx, b, o, &next); err != nil {
			return err
		}
		b.done.Bytes += uint64(o.len)
		if o.last {
			b.done.Operations++
		}
	}
	if next != u.Blocks() {
		return corrupt("batch %d has %d blocks more than its operations", d.seq, u.Blocks()-next)
	}
	b.closed = true
	return d.progress(ctx)
}

// fill waits for the fills that complete the open batch, or for another miss.
func (d *disk) fill(ctx context.Context) (miss []byte, err error) {
	for {
		select {
		case p, ok := <-d.fills:
			if !ok {
				return nil, drover.Errorf(drover.Unavailable, "", "the source has closed disk %s while blocks of it were missing", d.name)
			}
			done, miss, err := d.unpacker.Fill(p)
			if done || miss != nil || err != nil {
				return miss, err
			}
		case t := <-d.done:
			if err := d.finished(ctx, t); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// operation begins one operation of the batch. Blocks are those from *next on.
func (d *disk) operation(ctx context.Context, b *batch, o operation, next *int) error {
	switch o.kind {
	case opBytes:
		data := d.target.pool.get(len(o.data))
		copy(data, o.data)
		return d.begin(ctx, &task{batch: b, off: o.off, len: o.len, data: data}, d.write)
	case opZero:
		return d.begin(ctx, &task{batch: b, off: o.off, len: o.len}, func(ctx context.Context, t *task) error {
			return d.client.ZeroWith(ctx, t.off, t.len, nbd.ZeroOptions{KeepSpace: o.keep})
		})
	case opTrim:
		return d.begin(ctx, &task{batch: b, off: o.off, len: o.len}, func(ctx context.Context, t *task) error {
			return d.client.Trim(ctx, t.off, t.len)
		})
	}
	count := int(o.len / blockBytes)
	if count > d.unpacker.Blocks()-*next {
		return corrupt("batch %d has too few blocks for its operations", d.seq)
	}
	for off := o.off; count > 0; {
		n := d.zeros(*next, count)
		t := &task{batch: b, off: off, len: int64(n) * blockBytes}
		work := d.zeroBlocks
		if n < zeroRun {
			n = d.contents(*next, count)
			t.len = int64(n) * blockBytes
			t.data = d.target.pool.get(n * blockBytes)
			for i := 0; i < n; {
				i += copy(t.data[i*blockBytes:], d.unpacker.Run(*next+i, n-i)) / blockBytes
			}
			work = d.write
		}
		if err := d.begin(ctx, t, work); err != nil {
			return err
		}
		*next, count, off = *next+n, count-n, off+t.len
	}
	return nil
}

// zeros returns how many of the n blocks from i on are zeros, up to the first
// that is not.
func (d *disk) zeros(i, n int) int {
	k := 0
	for k < n && d.unpacker.IsZero(i+k) {
		k++
	}
	return k
}

// contents returns how many of the n blocks from i on are written at once: up
// to a run of zeros or a piece.
func (d *disk) contents(i, n int) int {
	n = min(n, pieceBytes/blockBytes)
	zeros := 0
	for k := range n {
		if zeros++; !d.unpacker.IsZero(i + k) {
			zeros = 0
		}
		if zeros == zeroRun {
			return k + 1 - zeroRun
		}
	}
	return n
}

func (d *disk) write(_ context.Context, t *task) error {
	_, err := d.client.WriteAt(t.data, t.off)
	return err
}

// zeroBlocks writes blocks that were written as zeros: they keep their space.
func (d *disk) zeroBlocks(ctx context.Context, t *task) error {
	return d.client.ZeroWith(ctx, t.off, t.len, nbd.ZeroOptions{KeepSpace: true})
}

// begin starts an operation when there is room and nothing that it overlaps
// is under way. After a failure nothing is started any more.
func (d *disk) begin(ctx context.Context, t *task, work func(context.Context, *task) error) error {
	for d.err == nil && (len(d.running) == writers || d.overlaps(t)) {
		select {
		case f := <-d.done:
			if err := d.finished(ctx, f); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.err != nil {
		return nil
	}
	t.batch.left++
	d.running = append(d.running, t)
	d.start(ctx, t, work)
	return nil
}

func (d *disk) overlaps(t *task) bool {
	for _, r := range d.running {
		if t.off < r.off+r.len && r.off < t.off+t.len {
			return true
		}
	}
	return false
}

func (d *disk) start(ctx context.Context, t *task, work func(context.Context, *task) error) {
	d.group.Go(func() {
		t.result = work(ctx, t)
		d.done <- t
	})
}

// finished takes note of a task's end.
func (d *disk) finished(ctx context.Context, t *task) error {
	switch {
	case t.batch != nil:
		for i, r := range d.running {
			if r == t {
				d.running[i] = d.running[len(d.running)-1]
				d.running = d.running[:len(d.running)-1]
				break
			}
		}
		if t.data != nil {
			d.target.pool.put(t.data)
		}
		t.batch.left--
		if t.result != nil {
			return d.failed(ctx, fmt.Errorf("write to disk %s at %d, %d bytes: %w", d.name, t.off, t.len, t.result))
		}
		return d.progress(ctx)
	case t.flush:
		d.flushing = false
		if t.result != nil {
			return d.failed(ctx, fmt.Errorf("flush disk %s: %w", d.name, t.result))
		}
		if d.err == nil {
			if err := d.ch.Send(ctx, kindFlushed, numbered(t.id)); err != nil {
				return err
			}
		}
	default:
		d.reading--
		if err := d.ch.Send(ctx, kindData, t.answer()); err != nil {
			return err
		}
	}
	d.questions()
	return nil
}

// answer is a read's kindData.
func (t *task) answer() []byte {
	b := numbered(t.id)
	if t.result != nil {
		return failure(b, t.result)
	}
	return append(binary.BigEndian.AppendUint32(b, 0), t.data...)
}

// progress confirms the batches that are applied, in order, and begins what
// has waited for them.
func (d *disk) progress(ctx context.Context) error {
	before := d.applied
	for len(d.batches) > 0 && d.err == nil {
		b := d.batches[0]
		if !b.closed || b.left > 0 {
			break
		}
		d.batches[0] = nil
		d.batches = d.batches[1:]
		d.applied = b.seq
		d.target.mu.Lock()
		p := d.target.positions[d.name]
		p.Operations += b.done.Operations
		p.Bytes += b.done.Bytes
		d.target.positions[d.name] = p
		d.target.mu.Unlock()
	}
	if d.applied == before {
		return nil
	}
	if err := d.ch.Send(ctx, kindApplied, numbered(d.applied)); err != nil {
		return err
	}
	d.questions()
	return nil
}

// questions begins the flushes and reads whose batches are applied. One flush
// serves all that wait for it.
func (d *disk) questions() {
	if d.err != nil {
		return // nobody waits for them any more
	}
	ctx := context.Background() // the connection's end ends them
	if !d.flushing {
		n := 0
		for n < len(d.flushes) && d.flushes[n].after <= d.applied {
			n++
		}
		if n > 0 {
			t := &task{flush: true, id: d.flushes[n-1].id}
			d.flushes, d.flushing = d.flushes[n:], true
			d.start(ctx, t, func(ctx context.Context, _ *task) error { return d.client.Flush(ctx) })
		}
	}
	for len(d.reads) > 0 && d.reads[0].after <= d.applied {
		q := d.reads[0]
		d.reads = d.reads[1:]
		d.reading++
		t := &task{id: q.id, off: q.off, len: int64(q.len), data: make([]byte, q.len)}
		d.start(ctx, t, func(_ context.Context, t *task) error {
			_, err := d.client.ReadAt(t.data, t.off)
			return err
		})
	}
}

// failed notes the first failure of the disk and tells the source.
func (d *disk) failed(ctx context.Context, err error) error {
	if d.err != nil {
		return nil
	}
	d.err = err
	d.target.o.Log.Warn("a disk cannot be written", "export", d.name, "err", err)
	return d.ch.Send(ctx, kindFailed, failure(nil, err))
}

// tell sends the reason why the channel is about to end.
func (d *disk) tell(ctx context.Context, err error) {
	if ctx.Err() == nil {
		_ = d.ch.Send(ctx, kindFailed, failure(nil, err))
	}
}
