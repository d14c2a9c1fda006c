package nbd

import (
	"context"
	"fmt"
	"io"
	"syscall"
)

// ReadAt reads as io.ReaderAt: up to the export's end, where io.EOF is
// returned with what there was.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	var end error
	if off >= 0 && int64(len(p)) > c.Size()-off {
		if off >= c.Size() {
			return 0, io.EOF
		}
		p, end = p[:c.Size()-off], io.EOF
	}
	if err := c.check("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := c.transfer(cmdRead, p, off)
	if err != nil {
		return n, err
	}
	return n, end
}

// WriteAt writes as io.WriterAt. What it wrote is durable after a Flush.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	if err := c.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	if c.ReadOnly() {
		return 0, fmt.Errorf("nbd write: the export is read-only: %w", syscall.EPERM)
	}
	return c.transfer(cmdWrite, p, off)
}

// transfer reads or writes p in chunks with several in flight. It waits for a
// free slot only while it holds none, so that callers cannot starve each
// other into a standstill. The count returned is that of the bytes before the
// first chunk that failed.
func (c *Client) transfer(cmd uint16, p []byte, off int64) (int, error) {
	ctx := context.Background()
	var (
		window      [MaxInFlight]*request
		first, held int // ring of the chunks in flight, oldest first
		sent, done  int
		failed      error
	)
	for {
		for failed == nil && sent < len(p) && held < MaxInFlight {
			q, err := c.acquire(ctx, held == 0)
			if err != nil {
				failed = err
				break
			}
			if q == nil {
				break
			}
			part := p[sent:min(len(p), sent+int(c.chunk))]
			if cmd == cmdRead {
				q.buf = part
				c.start(q, cmd, 0, uint64(off)+uint64(sent), uint64(len(part)), nil)
			} else {
				c.start(q, cmd, 0, uint64(off)+uint64(sent), uint64(len(part)), part)
			}
			window[(first+held)%MaxInFlight] = q
			held++
			sent += len(part)
		}
		if held == 0 {
			return done, failed
		}
		q := window[first]
		n := int(q.length)
		first, held = (first+1)%MaxInFlight, held-1
		// Chunks behind a failed one are waited for all the same: the reader
		// may still be writing to their part of p.
		if err := c.wait(ctx, q); err != nil && failed == nil {
			failed = err
		}
		if failed == nil {
			done += n
		}
	}
}

// Zero makes a run read as zeros. The server may take its space away.
// Canceling leaves a part of it done.
func (c *Client) Zero(ctx context.Context, off, length int64) error {
	return c.ZeroWith(ctx, off, length, ZeroOptions{})
}

// ZeroWith is Zero with flags; Fast is left out where the server does not know
// it.
func (c *Client) ZeroWith(ctx context.Context, off, length int64, o ZeroOptions) error {
	if c.session.flags&flagSendWriteZeroes == 0 {
		return fmt.Errorf("nbd write zeroes: the server cannot: %w", syscall.ENOTSUP)
	}
	flags := uint16(0)
	if o.KeepSpace {
		flags |= cmdFlagNoHole
	}
	if o.Fast && c.session.flags&flagSendFastZero != 0 {
		flags |= cmdFlagFastZero
	}
	return c.split(ctx, cmdWriteZeroes, flags, off, length)
}

// Trim says that a run's content does not matter any more. A server that
// cannot be told is none the worse: it is done then. Canceling leaves a part of
// it done.
func (c *Client) Trim(ctx context.Context, off, length int64) error {
	if c.session.flags&flagSendTrim == 0 {
		return c.check("trim", off, length)
	}
	return c.split(ctx, cmdTrim, 0, off, length)
}

// split runs a command without payload over a range of any length.
func (c *Client) split(ctx context.Context, cmd, flags uint16, off, length int64) error {
	if err := c.check(commandName(cmd), off, length); err != nil {
		return err
	}
	if c.ReadOnly() {
		return fmt.Errorf("nbd %s: the export is read-only: %w", commandName(cmd), syscall.EPERM)
	}
	for length > 0 {
		n := min(length, zeroBytes)
		if err := c.simple(ctx, cmd, flags, uint64(off), uint64(n), nil); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

// Flush makes every write that has returned durable.
func (c *Client) Flush(ctx context.Context) error {
	if c.session.flags&flagSendFlush == 0 {
		return fmt.Errorf("nbd flush: the server cannot: %w", syscall.ENOTSUP)
	}
	return c.simple(ctx, cmdFlush, 0, 0, 0, nil)
}

// BlockStatus asks for the extents of each context from off on. The server
// may answer for less than length, and for each context differently; each
// answers for at least one extent. On error st is in no defined state and
// must not be used again: a canceled answer may still arrive in it.
func (c *Client) BlockStatus(ctx context.Context, off, length int64, st *Status) error {
	if err := c.check("block status", off, length); err != nil {
		return err
	}
	if len(c.session.contexts) == 0 || length == 0 {
		return fmt.Errorf("nbd block status: no context agreed on, or an empty range: %w", syscall.EINVAL)
	}
	st.reset(c.contexts)
	if err := c.simple(ctx, cmdBlockStatus, 0, uint64(off), uint64(min(length, statusBytes)), st); err != nil {
		return err
	}
	for _, i := range c.session.contexts {
		if len(st.Extents[i]) == 0 {
			return violation("block status without context %d", i)
		}
	}
	return nil
}
