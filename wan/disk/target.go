package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/reduce"
)

// TargetOptions say how a Target works.
type TargetOptions struct {
	// Dial connects to the NBD server of the VM's QEMU, which has an export of
	// that name.
	Dial func(ctx context.Context, export string) (net.Conn, error)
	// Open, if not nil, gives the volume for an export instead of Dial: an image
	// at rest.
	Open func(ctx context.Context, export string) (Volume, error)
	// Resolver reads the sources that this agent advertised; nil: none.
	Resolver reduce.Resolver
	// Log may be nil.
	Log *slog.Logger
}

// Volume is where a Target writes; methods may be called concurrently.
// *nbd.Client is one.
type Volume interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	ZeroWith(ctx context.Context, off, length int64, o nbd.ZeroOptions) error
	Trim(ctx context.Context, off, length int64) error
	Flush(ctx context.Context) error
	// Close ends what is under way with an error.
	Close() error
}

var _ Volume = (*nbd.Client)(nil)

// Target is the end at the agent that the VM comes to: it writes to the VM's
// disks through the NBD server of the QEMU that waits for it.
type Target struct {
	o    TargetOptions
	pool buffers

	mu        sync.RWMutex
	disks     map[uint16]*disk
	positions map[string]Position
}

// NewTarget returns a Target without disks.
func NewTarget(o TargetOptions) *Target {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Target{o: o, disks: map[uint16]*disk{}, positions: map[string]Position{}}
}

// Positions returns how far each disk has come: what has been applied, in order
// and without a gap. Disks that have ended are in it.
func (t *Target) Positions() map[string]Position {
	t.mu.RLock()
	defer t.mu.RUnlock()
	m := make(map[string]Position, len(t.positions))
	for name, p := range t.positions {
		m[name] = p
	}
	return m
}

// ReadBlocks fills p, whose length is a multiple of the block size, from the
// source of the given number: from a disk that is arriving if it is one, else
// from what the agent advertised. A block that is being written may read as
// before or after: whoever refers to it checks.
func (t *Target) ReadBlocks(source uint16, block int64, p []byte) error {
	const op = "read blocks"
	t.mu.RLock()
	d := t.disks[source]
	t.mu.RUnlock()
	if d == nil {
		if t.o.Resolver == nil {
			return drover.Errorf(drover.NotFound, op, "source %d is not here", source)
		}
		return t.o.Resolver.ReadBlocks(source, block, p)
	}
	if block < 0 || block > d.size/blockBytes {
		return drover.Errorf(drover.Invalid, op, "block %d is outside of disk %s", block, d.name)
	}
	off := block * blockBytes
	n := min(int64(len(p)), d.size-off)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	_, err := d.client.ReadAt(p[:n], off)
	return drover.E(drover.Unavailable, op, err)
}

// Apply serves one channel that a Source has opened, until the source ends it,
// ctx ends or something fails; then it closes the channel. It returns nil when
// the source has ended it and everything that came was applied.
func (t *Target) Apply(ctx context.Context, ch Channel) error {
	defer ch.Close()
	d, err := t.open(ctx, ch)
	if err != nil {
		return err
	}
	defer func() {
		t.mu.Lock()
		delete(t.disks, d.number)
		t.mu.Unlock()
	}()
	err = d.run(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	_ = ch.CloseSend()
	return drover.E(drover.KindOf(err), "apply disk "+d.name, err)
}

// open reads the first message and opens the export that it names.
func (t *Target) open(ctx context.Context, ch Channel) (*disk, error) {
	const op = "open disk"
	kind, p, release, err := ch.Receive(ctx)
	if err != nil {
		return nil, drover.E(drover.KindOf(err), op, err)
	}
	defer release()
	if kind != kindOpen || len(p) < 7 || len(p) > 7+maxName || p[0] != Version {
		return nil, drover.Errorf(drover.Invalid, op, "message of kind %d, %d bytes, is no opening of version %d", kind, len(p), Version)
	}
	limit := binary.BigEndian.Uint32(p[3:])
	d := &disk{
		target: t, ch: ch, number: binary.BigEndian.Uint16(p[1:]), limit: int64(limit), name: string(p[7:]),
		in: make(chan item, maxItems), fills: make(chan []byte, maxFills), done: make(chan *task, maxTasks),
	}
	err = t.connect(ctx, d)
	if err == nil && (limit < minLimit || limit > maxLimit) {
		err = drover.Errorf(drover.Invalid, op, "limit of %d bytes, want %d to %d", limit, minLimit, maxLimit)
	}
	if err == nil {
		err = t.register(d)
	}
	if err != nil {
		if d.client != nil {
			d.client.Close()
		}
		text := err.Error()
		if ch.Send(ctx, kindRefused, []byte(text[:min(len(text), maxText)])) == nil {
			_ = ch.CloseSend() // and the refusal arrives, although the channel is closed
		}
		return nil, drover.E(drover.KindOf(err), op+" "+d.name, err)
	}
	opened := binary.BigEndian.AppendUint32(numbered(uint64(d.size)), uint32(d.block))
	if err := ch.Send(ctx, kindOpened, opened); err != nil {
		d.client.Close()
		t.mu.Lock()
		delete(t.disks, d.number)
		t.mu.Unlock()
		return nil, drover.E(drover.KindOf(err), op+" "+d.name, err)
	}
	return d, nil
}

func (t *Target) connect(ctx context.Context, d *disk) error {
	if t.o.Open != nil {
		v, err := t.o.Open(ctx, d.name)
		if err != nil {
			return err
		}
		d.client, d.size = v, v.Size()
		return d.fits(1)
	}
	conn, err := t.o.Dial(ctx, d.name)
	if err != nil {
		return err
	}
	c, err := nbd.New(ctx, conn, nbd.Options{Export: d.name})
	if err != nil {
		return err
	}
	d.client, d.size = c, c.Size()
	if c.ReadOnly() {
		return drover.Errorf(drover.Refused, "", "the export is read-only")
	}
	return d.fits(c.BlockBytes())
}

// fits takes note of what ranges are multiples of, and refuses what the
// protocol cannot address.
func (d *disk) fits(block int64) error {
	d.block = block
	if block > blockBytes || d.size > maxSize {
		return drover.Errorf(drover.Refused, "", "export of %d bytes in blocks of %d", d.size, block)
	}
	return nil
}

func (t *Target) register(d *disk) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.disks[d.number] != nil || len(t.positions) >= MaxDisks {
		return drover.Errorf(drover.Exists, "", "number %d is taken, or %d disks were opened", d.number, MaxDisks)
	}
	for _, other := range t.disks {
		if other.name == d.name {
			return drover.Errorf(drover.Exists, "", "the disk is open already")
		}
	}
	t.disks[d.number] = d
	t.positions[d.name] = Position{}
	return nil
}

// receive takes the source's messages and hands them on. What it holds is
// bounded by the limit that the source announced.
func (d *disk) receive(ctx context.Context) error {
	defer close(d.in)
	defer close(d.fills)
	for {
		kind, p, release, err := d.ch.Receive(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p = append([]byte(nil), p...)
		release()
		if kind == kindFill {
			select {
			case d.fills <- p:
			default:
				return corrupt("a fill that nobody waits for")
			}
			continue
		}
		if d.waiting.Add(int64(len(p))) > d.limit+limitSlack {
			return corrupt("more than the %d bytes announced are on their way", d.limit)
		}
		select {
		case d.in <- item{kind, p}:
		default:
			return corrupt("more than %d messages are on their way", maxItems)
		}
	}
}
