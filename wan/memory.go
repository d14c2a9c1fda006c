package wan

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/reduce"
)

// Before a guest's memory flows, the source proposes the mirrors on a channel of
// class control named "mirror": one message of kind proposeKind with the number
// of blocks (8 bytes, big-endian) and, if the mirrors are to begin on an offered
// source, its number (2 bytes). The destination answers with agreeKind when it
// has one, declineKind when it has not. Then the source opens the channels
// "memory" of the classes memory, fill and return.
const (
	mirrorChannel = "mirror"
	memoryChannel = "memory"
	proposeKind   = 2
	agreeKind     = 3
	declineKind   = 4
)

const (
	// mirrorSlack is room in a mirror for what a guest has besides its memory:
	// video memory and firmware. What is not used takes no space.
	mirrorSlack = 256 * drover.MiB
	// mirrorLimit bounds the wait for the destination's answer; without one the
	// memory goes without mirrors.
	mirrorLimit = 30 * time.Second
)

// lanes is how many compressors work on a guest's memory at most. The second one and the others work only
// while those before have no time, which is in stretches of memory of which the destination has nothing; over a
// whole move about half a core is busy with compression.
var lanes = min(max(1, runtime.NumCPU()), reduce.MaxLanes)

// ListenMemory makes the socket at which the hypervisor delivers the guest's
// memory of the given size. The first connection is taken, later ones are
// refused. It may be called once; after that it gives drover.Exists.
func (s *Sender) ListenMemory(path string, memory drover.Bytes) error {
	l, err := listen(path)
	if err != nil {
		return err
	}
	s.mu.Lock()
	taken := s.memory != nil
	if !taken {
		s.memory = l
	}
	s.mu.Unlock()
	if taken {
		_ = l.Close()
		return drover.Errorf(drover.Exists, "listen for the hypervisor", "the session's memory is listened for already")
	}
	blocks := blocksOf(int64(memory + mirrorSlack))
	ready := make(chan struct{})
	s.group.Go(func() {
		defer close(ready)
		s.propose(blocks)
	})
	s.group.Go(func() {
		defer close(s.memoryDone)
		unhook := context.AfterFunc(s.ctx, func() { _ = l.Close() })
		defer unhook()
		conn, err := l.AcceptUnix()
		// One is all: whoever else connects must not wait in the queue.
		_ = l.Close()
		if err != nil {
			return
		}
		<-ready
		if err := s.sendMemory(conn, blocks); err != nil && s.ctx.Err() == nil {
			s.fail(err)
		}
	})
	return nil
}

// propose makes this end's mirror and asks the destination for its own.
func (s *Sender) propose(blocks int64) {
	n := s.node
	if n.library == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, mirrorLimit)
	defer cancel()
	number, base := n.baseOf(s.options.Offered, s.options.Subject.VM)
	m, based, err := n.newMirror(s.options.Subject, blocks, base)
	if err != nil {
		n.log.Info("memory goes without a mirror", "move", s.options.Subject.Move, "err", err)
		return
	}
	proposal := binary.BigEndian.AppendUint64(nil, uint64(blocks))
	if based {
		proposal = binary.BigEndian.AppendUint16(proposal, number)
	}
	agreed := func() bool {
		c, err := s.bundle.Open(ctx, bundle.Control, mirrorChannel)
		if err != nil {
			return false
		}
		defer c.Close()
		if c.Send(ctx, proposeKind, proposal) != nil || c.CloseSend() != nil {
			return false
		}
		msg, err := c.Receive(ctx)
		if err != nil {
			return false
		}
		defer msg.Release()
		return msg.Kind == agreeKind
	}()
	if !agreed {
		_ = m.Discard()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mirror = m
}

// newMirror makes a mirror, on the base if there is one and room for it.
func (n *Node) newMirror(s Subject, blocks int64, base chunk.SourceID) (m *chunk.Memory, based bool, err error) {
	src := chunk.Source{ID: chunk.MemoryID(s.Move, s.VM), Kind: chunk.KindMemory, Blocks: blocks, Scope: s.Tenant, VM: s.VM}
	if !base.IsZero() {
		if m, err = n.library.NewMemory(src, base); err == nil {
			return m, true, nil
		}
	}
	m, err = n.library.NewMemory(src, chunk.SourceID{})
	return m, false, err
}

