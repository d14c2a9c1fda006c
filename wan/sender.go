package wan

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/disk"
	"github.com/drover-vm/drover/wan/reduce"
)

const (
	// connectLimit bounds the wait for a session's first connection. Later
	// ones have the cut limit.
	connectLimit = 30 * time.Second
	// indexBytes bounds what a session remembers of what the destination has:
	// some 13 GiB of content. What does not fit crosses as content.
	indexBytes = 64 << 20
	// maxUnixPath is what sockaddr_un holds, with its final zero.
	maxUnixPath = 108
)

// SendOptions are what a sender needs to know.
type SendOptions struct {
	// Address ("ip:port") and Peer, the agent's name, are the destination's.
	Address, Peer string
	// Token and Offered are the destination's: of Receive and of Offer.
	Token   []byte
	Offered []Source
	Subject Subject
	// Rate bounds what is sent, memory and disks together; zero is unlimited.
	Rate drover.BitRate
	// Approach has connections to that address; nil: they are made as they are needed.
	Approach *Approach
}

// Sender is the source's end of one session.
type Sender struct {
	node    *Node
	options SendOptions
	bundle  *bundle.Bundle
	known   *reduce.Known
	level   *leveler        // the disks'
	pages   *reduce.Chooser // the memory's
	meter   *meter
	ctx     context.Context // of everything that runs for the session
	cancel  context.CancelCauseFunc
	group   sync.WaitGroup
	closing sync.Once
	// memoryDone is closed when the memory's stream has ended.
	memoryDone chan struct{}

	mu     sync.Mutex
	err    error
	disks  *disk.Source
	memory *net.UnixListener
	mirror *chunk.Memory // nil when there is none
	flowed bool          // the memory's stream has begun
	limit  drover.BitRate
	uncut  time.Duration // the sum of the cuts that were over
}

