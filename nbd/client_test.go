package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is a server on the other end of a pipe that keeps its export in memory
// and answers in an order of its own.
type peer struct {
	t        *testing.T
	conn     net.Conn
	r        *bufio.Reader
	extended bool
	flags    uint16
	disk     []byte
	// hold, if set, is asked for each command; a held one is never answered.
	hold func(cmd uint16) bool
	// errno, if set, is the answer to each command.
	errno func(cmd uint16) uint32
	done  chan struct{}
}

const peerBytes = 8 << 20

// start connects a client to a new peer.
func start(t *testing.T, p *peer) *Client {
	t.Helper()
	server, client := net.Pipe()
	p.t, p.conn, p.r, p.done = t, server, bufio.NewReader(server), make(chan struct{})
	p.flags |= flagHasFlags | flagSendFlush | flagSendWriteZeroes
	p.disk = make([]byte, peerBytes)
	go p.serve()
	c, err := New(t.Context(), client, Options{Contexts: []string{"base:allocation"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		<-p.done
	})
	return c
}

func (p *peer) serve() {
	defer close(p.done)
	defer p.conn.Close()
	if p.handshake() != nil {
		return
	}
	// A few workers answer, so that replies overtake each other.
	type command struct {
		flags, cmd       uint16
		cookie, off, len uint64
		data             []byte
	}
	queue := make(chan command, 64)
	var sending sync.Mutex
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(queue)
	for range 4 {
		wg.Go(func() {
			for c := range queue {
				for _, chunk := range p.answer(c.cmd, c.cookie, c.off, c.len, c.data) {
					sending.Lock()
					p.conn.Write(chunk)
					sending.Unlock()
				}
			}
		})
	}
	for {
		size := 28
		if p.extended {
			size = 32
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(p.r, b); err != nil {
			return
		}
		c := command{
			flags: binary.BigEndian.Uint16(b[4:]), cmd: binary.BigEndian.Uint16(b[6:]),
			cookie: binary.BigEndian.Uint64(b[8:]), off: binary.BigEndian.Uint64(b[16:]),
		}
		if p.extended {
			c.len = binary.BigEndian.Uint64(b[24:])
		} else {
			c.len = uint64(binary.BigEndian.Uint32(b[24:]))
		}
		switch c.cmd {
		case cmdDisc:
			return
		case cmdWrite:
			c.data = make([]byte, c.len)
			if _, err := io.ReadFull(p.r, c.data); err != nil {
				return
			}
			if p.extended != (c.flags&cmdFlagPayloadLen != 0) {
				p.t.Errorf("write with flags %#x", c.flags)
			}
		}
		if p.hold == nil || !p.hold(c.cmd) {
			queue <- c
		}
	}
}

// handshake answers the client's options.
func (p *peer) handshake() error {
	p.conn.Write(greeting)
	if _, err := io.CopyN(io.Discard, p.r, 4); err != nil {
		return err
	}
	for {
		b := make([]byte, 16)
		if _, err := io.ReadFull(p.r, b); err != nil {
			return err
		}
		option := binary.BigEndian.Uint32(b[8:])
		if _, err := io.CopyN(io.Discard, p.r, int64(binary.BigEndian.Uint32(b[12:]))); err != nil {
			return err
		}
		switch {
		case option == optExtendedHeaders && !p.extended:
			p.conn.Write(optionReply(option, repErrUnsup, nil))
			continue
		case option == optSetMetaContext:
			p.conn.Write(optionReply(option, repMetaContext, append(numbers(uint32(7)), "base:allocation"...)))
		case option == optGo:
			p.conn.Write(exportInfo(peerBytes, p.flags))
		}
		if _, err := p.conn.Write(optionReply(option, repAck, nil)); err != nil || option == optGo {
			return err
		}
	}
}

func (p *peer) answer(cmd uint16, cookie, off, n uint64, data []byte) [][]byte {
	if p.errno != nil {
		if e := p.errno(cmd); e != 0 {
			return [][]byte{reply(p.extended, 1, replyError, cookie, append(numbers(e, uint16(3)), "bad"...))}
		}
	}
	switch cmd {
	case cmdRead:
		// The second half first, and the end of it as a hole if it is one.
		h := n / 2
		second := reply(p.extended, 0, replyOffsetData, cookie, append(numbers(off+h), p.disk[off+h:off+n]...))
		if len(bytes.Trim(p.disk[off+h:off+n], "\x00")) == 0 {
			second = reply(p.extended, 0, replyOffsetHole, cookie, numbers(off+h, uint32(n-h)))
		}
		if h == 0 {
			return [][]byte{second, reply(p.extended, 1, replyNone, cookie, nil)}
		}
		return [][]byte{second, reply(p.extended, 1, replyOffsetData, cookie, append(numbers(off), p.disk[off:off+h]...))}
	case cmdWrite:
		copy(p.disk[off:], data)
	case cmdWriteZeroes:
		clear(p.disk[off : off+n])
	case cmdBlockStatus:
		if p.extended {
			return [][]byte{reply(true, 1, replyBlockStatusExt, cookie, numbers(uint32(7), uint32(1), n, uint64(3)))}
		}
		return [][]byte{reply(false, 1, replyBlockStatus, cookie, numbers(uint32(7), uint32(n), uint32(3)))}
	}
	return [][]byte{reply(p.extended, 1, replyNone, cookie, nil)}
}

func TestTransfers(t *testing.T) {
	for _, extended := range []bool{false, true} {
		c := start(t, &peer{extended: extended})
		want := make([]byte, peerBytes)
		rand.NewChaCha8([32]byte{1}).Read(want[:5<<20])
		if n, err := c.WriteAt(want, 0); n != len(want) || err != nil {
			t.Fatal(n, err)
		}
		if err := c.Zero(t.Context(), 1<<20, 1<<20); err != nil {
			t.Fatal(err)
		}
		clear(want[1<<20 : 2<<20])
		if err := c.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		// More callers than slots, ranges of any size.
		var wg sync.WaitGroup
		for i := range 2 * MaxInFlight {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(1, uint64(i)))
				for range 8 {
					off := r.IntN(peerBytes)
					b := make([]byte, r.IntN(3<<20)+1)
					n, err := c.ReadAt(b, int64(off))
					if err != nil && err != io.EOF {
						t.Error(err)
					}
					if !bytes.Equal(b[:n], want[off:off+n]) || err == nil && n != len(b) {
						t.Errorf("read %d bytes at %d: not what was written", n, off)
					}
				}
			})
		}
		wg.Wait()
		var st Status
		if err := c.BlockStatus(t.Context(), 4096, peerBytes-4096, &st); err != nil || len(st.Extents[0]) != 1 ||
			st.Extents[0][0] != (Extent{peerBytes - 4096, 3}) {
			t.Errorf("block status %v, %v", st, err)
		}
	}
}

