package wan

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/disk"
)

// localDialLimit bounds connecting to the hypervisor's socket, which it
// listens at before the token is told to anyone.
const localDialLimit = 5 * time.Second

// ReceiveOptions are what a session is opened for at its destination.
type ReceiveOptions struct {
	// Token names the session: MinToken to MaxToken random bytes.
	Token []byte
	// Peer is the only agent that may use it.
	Peer    string
	Subject Subject
	// Offered is what Offer gave, and what the sender was told.
	Offered []Source
	// MemorySocket and DiskSocket are where the hypervisor listens; empty ones
	// are refused to the sender.
	MemorySocket, DiskSocket string
	// Image opens the disk that a copy is to be written to; nil refuses copies.
	Image func(ctx context.Context, target string) (Image, error)
}

// Receiver is the destination's end of one session.
type Receiver struct {
	node     *Node
	options  ReceiveOptions
	bundle   *bundle.Bundle
	contents *contents
	target   *disk.Target
	ctx      context.Context // of everything that runs for the session
	cancel   context.CancelCauseFunc
	group    sync.WaitGroup
	closing  sync.Once

	images images
	// memoryDone is closed when the memory's stream has ended.
	memoryDone chan struct{}

	mu       sync.Mutex
	err      error
	mirror   *chunk.Memory
	mirrored int64 // its blocks
	parts    struct{ memory, fill, back *bundle.Channel }
}

// Receive registers a session. A token that is in use gives drover.Exists.
func (n *Node) Receive(o ReceiveOptions) (*Receiver, error) {
	const op = "open wan session"
	if err := checkOffer(o.Offered); err != nil {
		return nil, err
	}
	o.Token = bytes.Clone(o.Token)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.arriving[string(o.Token)] != nil {
		return nil, drover.Errorf(drover.Exists, op, "token is in use")
	}
	b, err := bundle.Accept(bundle.Config{Token: o.Token, CutLimit: n.config.CutLimit, Gate: n.gate, Log: n.log})
	if err != nil {
		return nil, err
	}
	r := &Receiver{node: n, options: o, bundle: b, contents: newContents(n.library, o.Offered), memoryDone: make(chan struct{})}
	r.images.open = o.Image
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	t := disk.TargetOptions{Dial: r.dialDisk, Resolver: r.contents, Log: n.log}
	if o.Image != nil {
		t.Open = func(ctx context.Context, target string) (disk.Volume, error) {
			img, err := r.images.get(ctx, target)
			if err != nil {
				return nil, err
			}
			return volume{img}, nil
		}
	}
	r.target = disk.NewTarget(t)
	n.arriving[string(o.Token)] = r
	n.working(1)
	r.group.Go(r.accept)
	return r, nil
}

// dialDisk connects to the hypervisor's NBD server.
func (r *Receiver) dialDisk(ctx context.Context, _ string) (net.Conn, error) {
	return r.dialLocal(ctx, r.options.DiskSocket)
}

func (r *Receiver) dialLocal(ctx context.Context, path string) (net.Conn, error) {
	const op = "connect to the hypervisor"
	if path == "" {
		return nil, drover.Errorf(drover.Refused, op, "this session has no such channel")
	}
	ctx, cancel := context.WithTimeout(ctx, localDialLimit)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	return conn, drover.E(drover.Unavailable, op, err)
}

// accept serves the channels that the sender opens.
func (r *Receiver) accept() {
	for {
		c, err := r.bundle.Accept(r.ctx)
		if err != nil {
			if r.ctx.Err() == nil {
				r.fail(r.bundle.Err())
			}
			return
		}
		r.group.Go(func() {
			defer c.Close()
			if err := r.serve(c); err != nil && r.ctx.Err() == nil {
				r.node.log.Warn("wan channel failed", "peer", r.options.Peer, "class", c.Class().String(), "name", c.Name(), "err", err)
				r.fail(err)
			}
		})
	}
}

func (r *Receiver) serve(c *bundle.Channel) error {
	switch c.Class() {
	case bundle.Control:
		if c.Name() == mirrorChannel {
			return r.mirrorAt(c)
		}
		return r.tell(r.ctx, c)
	case bundle.Disk:
		return r.target.Apply(r.ctx, disk.Over(c))
	case bundle.Memory, bundle.Fill, bundle.Return:
		return r.memoryPart(c)
	case bundle.Copy:
		return r.image(c)
	default:
		return drover.Errorf(drover.Invalid, "wan channel", "class %s is not the sender's to open", c.Class())
	}
}

// Missing says which disks have not all that the source's hypervisor was told
// is written, with drover.Refused, or nil: then the guest may run here.
func (r *Receiver) Missing(acknowledged map[string]Position) error {
	return disk.Missing(acknowledged, r.target.Positions())
}

// Err returns why the session does not work, or nil.
func (r *Receiver) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *Receiver) fail(err error) {
	if err == nil || errors.Is(err, bundle.ErrClosed) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

// Keep makes the guest's memory, as it has arrived, known as content for later
// moves; it is to be called when the VM runs here, before Close.
func (r *Receiver) Keep(ctx context.Context) error {
	r.mu.Lock()
	m, flowed := r.mirror, r.parts.memory != nil
	r.mirror = nil
	r.mu.Unlock()
	return seal(ctx, m, flowed, r.memoryDone)
}

// errReceiverClosed ends what a closed session is doing.
var errReceiverClosed = drover.Errorf(drover.Canceled, "wan session", "closed")

// Close ends the session and everything that comes through it, and waits. What
// was not kept is discarded. Closing twice is fine.
func (r *Receiver) Close() {
	r.closing.Do(func() {
		r.node.mu.Lock()
		delete(r.node.arriving, string(r.options.Token))
		r.node.mu.Unlock()
		r.cancel(errReceiverClosed)
		r.bundle.Close(errReceiverClosed)
		r.group.Wait()
		r.images.close()
		r.contents.close()
		r.mu.Lock()
		mirror := r.mirror
		r.mirror = nil
		r.mu.Unlock()
		if mirror != nil {
			_ = mirror.Discard()
		}
		r.node.working(-1)
	})
}
