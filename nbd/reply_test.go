package nbd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"syscall"
	"testing"
)

// reply builds one chunk of either kind.
func reply(extended bool, flags, kind uint16, cookie uint64, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicStructured)
	if extended {
		b = binary.BigEndian.AppendUint32(nil, magicExtReply)
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	if extended {
		b = binary.BigEndian.AppendUint64(b, 0)
		b = binary.BigEndian.AppendUint64(b, uint64(len(payload)))
	} else {
		b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	}
	return append(b, payload...)
}

// numbers concatenates big-endian values.
func numbers(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

const (
	readCookie   = 0x10
	writeCookie  = 0x21
	statusCookie = 0x32
)

// inFlight returns a decoder of b with a read of 8 bytes at 100, a write and a
// block status of 1 MiB with two contexts, ids 7 and 9, in flight.
func inFlight(b []byte, extended bool) (*decoder, map[uint64]*request) {
	all := map[uint64]*request{
		readCookie:  {cookie: readCookie, cmd: cmdRead, off: 100, length: 8, buf: bytes.Repeat([]byte{0xee}, 8)},
		writeCookie: {cookie: writeCookie, cmd: cmdWrite, off: 0, length: 512},
		statusCookie: {
			cookie: statusCookie, cmd: cmdBlockStatus, length: 1 << 20,
			status: &Status{Extents: make([][]Extent, 2)},
		},
	}
	return &decoder{
		r: bufio.NewReaderSize(bytes.NewReader(b), 64), extended: extended,
		contexts: map[uint32]int{7: 0, 9: 1},
		lookup:   func(c uint64) *request { return all[c] },
	}, all
}

func TestRepliesAccepted(t *testing.T) {
	for _, extended := range []bool{false, true} {
		var status []byte
		if extended {
			status = append(
				reply(true, 0, replyBlockStatusExt, statusCookie, numbers(uint32(9), uint32(2), uint64(65536), uint64(1), uint64(1<<40), uint64(2))),
				reply(true, replyFlagDone, replyBlockStatusExt, statusCookie, numbers(uint32(7), uint32(1), uint64(512), uint64(3)))...)
		} else {
			status = append(
				reply(false, 0, replyBlockStatus, statusCookie, numbers(uint32(9), uint32(65536), uint32(1), uint32(1<<31), uint32(2))),
				reply(false, replyFlagDone, replyBlockStatus, statusCookie, numbers(uint32(7), uint32(512), uint32(3)))...)
		}
		b := bytes.Join([][]byte{
			reply(extended, 0, replyOffsetHole, readCookie, numbers(uint64(104), uint32(4))),
			status,
			reply(extended, 0, replyOffsetData, readCookie, append(numbers(uint64(100)), "data"...)),
			reply(extended, replyFlagDone, replyErrorOffset, writeCookie, append(numbers(uint32(syscall.ENOSPC), uint16(4)), "full\x00\x00\x00\x00\x00\x00\x00\x01"...)),
			reply(extended, replyFlagDone, replyNone, readCookie, nil),
		}, nil)
		d, all := inFlight(b, extended)
		var done []uint64
		for {
			q, err := d.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if q != nil {
				done = append(done, q.cookie)
			}
		}
		if len(done) != 3 || done[0] != statusCookie || done[1] != writeCookie || done[2] != readCookie {
			t.Errorf("ended: %#x", done)
		}
		if q := all[readCookie]; q.err != nil || string(q.buf) != "data\x00\x00\x00\x00" {
			t.Errorf("read %q, %v", q.buf, q.err)
		}
		if err := all[writeCookie].err; !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("write: %v", err)
		}
		// The extent that reaches beyond the request is cut.
		e := all[statusCookie].status.Extents
		if len(e[0]) != 1 || e[0][0] != (Extent{512, 3}) || len(e[1]) != 2 || e[1][1] != (Extent{1<<20 - 65536, 2}) {
			t.Errorf("extents %v", e)
		}
	}
}

