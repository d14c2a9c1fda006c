package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"
)

// Allocation is the metadata context that tells what of an export is data, and its
// flags.
const (
	Allocation = "base:allocation"
	FlagHole   = 1 << 0
	FlagZero   = 1 << 1
)

// Mapper is what a Backend also implements that knows what of it is data. A client
// with structured replies may then ask for Allocation.
type Mapper interface {
	Backend
	// Extents returns what there is from off on, at least one extent and not more
	// than length bytes, with the flags of Allocation. Like ReadAt it is called
	// concurrently with everything.
	Extents(ctx context.Context, off, length int64) ([]Extent, error)
}

const (
	// allocationID names the only context that a server has.
	allocationID = 1
	// maxServed bounds the extents of an answer: 32 KiB, and the client asks on.
	maxServed = 4096
	// cmdFlagOne asks for one extent.
	cmdFlagOne = 1 << 3
)

// setContexts serves SET_META_CONTEXT, which says what BLOCK_STATUS tells.
func (s *server) setContexts(ctx context.Context, data []byte) error {
	name, queries, err := parseContexts(data)
	switch {
	case err != nil:
		return s.answer(optSetMetaContext, repErrInvalid, []byte(err.Error()))
	case !s.structured:
		return s.answer(optSetMetaContext, repErrInvalid, []byte("contexts are for structured replies"))
	}
	backend, err := s.open(ctx, name)
	if err != nil {
		return s.answer(optSetMetaContext, repErrUnknown, []byte(cleanText([]byte(err.Error()))))
	}
	s.mapped, s.mappedName = false, name
	if _, ok := backend.(Mapper); ok {
		for _, q := range queries {
			if q != Allocation || s.mapped {
				continue
			}
			s.mapped = true
			b := append(binary.BigEndian.AppendUint32(nil, allocationID), Allocation...)
			if err := s.answer(optSetMetaContext, repMetaContext, b); err != nil {
				return err
			}
		}
	}
	return s.answer(optSetMetaContext, repAck, nil)
}

// parseContexts reads the data of SET_META_CONTEXT: a name and queries.
func parseContexts(data []byte) (name string, queries []string, err error) {
	text := func() (string, bool) {
		if len(data) < 4 {
			return "", false
		}
		n := binary.BigEndian.Uint32(data)
		if n > maxName || int(n) > len(data)-4 {
			return "", false
		}
		t := string(data[4 : 4+n])
		data = data[4+n:]
		return t, true
	}
	name, ok := text()
	if !ok || len(data) < 4 {
		return "", nil, fmt.Errorf("too short for a name and a count")
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	for range count { // each takes 4 bytes at least
		q, ok := text()
		if !ok {
			return "", nil, fmt.Errorf("%d queries in too few bytes", count)
		}
		queries = append(queries, q)
	}
	if len(data) != 0 {
		return "", nil, fmt.Errorf("%d bytes behind the queries", len(data))
	}
	return name, queries, nil
}

// status serves BLOCK_STATUS.
func (s *server) status(ctx context.Context, q command) error {
	m, ok := s.backend.(Mapper)
	if !s.mapped || !ok || q.length == 0 {
		return s.reply(q, fmt.Errorf("no context was agreed on, or an empty range: %w", syscall.EINVAL))
	}
	list, err := m.Extents(ctx, int64(q.off), int64(q.length))
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("nothing is known at %d: %w", q.off, syscall.EIO)
	}
	if err != nil {
		return s.reply(q, err)
	}
	if q.flags&cmdFlagOne != 0 {
		list = list[:1]
	}
	body := binary.BigEndian.AppendUint32(nil, allocationID)
	for _, e := range list[:min(len(list), maxServed)] {
		body = binary.BigEndian.AppendUint32(body, uint32(min(e.Length, uint64(q.length))))
		body = binary.BigEndian.AppendUint32(body, uint32(e.Flags))
	}
	return s.send(s.structuredHeader(q, replyBlockStatus, true, len(body)), body)
}
