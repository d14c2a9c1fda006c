package wan

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strconv"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/chunk"
)

// A source's agent may ask the destination for the catalogue of a source that
// was offered: it opens a channel of class control whose name is the source's
// number in decimal, and closes its side. The destination answers with messages
// of kind pieceKind and closes its own. A piece is the number of its first block
// (8 bytes) and fingerprints (8 bytes each), little-endian; blocks in no piece
// are zeros or not known.
const (
	pieceKind = 1
	// pieceBlocks keeps a piece well within a message.
	pieceBlocks = 16 << 10
)

// ask gets an offered source's catalogue from the destination.
func (s *Sender) ask(ctx context.Context, source uint16, take func(first int64, fps []chunk.Fingerprint)) error {
	const op = "ask for catalogue"
	c, err := s.bundle.Open(ctx, bundle.Control, strconv.Itoa(int(source)))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.CloseSend(); err != nil {
		return err
	}
	blocks := s.options.Offered[source].Blocks
	fps := make([]chunk.Fingerprint, 0, pieceBlocks)
	for {
		m, err := c.Receive(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p := m.Payload
		if m.Kind != pieceKind || len(p) < 8 || len(p)%8 != 0 || len(p) > 8+8*pieceBlocks {
			m.Release()
			return drover.Errorf(drover.Corrupt, op, "message of kind %d with %d bytes", m.Kind, len(p))
		}
		first := binary.LittleEndian.Uint64(p)
		fps = fps[:0]
		for p = p[8:]; len(p) > 0; p = p[8:] {
			fps = append(fps, chunk.Fingerprint(binary.LittleEndian.Uint64(p)))
		}
		m.Release()
		if first > uint64(blocks) || first+uint64(len(fps)) > uint64(blocks) {
			return drover.Errorf(drover.Corrupt, op, "blocks from %d on, the source has %d", first, blocks)
		}
		take(int64(first), fps)
	}
}

// tell answers ask. A source whose catalogue is not made yet is answered with
// nothing.
func (r *Receiver) tell(ctx context.Context, c *bundle.Channel) error {
	const op = "tell catalogue"
	i, err := strconv.Atoi(c.Name())
	if err != nil || i < 0 || i >= len(r.options.Offered) {
		return drover.Errorf(drover.Invalid, op, "source %q, %d were offered", c.Name(), len(r.options.Offered))
	}
	cat, err := r.node.library.Catalogue(r.options.Offered[i].ID)
	if err != nil {
		return c.CloseSend()
	}
	buf := make([]byte, 0, 8+8*pieceBlocks)
	err = cat.Each(ctx, func(first int64, fps []chunk.Fingerprint) error {
		for len(fps) > 0 {
			part := fps[:min(len(fps), pieceBlocks)]
			buf = binary.LittleEndian.AppendUint64(buf[:0], uint64(first))
			for _, fp := range part {
				buf = binary.LittleEndian.AppendUint64(buf, uint64(fp))
			}
			if err := c.Send(ctx, pieceKind, buf); err != nil {
				return err
			}
			first, fps = first+int64(len(part)), fps[len(part):]
		}
		return nil
	})
	return errors.Join(err, c.CloseSend())
}