func TestServerErrors(t *testing.T) {
	var mu sync.Mutex
	reads := 0
	c := start(t, &peer{errno: func(cmd uint16) uint32 {
		mu.Lock()
		defer mu.Unlock()
		if cmd == cmdRead {
			if reads++; reads <= 2 {
				return 0
			}
			return uint32(syscall.EIO)
		}
		return uint32(syscall.ENOSPC)
	}})
	b := make([]byte, 8<<20)
	n, err := c.ReadAt(b, 0)
	if !errors.Is(err, syscall.EIO) || n > 2<<20 {
		t.Errorf("read: %d, %v", n, err)
	}
	if n, err := c.WriteAt(b, 0); !errors.Is(err, syscall.ENOSPC) || n != 0 {
		t.Errorf("write: %d, %v", n, err)
	}
	var se *ServerError
	if err := c.Zero(t.Context(), 0, 512); !errors.As(err, &se) || se.Text != "bad" {
		t.Errorf("zero: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	c := start(t, &peer{flags: flagReadOnly})
	if _, err := c.WriteAt(make([]byte, 1), 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("write: %v", err)
	}
	if err := c.Zero(t.Context(), 0, 1); !errors.Is(err, syscall.EPERM) {
		t.Errorf("zero: %v", err)
	}
}

// TestCancel: a canceled request gives its slot back when its answer comes,
// not before, and later ones are not mixed up with it.
func TestCancel(t *testing.T) {
	held := make(chan struct{}, 2*MaxInFlight)
	c := start(t, &peer{hold: func(cmd uint16) bool {
		if cmd == cmdFlush {
			held <- struct{}{}
		}
		return cmd == cmdFlush
	}})
	for range MaxInFlight - 1 {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-held
			cancel()
		}()
		if err := c.Flush(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("flush: %v", err)
		}
	}
	if _, err := c.ReadAt(make([]byte, 3<<20), 0); err != nil {
		t.Errorf("read through the last slot: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-held
		cancel()
	}()
	c.Flush(ctx) // the last slot
	if err := c.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a slot: %v", err)
	}
}

// TestEnds: requests in flight end when the client or the server does.
func TestEnds(t *testing.T) {
	for name, want := range map[string]error{"close": ErrClosed, "hang up": io.ErrUnexpectedEOF} {
		held := make(chan struct{}, 64)
		p := &peer{hold: func(uint16) bool { held <- struct{}{}; return true }}
		c := start(t, p)
		errs := make(chan error)
		for range 3 {
			go func() {
				_, err := c.ReadAt(make([]byte, 3<<20), 0)
				errs <- err
			}()
		}
		for range 9 {
			<-held
		}
		if name == "close" {
			c.Close()
		} else {
			p.conn.Close()
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, want) {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if err := c.Flush(t.Context()); !errors.Is(err, want) {
			t.Errorf("%s: afterwards got %v", name, err)
		}
		c.Close()
	}
}

func TestCanceledHandshake(t *testing.T) {
	server, client := net.Pipe()
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		server.Write(greeting)
		cancel()
	}()
	if _, err := New(ctx, client, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