func TestRepliesRefused(t *testing.T) {
	data := func(off uint64, text string) []byte { return append(numbers(off), text...) }
	for name, b := range map[string][]byte{
		"unknown magic":             numbers(uint32(0xdeadbeef), uint64(0), uint64(0)),
		"extended, not agreed":      reply(true, 1, replyNone, readCookie, nil),
		"unknown cookie":            reply(false, 1, replyNone, 0x77, nil),
		"none with payload":         reply(false, 1, replyNone, readCookie, []byte{1}),
		"none, not done":            reply(false, 0, replyNone, readCookie, nil),
		"data before the range":     reply(false, 0, replyOffsetData, readCookie, data(99, "x")),
		"data behind the range":     reply(false, 0, replyOffsetData, readCookie, data(104, "12345")),
		"data of another world":     reply(false, 0, replyOffsetData, readCookie, data(1<<63, "x")),
		"data at the wrap":          reply(false, 0, replyOffsetData, readCookie, data(1<<64-1, "xy")),
		"no data":                   reply(false, 0, replyOffsetData, readCookie, data(100, "")),
		"data without offset":       reply(false, 0, replyOffsetData, readCookie, []byte("1234")),
		"data twice":                append(reply(false, 0, replyOffsetData, readCookie, data(100, "12345")), reply(false, 0, replyOffsetData, readCookie, data(100, "12345"))...),
		"data to a write":           reply(false, 0, replyOffsetData, writeCookie, data(0, "x")),
		"huge hole":                 reply(false, 0, replyOffsetHole, readCookie, numbers(uint64(100), uint32(1<<32-1))),
		"hole of odd form":          reply(false, 0, replyOffsetHole, readCookie, numbers(uint64(100), uint64(4))),
		"simple reply to a read":    numbers(uint32(magicSimple), uint32(0), uint64(readCookie)),
		"simple reply to a status":  numbers(uint32(magicSimple), uint32(0), uint64(statusCookie)),
		"status of unknown context": reply(false, 0, replyBlockStatus, statusCookie, numbers(uint32(8), uint32(512), uint32(0))),
		"status without extents":    reply(false, 0, replyBlockStatus, statusCookie, numbers(uint32(7))),
		"status with half an extent": reply(false, 0, replyBlockStatus, statusCookie,
			numbers(uint32(7), uint32(512))),
		"empty extent":     reply(false, 0, replyBlockStatus, statusCookie, numbers(uint32(7), uint32(0), uint32(0))),
		"extent too many":  reply(false, 0, replyBlockStatus, statusCookie, numbers(uint32(7), uint32(1<<20), uint32(0), uint32(1), uint32(0))),
		"status to a read": reply(false, 0, replyBlockStatus, readCookie, numbers(uint32(7), uint32(512), uint32(0))),
		"unknown chunk":    reply(false, 0, 77, readCookie, nil),
		"error, no code":   reply(false, 0, replyError, readCookie, numbers(uint32(0), uint16(0))),
		"error, cut":       reply(false, 0, replyError, readCookie, numbers(uint32(5))),
		"error, long text": reply(false, 0, replyError, readCookie, numbers(uint32(5), uint16(10), uint8('x'))),
		"error, long tail": reply(false, 0, replyError, readCookie, append(numbers(uint32(5), uint16(0)), make([]byte, maxErrorText+1)...)),
		"status given twice": append(reply(false, 0, replyBlockStatus, statusCookie, numbers(uint32(7), uint32(512), uint32(0))),
			reply(false, 0, replyBlockStatus, statusCookie, numbers(uint32(7), uint32(512), uint32(0)))...),
	} {
		d, _ := inFlight(b, false)
		var err error
		for err == nil {
			_, err = d.next()
		}
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, want a violation", name, err)
		}
	}
}

// TestReadCutShort: a read that ends early fails alone, the stream is in step.
func TestReadCutShort(t *testing.T) {
	d, all := inFlight(append(
		reply(false, replyFlagDone, replyOffsetData, readCookie, append(numbers(uint64(100)), "1234"...)),
		numbers(uint32(magicSimple), uint32(0), uint64(writeCookie))...), false)
	if q, err := d.next(); err != nil || q == nil || !errors.Is(q.err, ErrProtocol) {
		t.Errorf("short read: %v, %v", q, err)
	}
	if q, err := d.next(); err != nil || q != all[writeCookie] || q.err != nil {
		t.Errorf("what follows: %v, %v", q, err)
	}
}

// FuzzReplies: whatever a server sends, nothing is written outside of what was
// asked for and no memory is taken beyond the limits.
func FuzzReplies(f *testing.F) {
	for _, extended := range []bool{false, true} {
		f.Add(extended, reply(extended, 1, replyOffsetData, readCookie, append(numbers(uint64(100)), "12345678"...)))
		f.Add(extended, reply(extended, 1, replyOffsetHole, readCookie, numbers(uint64(100), uint32(8))))
		f.Add(extended, reply(extended, 1, replyBlockStatus, statusCookie, numbers(uint32(7), uint32(512), uint32(3))))
		f.Add(extended, reply(extended, 1, replyBlockStatusExt, statusCookie, numbers(uint32(7), uint32(1), uint64(512), uint64(3))))
		f.Add(extended, reply(extended, 1, replyError, writeCookie, append(numbers(uint32(28), uint16(4)), "full"...)))
		f.Add(extended, numbers(uint32(magicSimple), uint32(5), uint64(writeCookie)))
	}
	f.Fuzz(func(t *testing.T, extended bool, b []byte) {
		d, all := inFlight(b, extended)
		guarded := []byte("guard........guard")
		all[readCookie].buf = guarded[5:13:13]
		for {
			q, err := d.next()
			if err != nil {
				break
			}
			if q != nil {
				if q.cmd == cmdRead && q.err == nil && q.got != q.length {
					t.Fatal("an incomplete read passes for done")
				}
				delete(all, q.cookie)
			}
		}
		if string(guarded[:5]) != "guard" || string(guarded[13:]) != "guard" {
			t.Fatalf("written outside of the buffer: %q", guarded)
		}
		if q := all[statusCookie]; q != nil {
			for _, list := range q.status.Extents {
				sum := uint64(0)
				for _, e := range list {
					sum += e.Length
				}
				if sum > q.length || len(list) > maxExtents {
					t.Fatalf("extents of %d bytes for a request of %d", sum, q.length)
				}
			}
		}
	})
}

