// Package session is the guest's session server: a line protocol over TCP in
// which every reply proves that the server still has the state of the
// session. A client that counts along notices at once when a session was
// silently replaced, when a line was lost or doubled, and when it talks to
// another boot of the guest than before.
//
// # Protocol
//
//	client                                       server
//	  │  ── connect ─────────────────────────────▶  │ new session, count 0
//	  │  ── ECHO <n>\n ──────────────────────────▶  │ count+1, hash over the line
//	  │  ◀─ OK <session> <count> <n> <boot> <hash>\n │
//	  │  ── anything else ───────────────────────▶  │
//	  │  ◀─ ERR <reason>\n ───────────── closed ──  │
//
// n is an unsigned 64-bit decimal number of the client's choice. Lines may be
// pipelined; replies come in order. session is a decimal number, unique
// within a boot, and boot names the boot in hexadecimal. count is the number
// of lines that this session has seen, this one included. hash is the FNV-1a
// 64 hash, in 16 hexadecimal digits, of all of those lines with their line
// ends: a client that hashes what it sends must find the same.
//
// Measuring from the client's side is left to package probe.
package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Limits.
const (
	// maxLine holds the longest valid line, "ECHO 18446744073709551615\n",
	// with room to spare.
	maxLine = 64
	// maxSessions keeps the sessions' memory, about 16 KiB each with the
	// kernel's share, well under a small guest's.
	maxSessions = 1024
)

// keepAlive lets a session whose client is gone end after about six minutes
// and one whose path is cut for the length of a move survive.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 30 * time.Second, Count: 10}

// Server answers sessions. Create it with New.
type Server struct {
	log  *slog.Logger
	boot string

	last   atomic.Uint64 // session id given out last
	open   atomic.Int64
	lines  atomic.Uint64
	failed atomic.Uint64
}

// Stats counts what a Server has seen since it started.
type Stats struct {
	// Opened is the number of sessions ever opened, Open those open now.
	Opened uint64 `json:"opened"`
	Open   int64  `json:"open"`
	// Lines is the number of lines answered with OK.
	Lines uint64 `json:"lines"`
	// Failed is the number of sessions that ended otherwise than by the
	// client's closing them.
	Failed uint64 `json:"failed"`
}

// New returns a Server whose replies carry boot, a word without spaces.
func New(log *slog.Logger, boot string) *Server {
	return &Server{log: log, boot: boot}
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	return Stats{Opened: s.last.Load(), Open: s.open.Load(), Lines: s.lines.Load(), Failed: s.failed.Load()}
}

// Serve answers sessions on ln until ctx is done; then it closes ln and all
// sessions, waits for them and returns nil. It returns an error when ln fails
// otherwise.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if isTemporary(err) {
				select {
				case <-time.After(10 * time.Millisecond):
				case <-ctx.Done():
				}
				continue
			}
			return fmt.Errorf("accept session: %w", err)
		}
		if s.open.Add(1) > maxSessions {
			s.open.Add(-1)
			s.failed.Add(1)
			_ = conn.Close()
			s.log.Warn("session refused", "limit", maxSessions)
			continue
		}
		id := s.last.Add(1)
		wg.Go(func() {
			defer s.open.Add(-1)
			if err := s.answer(ctx, conn, id); err != nil {
				s.failed.Add(1)
				s.log.Debug("session ended", "session", id, "err", err)
			}
		})
	}
}

// isTemporary tells a full table of descriptors, or a client that was gone
// before it was accepted, from a broken listener.
func isTemporary(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED)
}

// state is what a session remembers and proves.
type state struct {
	id    uint64
	count uint64
	hash  hash.Hash64
}

func (s *Server) answer(ctx context.Context, conn net.Conn, id uint64) error {
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := tcp.SetKeepAliveConfig(keepAlive); err != nil {
			return fmt.Errorf("set keepalive: %w", err)
		}
	}
	st := state{id: id, hash: fnv.New64a()}
	in := bufio.NewReaderSize(conn, maxLine)
	out := bufio.NewWriter(conn)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				return refuse(out, fmt.Sprintf("line longer than %d bytes", maxLine))
			}
			if len(line) == 0 && isEnd(err) {
				return nil
			}
			return fmt.Errorf("read line: %w", err)
		}
		n, err := parseEcho(string(line))
		if err != nil {
			return refuse(out, err.Error())
		}
		st.count++
		_, _ = st.hash.Write(line) // never fails
		s.lines.Add(1)
		if _, err := fmt.Fprintf(out, "OK %d %d %d %s %016x\n", st.id, st.count, n, s.boot, st.hash.Sum64()); err != nil {
			return fmt.Errorf("write reply: %w", err)
		}
		if in.Buffered() == 0 { // answer a pipelined batch at once
			if err := out.Flush(); err != nil {
				return fmt.Errorf("write reply: %w", err)
			}
		}
	}
}

func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

func refuse(out *bufio.Writer, reason string) error {
	_, _ = fmt.Fprintf(out, "ERR %s\n", reason)
	_ = out.Flush() // the session ends anyway
	return errors.New(reason)
}

func parseEcho(line string) (uint64, error) {
	number, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "ECHO ")
	if !ok {
		return 0, fmt.Errorf("line %q: want ECHO <n>", strings.TrimSuffix(line, "\n"))
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("number %q: want an unsigned decimal number", number)
	}
	return n, nil
}
