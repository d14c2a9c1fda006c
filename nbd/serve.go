package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// command is a request as it comes over the wire.
type command struct {
	flags, cmd uint16
	cookie     uint64
	off        uint64
	length     uint32
}

// readRequest reads one request's header. io.EOF means that there is none.
func readRequest(r *bufio.Reader) (command, error) {
	var b [28]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		if err == io.EOF {
			return command{}, io.EOF
		}
		return command{}, fmt.Errorf("nbd: read request: %w", err)
	}
	if m := binary.BigEndian.Uint32(b[:]); m != magicRequest {
		return command{}, violation("request begins with %#x", m)
	}
	q := command{
		flags: binary.BigEndian.Uint16(b[4:]), cmd: binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]), off: binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}
	if q.cmd == cmdWrite && q.length > MaxRequestBytes {
		return command{}, violation("write of %d bytes, limit is %d", q.length, MaxRequestBytes)
	}
	return q, nil
}

// check says why a request cannot be served, or nil.
func (q command) check(size int64, block uint64) error {
	allowed := map[uint16]uint16{
		cmdRead: cmdFlagDF, cmdWrite: cmdFlagFUA, cmdFlush: cmdFlagFUA, cmdTrim: cmdFlagFUA, cmdCache: 0,
		cmdBlockStatus: cmdFlagOne,
		cmdWriteZeroes: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero,
	}
	flags, known := allowed[q.cmd]
	switch {
	case !known:
		return fmt.Errorf("%s is not known here: %w", commandName(q.cmd), syscall.EINVAL)
	case q.flags&^flags != 0:
		return fmt.Errorf("%s with flags %#x: %w", commandName(q.cmd), q.flags, syscall.EINVAL)
	case q.cmd == cmdFlush:
		return nil
	case q.off > uint64(size) || uint64(q.length) > uint64(size)-q.off:
		errno := syscall.EINVAL
		if q.cmd == cmdWrite || q.cmd == cmdWriteZeroes {
			errno = syscall.ENOSPC
		}
		return fmt.Errorf("range %d+%d is outside of the export of %d bytes: %w", q.off, q.length, size, errno)
	case q.off%block != 0 || uint64(q.length)%block != 0:
		return fmt.Errorf("range %d+%d is not on blocks of %d bytes: %w", q.off, q.length, block, syscall.EINVAL)
	case q.cmd == cmdRead && q.length > MaxRequestBytes:
		return fmt.Errorf("read of %d bytes, limit is %d: %w", q.length, MaxRequestBytes, syscall.EOVERFLOW)
	}
	return nil
}

// serve begins one request and ends those that need no waiting. Any error
// ends the connection.
func (s *server) serve(ctx context.Context, q command) error {
	if err := q.check(s.backend.Size(), s.block); err != nil {
		if q.cmd == cmdWrite {
			if _, err := s.r.Discard(int(q.length)); err != nil {
				return fmt.Errorf("nbd: read payload: %w", noEOF(err))
			}
		}
		return s.reply(q, err)
	}
	switch q.cmd {
	case cmdRead:
		return s.later(ctx, func() error { return s.read(ctx, q) })
	case cmdBlockStatus:
		return s.later(ctx, func() error { return s.status(ctx, q) })
	case cmdFlush:
		return s.later(ctx, func() error { return s.reply(q, s.backend.Flush(ctx)) })
	case cmdWrite:
		if s.parallel && q.length <= pieceBytes {
			return s.writeLater(ctx, q)
		}
		failed, err := s.write(ctx, q)
		if err != nil {
			return err
		}
		return s.taken(ctx, q, failed)
	case cmdCache:
		return s.reply(q, nil) // nothing to be gained: reading is rare
	}
	if s.parallel {
		return s.later(ctx, func() error { return s.reply(q, s.durable(ctx, q, s.clearRun(ctx, q))) })
	}
	return s.taken(ctx, q, s.clearRun(ctx, q))
}

// clearRun does a TRIM or a WRITE_ZEROES.
func (s *server) clearRun(ctx context.Context, q command) error {
	switch {
	case q.length == 0:
		return nil
	case q.cmd == cmdTrim:
		return s.backend.Trim(ctx, int64(q.off), int64(q.length))
	default:
		return s.backend.Zero(ctx, int64(q.off), int64(q.length), ZeroOptions{
			KeepSpace: q.flags&cmdFlagNoHole != 0, Fast: q.flags&cmdFlagFastZero != 0,
		})
	}
}

// writeLater reads a payload and hands it to the backend beside further requests.
func (s *server) writeLater(ctx context.Context, q command) error {
	p := make([]byte, q.length)
	if _, err := io.ReadFull(s.r, p); err != nil {
		return fmt.Errorf("nbd: read payload: %w", noEOF(err))
	}
	return s.later(ctx, func() error {
		var err error
		if len(p) > 0 {
			err = s.backend.Write(ctx, p, int64(q.off))
		}
		return s.reply(q, s.durable(ctx, q, err))
	})
}

// durable flushes after an operation that was done where FUA asks for it.
func (s *server) durable(ctx context.Context, q command, err error) error {
	if err != nil || q.flags&cmdFlagFUA == 0 {
		return err
	}
	return s.backend.Flush(ctx)
}