func optionReply(option, kind uint32, data []byte) []byte {
	return append(numbers(uint64(magicOptReply), option, kind, uint32(len(data))), data...)
}

var greeting = numbers(uint64(magicServer), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes))

func exportInfo(size uint64, flags uint16) []byte {
	return optionReply(optGo, repInfo, numbers(uint16(infoExport), size, flags))
}

func runHandshake(b []byte) (session, error) {
	return handshake(bufio.NewReader(bytes.NewReader(b)), io.Discard, "", []string{"base:allocation", "x:y"})
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestHandshake(t *testing.T) {
	noExtended := optionReply(optExtendedHeaders, repErrUnsup, []byte("what?"))
	structured := optionReply(optStructuredReply, repAck, nil)
	context := join(optionReply(optSetMetaContext, repMetaContext, append(numbers(uint32(7)), "x:y"...)), optionReply(optSetMetaContext, repAck, nil))
	ack := optionReply(optGo, repAck, nil)
	blocks := func(min, max uint32) []byte {
		return optionReply(optGo, repInfo, numbers(uint16(infoBlockSize), min, uint32(4096), max))
	}
	s, err := runHandshake(join(greeting, noExtended, structured, context, blocks(512, 1<<20), exportInfo(1<<20, flagHasFlags|flagReadOnly), ack))
	if err != nil || s.size != 1<<20 || s.extended || s.minBlock != 512 || s.maxBlock != 1<<20 || len(s.contexts) != 1 || s.contexts[7] != 1 {
		t.Errorf("session %+v, %v", s, err)
	}
	s, err = runHandshake(join(greeting, optionReply(optExtendedHeaders, repAck, nil), context, exportInfo(512, flagHasFlags), ack))
	if err != nil || !s.extended || s.minBlock != 1 {
		t.Errorf("session with extended headers %+v, %v", s, err)
	}
	begin := join(greeting, noExtended, structured)
	for name, b := range map[string][]byte{
		"oldstyle":               numbers(uint64(magicServer), uint64(0x420281861253), uint64(0)),
		"not fixed":              numbers(uint64(magicServer), uint64(magicOption), uint16(0)),
		"another option's reply": join(greeting, optionReply(optGo, repAck, nil)),
		"long reply":             join(greeting, numbers(uint64(magicOptReply), uint32(optExtendedHeaders), uint32(repErrUnsup), uint32(1<<31))),
		"endless replies":        join(begin, bytes.Repeat(context[:len(context)-20], maxOptionReplies+1)),
		"context not asked for":  join(begin, optionReply(optSetMetaContext, repMetaContext, append(numbers(uint32(7)), "z:z"...))),
		"no export information":  join(begin, context, ack),
		"no flags":               join(begin, context, exportInfo(512, 0), ack),
		"export too large":       join(begin, context, exportInfo(1<<63, flagHasFlags), ack),
		"block size 0":           join(begin, context, blocks(0, 4096)),
		"block size 3":           join(begin, context, blocks(3, 4096)),
		"blocks beyond maximum":  join(begin, context, blocks(4096, 512)),
		"size not in blocks":     join(begin, context, blocks(4096, 8192), exportInfo(4097, flagHasFlags), ack),
	} {
		if _, err := runHandshake(b); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, want a violation", name, err)
		}
	}
	var refused *ServerError
	_, err = runHandshake(join(begin, context, optionReply(optGo, repErrUnknown, []byte("\x1b[31mnone\n"))))
	if !errors.As(err, &refused) || refused.Error() != "nbd go: no such export [31mnone" {
		t.Errorf("unknown export: %v", err)
	}
}

// FuzzHandshake: whatever a server says, the client comes to an end, and what
// it agreed to is sound.
func FuzzHandshake(f *testing.F) {
	f.Add(join(optionReply(optExtendedHeaders, repAck, nil),
		optionReply(optSetMetaContext, repMetaContext, append(numbers(uint32(7)), "x:y"...)), optionReply(optSetMetaContext, repAck, nil),
		exportInfo(1<<20, flagHasFlags), optionReply(optGo, repAck, nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := runHandshake(append(bytes.Clone(greeting), b...))
		if err == nil && (s.size > maxExportSize || s.minBlock == 0 || s.maxBlock < s.minBlock || len(s.contexts) > 2) {
			t.Fatalf("agreed to %+v", s)
		}
	})
}