func (s *Sender) sendMemory(conn *net.UnixConn, blocks int64) error {
	defer conn.Close()
	s.meter.mark(atMemory)
	channel := func(class bundle.Class) (memoryMessages, error) {
		c, err := s.bundle.Open(s.ctx, class, memoryChannel)
		return memoryMessages{c}, err
	}
	ch, err := channel(bundle.Memory)
	if err != nil {
		return err
	}
	defer ch.Close()
	fill, err := channel(bundle.Fill)
	if err != nil {
		return err
	}
	defer fill.Close()
	ret, err := channel(bundle.Return)
	if err != nil {
		return err
	}
	defer ret.Close()
	o := reduce.SendOptions{
		MemoryEncoderOptions: reduce.MemoryEncoderOptions{Known: s.known, Stats: s.meter.memory},
		Fill:                 fill, Return: ret,
		Lanes: lanes, Chooser: s.pages,
		OnLast: func() {
			s.bundle.SetUrgent(true)
			s.meter.mark(atPause)
		},
	}
	s.mu.Lock()
	s.flowed = true
	if s.mirror != nil {
		o.Mirror, o.MirrorBlocks = s.mirror, blocks
	}
	s.mu.Unlock()
	return reduce.SendMemory(s.ctx, conn, ch, o)
}

// mirrorAt answers a proposal.
func (r *Receiver) mirrorAt(c *bundle.Channel) error {
	const op = "mirror of the memory"
	msg, err := c.Receive(r.ctx)
	if err != nil {
		return err
	}
	kind, p := msg.Kind, append([]byte(nil), msg.Payload...)
	msg.Release()
	if kind != proposeKind || len(p) != 8 && len(p) != 10 {
		return drover.Errorf(drover.Invalid, op, "message of kind %d, %d bytes", kind, len(p))
	}
	blocks := int64(binary.BigEndian.Uint64(p))
	if blocks < 1 || blocks > chunk.MaxBlocks {
		return drover.Errorf(drover.Invalid, op, "%d blocks", blocks)
	}
	answer := uint8(declineKind)
	if m := r.newMirror(blocks, p[8:]); m != nil {
		r.mu.Lock()
		if r.mirror == nil {
			r.mirror, r.mirrored, answer = m, blocks, agreeKind
			m = nil
		}
		r.mu.Unlock()
		if m != nil {
			_ = m.Discard()
		}
	}
	return errors.Join(c.Send(r.ctx, answer, nil), c.CloseSend())
}

// newMirror makes the mirror that was asked for, or none: with a base it is
// with that base, since both ends must begin alike.
func (r *Receiver) newMirror(blocks int64, base []byte) *chunk.Memory {
	if r.node.library == nil {
		return nil
	}
	src := chunk.Source{
		ID: chunk.MemoryID(r.options.Subject.Move, r.options.Subject.VM), Kind: chunk.KindMemory, Blocks: blocks,
		Scope: r.options.Subject.Tenant, VM: r.options.Subject.VM,
	}
	var id chunk.SourceID
	if len(base) == 2 {
		i := int(binary.BigEndian.Uint16(base))
		if i >= len(r.options.Offered) {
			return nil
		}
		id = r.options.Offered[i].ID
	}
	m, err := r.node.library.NewMemory(src, id)
	if err != nil {
		r.node.log.Info("memory comes without a mirror", "move", r.options.Subject.Move, "err", err)
		return nil
	}
	return m
}

// memoryPart takes one of the three channels of the guest's memory; the last
// to come serves them.
func (r *Receiver) memoryPart(c *bundle.Channel) error {
	r.mu.Lock()
	switch {
	case c.Class() == bundle.Memory && r.parts.memory == nil:
		r.parts.memory = c
	case c.Class() == bundle.Fill && r.parts.fill == nil:
		r.parts.fill = c
	case c.Class() == bundle.Return && r.parts.back == nil:
		r.parts.back = c
	default:
		r.mu.Unlock()
		return drover.Errorf(drover.Invalid, "wan channel", "a second %s of the memory", c.Class())
	}
	p := r.parts
	o := reduce.ReceiveOptions{MemoryDecoderOptions: reduce.MemoryDecoderOptions{Resolver: r.target}}
	if r.mirror != nil {
		o.Mirror, o.MirrorBlocks = r.mirror, r.mirrored
	}
	r.mu.Unlock()
	if p.memory == nil || p.fill == nil || p.back == nil {
		// The one that completes the three ends them all; a source that is
		// cut off may never open it.
		select {
		case <-r.memoryDone:
		case <-r.ctx.Done():
		}
		return nil
	}
	defer close(r.memoryDone)
	conn, err := r.dialLocal(r.ctx, r.options.MemorySocket)
	if err != nil {
		return err
	}
	local, ok := conn.(io.ReadWriteCloser)
	if !ok {
		return drover.Errorf(drover.Internal, "receive memory", "connection is a %T", conn)
	}
	o.Fill, o.Return = memoryMessages{p.fill}, memoryMessages{p.back}
	return reduce.ReceiveMemory(r.ctx, local, memoryMessages{p.memory}, o)
}