// later runs the end of a request beside the reading of further ones. Its
// error ends the connection.
func (s *server) later(ctx context.Context, f func() error) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.wg.Go(func() {
		defer func() { <-s.slots }()
		if f() != nil {
			s.conn.Close() // the reader hears of it
		}
	})
	return nil
}

// taken answers an operation that the backend has taken or refused. With FUA
// that is after a flush, which is more than was asked for and covers it.
func (s *server) taken(ctx context.Context, q command, err error) error {
	if err != nil || q.flags&cmdFlagFUA == 0 {
		return s.reply(q, err)
	}
	return s.later(ctx, func() error { return s.reply(q, s.backend.Flush(ctx)) })
}

// write hands a payload to the backend piece by piece. failed is the
// backend's error, err the connection's.
func (s *server) write(ctx context.Context, q command) (failed, err error) {
	if s.piece == nil {
		s.piece = make([]byte, pieceBytes)
	}
	off, left := int64(q.off), int(q.length)
	for left > 0 {
		p := s.piece[:min(left, pieceBytes)]
		if _, err := io.ReadFull(s.r, p); err != nil {
			return nil, fmt.Errorf("nbd: read payload: %w", noEOF(err))
		}
		if failed == nil {
			failed = s.backend.Write(ctx, p, off)
		}
		off, left = off+int64(len(p)), left-len(p)
	}
	return failed, nil
}

// read answers a READ: piece by piece where replies are structured, else in
// one when it is complete, since an error could not be told any more.
func (s *server) read(ctx context.Context, q command) error {
	if q.length == 0 {
		return s.reply(q, nil)
	}
	whole := !s.structured || q.flags&cmdFlagDF != 0
	if !whole {
		p := make([]byte, min(int(q.length), pieceBytes))
		for done := 0; done < int(q.length); {
			part := p[:min(len(p), int(q.length)-done)]
			off := q.off + uint64(done)
			if err := s.backend.ReadAt(ctx, part, int64(off)); err != nil {
				return s.reply(q, err)
			}
			done += len(part)
			last := done == int(q.length)
			send := s.sendData
			if allZero(part) {
				send = s.sendHole
			}
			if err := send(q, off, part, last); err != nil {
				return err
			}
		}
		return nil
	}
	if q.length > pieceBytes {
		select {
		case s.whole <- struct{}{}:
			defer func() { <-s.whole }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p := make([]byte, q.length)
	for done := 0; done < len(p); done += pieceBytes {
		if err := s.backend.ReadAt(ctx, p[done:min(len(p), done+pieceBytes)], int64(q.off)+int64(done)); err != nil {
			return s.reply(q, err)
		}
	}
	if s.structured {
		return s.sendData(q, q.off, p, true)
	}
	return s.send(s.simpleHeader(q, 0), p)
}

// reply ends a request that carries no data, or failed.
func (s *server) reply(q command, err error) error {
	if !s.structured {
		return s.send(s.simpleHeader(q, errnoOf(err)), nil)
	}
	if err == nil {
		return s.send(s.structuredHeader(q, replyNone, true, 0), nil)
	}
	text := cleanText([]byte(err.Error()))
	body := binary.BigEndian.AppendUint32(make([]byte, 0, 6+len(text)), errnoOf(err))
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(text))), text...)
	return s.send(s.structuredHeader(q, replyError, true, len(body)), body)
}

func (s *server) sendData(q command, off uint64, p []byte, last bool) error {
	h := s.structuredHeader(q, replyOffsetData, last, 8+len(p))
	return s.send(binary.BigEndian.AppendUint64(h, off), p)
}

// sendHole says that a run reads as zeros.
func (s *server) sendHole(q command, off uint64, p []byte, last bool) error {
	h := s.structuredHeader(q, replyOffsetHole, last, 12)
	return s.send(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(h, off), uint32(len(p))), nil)
}

// allZero compares a run with itself, one byte further on.
func allZero(p []byte) bool {
	return len(p) > 0 && p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

func (s *server) simpleHeader(q command, errno uint32) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 16), magicSimple)
	b = binary.BigEndian.AppendUint32(b, errno)
	return binary.BigEndian.AppendUint64(b, q.cookie)
}

func (s *server) structuredHeader(q command, kind uint16, last bool, length int) []byte {
	flags := uint16(0)
	if last {
		flags = replyFlagDone
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 28), magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, q.cookie)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// send writes a reply in one piece.
func (s *server) send(header, data []byte) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	var err error
	if len(data) == 0 {
		_, err = s.conn.Write(header)
	} else {
		s.vec = [2][]byte{header, data}
		s.bufs = s.vec[:]
		_, err = s.bufs.WriteTo(s.conn)
	}
	if err != nil {
		return fmt.Errorf("nbd: send reply: %w", err)
	}
	return nil
}

// errnoOf is the protocol's number for an error, EIO for those it has none
// for.
func errnoOf(err error) uint32 {
	if err == nil {
		return 0
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		switch e {
		case syscall.EPERM, syscall.EIO, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC,
			syscall.EOVERFLOW, syscall.ENOTSUP, syscall.ESHUTDOWN:
			return uint32(e)
		case syscall.EDQUOT, syscall.EFBIG:
			return uint32(syscall.ENOSPC)
		case syscall.EROFS:
			return uint32(syscall.EPERM)
		}
	}
	if errors.Is(err, context.Canceled) {
		return uint32(syscall.ESHUTDOWN)
	}
	return uint32(syscall.EIO)
}