// Send connects to a destination that has called Receive. Errors are those of
// the connection: drover.Denied when the destination does not know the session,
// drover.Unavailable when it does not answer.
func (n *Node) Send(ctx context.Context, o SendOptions) (*Sender, error) {
	if err := checkOffer(o.Offered); err != nil {
		return nil, err
	}
	ctx, cancelWait := context.WithTimeout(ctx, connectLimit)
	defer cancelWait()
	b, err := bundle.Initiate(ctx, bundle.Config{
		Dial: func(ctx context.Context) (net.Conn, error) {
			if a := o.Approach; a != nil && a.address == o.Address && a.peer == o.Peer {
				if conn := a.take(ctx); conn != nil {
					return conn, nil
				}
			}
			return dial(ctx, n.config.TLS, o.Address, o.Peer)
		},
		Token: o.Token, Conns: n.config.Connections, CutLimit: n.config.CutLimit, Rate: o.Rate, Gate: n.gate, Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	s := &Sender{
		node: n, options: o, bundle: b, known: &reduce.Known{Index: chunk.NewIndex(indexBytes)},
		meter: newMeter(b), memoryDone: make(chan struct{}), limit: o.Rate,
	}
	s.level = newLeveler(s.meter.disk)
	s.pages = reduce.NewChooser(reduce.LevelS2, reduce.LevelBetter, lanes, time.Now)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	n.working(1)
	s.group.Go(func() { n.learn(s.ctx, s.known.Index, o.Offered, s.ask) })
	s.group.Go(func() {
		select {
		case <-b.Done():
			s.fail(b.Err())
			// QEMU cannot end a mirror whose socket is full and unread: what is
			// connected here is closed at once.
			s.cancel(b.Err())
		case <-s.ctx.Done():
		}
	})
	return s, nil
}

// listen makes a socket for the hypervisor to connect to.
func listen(path string) (*net.UnixListener, error) {
	const op = "listen for the hypervisor"
	if len(path) >= maxUnixPath {
		return nil, drover.Errorf(drover.Invalid, op, "%s: %d bytes, a unix socket's path may have %d", path, len(path), maxUnixPath-1)
	}
	// A socket of that name is an earlier process's: this path is ours.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, drover.E(drover.Internal, op, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	return l, drover.E(drover.Internal, op, err)
}

// ListenDisks makes the socket at which the mirrors of the VM's disks find
// their NBD server. A session whose disks are served already gives
// drover.Exists.
func (s *Sender) ListenDisks(path string) error {
	l, err := listen(path)
	if err != nil {
		return err
	}
	if _, err := s.serveDisks(l); err != nil {
		_ = l.Close()
		return err
	}
	return nil
}

// serveDisks begins the disks' part of the session, with a listener for the
// hypervisor or, for images at rest, without.
func (s *Sender) serveDisks(l *net.UnixListener) (*disk.Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.disks != nil && l != nil:
		return nil, drover.Errorf(drover.Exists, "listen for the hypervisor", "the session's disks are served already")
	case s.disks != nil:
		return s.disks, nil
	}
	src, err := disk.Serve(s.ctx, l, func(ctx context.Context, export string) (disk.Channel, error) {
		c, err := s.bundle.Open(ctx, bundle.Disk, export)
		if err != nil {
			return nil, err
		}
		return paced{disk.Over(c), s.level}, nil
	}, disk.SourceOptions{
		Known: s.known, FirstNumber: firstDisk(s.options.Offered), Level: s.level.Level, Stats: s.meter.disk, Log: s.node.log,
	})
	s.disks = src
	return src, err
}

// firstDisk is the number of the first arriving disk as a source: those that
// were offered come before.
func firstDisk(offered []Source) uint16 { return uint16(len(offered)) }

// Drain waits until all that the hypervisor was told is written at the
// destination has been applied there, which is what a switchover has to wait
// for; an error says that it never will be.
func (s *Sender) Drain(ctx context.Context) error {
	s.mu.Lock()
	disks := s.disks
	s.mu.Unlock()
	if disks != nil {
		if err := disks.Drain(ctx); err != nil {
			return err
		}
	}
	return s.Err()
}

// Position is how far a disk has come: operations and bytes that the source's
// hypervisor was told are written or, at the destination, that were applied.
type Position = disk.Position

// Positions are those of the session's disks, by export, as the hypervisor was
// told.
func (s *Sender) Positions() map[string]Position {
	s.mu.Lock()
	disks := s.disks
	s.mu.Unlock()
	if disks == nil {
		return nil
	}
	return disks.Positions()
}

// SetRate changes what the session may send; zero is unlimited.
func (s *Sender) SetRate(r drover.BitRate) {
	s.bundle.SetRate(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = r
}

// Figures are what the session has done so far.
func (s *Sender) Figures() drover.PathFigures { return s.meter.figures() }

// Progress is what it is doing now.
func (s *Sender) Progress() drover.PathProgress {
	st := s.bundle.Stats()
	s.mu.Lock()
	limit, cut := s.limit, time.Duration(0)
	if st.Now > 0 {
		s.uncut = st.CutTime
	} else {
		cut = st.CutTime - s.uncut
	}
	s.mu.Unlock()
	return drover.PathProgress{
		Limit: limit, GuestBytes: drover.Bytes(s.meter.memory.Total().GuestBytes + s.meter.disk.Total().GuestBytes),
		WireBytes: drover.Bytes(wireBytes(st)), WireRate: drover.BitRate(8 * st.Rate), CutSeconds: cut.Seconds(),
	}
}

// Err returns why the session does not work, or nil: when the hypervisor
// reports that a socket was closed, this says why.
func (s *Sender) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.disks != nil {
		return s.disks.Err()
	}
	return s.err
}

// lost is an error of the session as its users understand it: a destination
// that refuses a session it had accepted has lost it, and may be asked anew.
func (s *Sender) lost(err error) error {
	if drover.KindOf(err) == drover.Denied {
		return drover.E(drover.Unavailable, "the destination has lost the session", err)
	}
	return err
}

// fail notes the first failure.
func (s *Sender) fail(err error) {
	if err == nil || errors.Is(err, bundle.ErrClosed) {
		return
	}
	err = s.lost(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

// Keep makes the guest's memory, as it has crossed, known as content for later
// moves; it is to be called when the VM has moved, before Close.
func (s *Sender) Keep(ctx context.Context) error {
	s.meter.mark(atEnd)
	s.mu.Lock()
	m, flowed := s.mirror, s.flowed
	s.mirror = nil
	s.mu.Unlock()
	return seal(ctx, m, flowed, s.memoryDone)
}

// seal makes a mirror a source when nothing is written to it any more. A mirror
// of a stream that never came is of nothing.
func seal(ctx context.Context, m *chunk.Memory, flowed bool, written <-chan struct{}) error {
	switch {
	case m == nil:
		return nil
	case !flowed:
		return m.Discard()
	}
	select {
	case <-written:
		return m.Seal(ctx)
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), m.Discard())
	}
}

// tell logs where the session's time went.
func (s *Sender) tell() {
	of := func(ns *atomic.Int64) time.Duration { return time.Duration(ns.Load()).Round(time.Millisecond) }
	m, d, st := s.meter.memory, s.meter.disk, s.bundle.Stats()
	s.node.log.Info("data path ends", "move", s.options.Subject.Move,
		"memory_encode", of(&m.EncodeNanoseconds), "memory_compress", of(&m.CompressNanoseconds), "memory_send", of(&m.SendNanoseconds),
		"memory_wait", of(&m.WaitNanoseconds), "memory_retain", of(&m.RetainNanoseconds), "memory_hand", of(&m.HandNanoseconds), "memory_level", s.pages.Level().String(),
		"disk_encode", of(&d.EncodeNanoseconds), "disk_compress", of(&d.CompressNanoseconds), "disk_send", of(&d.SendNanoseconds),
		"connections", st.Connections, "lost", st.Lost, "corrupt", st.Corrupt, "cuts", st.Cuts, "resent", st.Resent, "err", s.Err())
}

// errSenderClosed ends what a closed session is doing.
var errSenderClosed = drover.Errorf(drover.Canceled, "wan session", "closed")

// Close ends the session and everything that goes through it, and waits. What
// was not kept is discarded. Closing twice is fine.
func (s *Sender) Close() error {
	s.closing.Do(func() {
		s.meter.mark(atEnd)
		s.tell()
		s.cancel(errSenderClosed)
		s.mu.Lock()
		disks, memory := s.disks, s.memory
		s.mu.Unlock()
		if memory != nil {
			_ = memory.Close()
		}
		if disks != nil {
			_ = disks.Close()
		}
		s.bundle.Close(errSenderClosed)
		s.group.Wait()
		// Only now is it certain that no mirror comes any more.
		s.mu.Lock()
		mirror := s.mirror
		s.mirror = nil
		s.mu.Unlock()
		if mirror != nil {
			_ = mirror.Discard()
		}
		s.node.working(-1)
	})
	return nil
}
