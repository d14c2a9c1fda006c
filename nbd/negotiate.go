package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// preferredBytes is the block size that a server prefers: what pages,
// clusters' parts and the WAN path count in.
const preferredBytes = 4096

// negotiate speaks the option phase. It reports whether the client has
// entered an export; one that has not said goodbye.
func (s *server) negotiate(ctx context.Context) (entered bool, err error) {
	defer s.conn.SetReadDeadline(time.Time{})
	s.conn.SetReadDeadline(time.Now().Add(handshakeLimit))
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := s.conn.Write(hello); err != nil {
		return false, fmt.Errorf("nbd: greet: %w", err)
	}
	var b [4]byte
	if _, err := io.ReadFull(s.r, b[:]); err != nil {
		if err == io.EOF {
			return false, nil // somebody looked whether we listen
		}
		return false, fmt.Errorf("nbd: read client's flags: %w", err)
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&flagFixedNewstyle == 0 || flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return false, violation("client flags %#x", flags)
	}
	for range maxOptions {
		s.conn.SetReadDeadline(time.Now().Add(handshakeLimit))
		option, data, fits, err := s.readOption()
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !fits {
			if err := s.answer(option, repErrTooBig, nil); err != nil {
				return false, err
			}
			continue
		}
		if done, err := s.option(ctx, option, data, flags&flagNoZeroes != 0); done || err != nil {
			return s.backend != nil && err == nil, err
		}
	}
	return false, violation("more than %d options", maxOptions)
}

// readOption reads one option. Data beyond the limit is skipped.
func (s *server) readOption() (option uint32, data []byte, fits bool, err error) {
	var b [16]byte
	if _, err := io.ReadFull(s.r, b[:]); err != nil {
		if err == io.EOF {
			return 0, nil, false, io.EOF
		}
		return 0, nil, false, fmt.Errorf("nbd: read option: %w", err)
	}
	if m := binary.BigEndian.Uint64(b[:]); m != magicOption {
		return 0, nil, false, violation("option begins with %#x", m)
	}
	option = binary.BigEndian.Uint32(b[8:])
	n := binary.BigEndian.Uint32(b[12:])
	if n > maxOptionReply {
		if n > MaxRequestBytes {
			return 0, nil, false, violation("option %d has %d bytes", option, n)
		}
		_, err := s.r.Discard(int(n))
		return option, nil, false, err
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(s.r, data); err != nil {
		return 0, nil, false, fmt.Errorf("nbd: read option %d: %w", option, noEOF(err))
	}
	return option, data, true, nil
}

// noEOF turns an end in the middle of something into an error.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// answer sends one reply to an option.
func (s *server) answer(option, kind uint32, data []byte) error {
	b := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint64(b[0:], magicOptReply)
	binary.BigEndian.PutUint32(b[8:], option)
	binary.BigEndian.PutUint32(b[12:], kind)
	binary.BigEndian.PutUint32(b[16:], uint32(len(data)))
	if _, err := s.conn.Write(append(b, data...)); err != nil {
		return fmt.Errorf("nbd: answer option %d: %w", option, err)
	}
	return nil
}

// option serves one option; done ends the phase.
func (s *server) option(ctx context.Context, option uint32, data []byte, noZeroes bool) (done bool, err error) {
	switch option {
	case optAbort:
		s.answer(option, repAck, nil) // it need not wait for it
		return true, nil
	case optStructuredReply:
		if len(data) != 0 {
			return false, s.answer(option, repErrInvalid, []byte("structured replies have no data"))
		}
		s.structured = true
		return false, s.answer(option, repAck, nil)
	case optList:
		return false, s.list(ctx, data)
	case optSetMetaContext:
		return false, s.setContexts(ctx, data)
	case optInfo, optGo:
		return s.enter(ctx, option, data)
	case optExportName:
		return true, s.enterByName(ctx, string(data), noZeroes)
	default:
		// TLS, extended headers and what is yet to come: the clients in
		// question do without.
		return false, s.answer(option, repErrUnsup, nil)
	}
}

func (s *server) list(ctx context.Context, data []byte) error {
	switch {
	case len(data) != 0:
		return s.answer(optList, repErrInvalid, []byte("list has no data"))
	case s.o.List == nil:
		return s.answer(optList, repErrPolicy, []byte("the names of exports are not told"))
	}
	for _, name := range s.o.List(ctx) {
		if err := s.answer(optList, repServer, exportData(name)); err != nil {
			return err
		}
	}
	return s.answer(optList, repAck, nil)
}

// parseGo reads the data of INFO and GO: a name and the numbers of the
// information wanted.
func parseGo(data []byte) (name string, infos []uint16, err error) {
	if len(data) < 6 {
		return "", nil, errors.New("too short for a name and a count")
	}
	n := binary.BigEndian.Uint32(data)
	if n > maxName || int(n) > len(data)-6 {
		return "", nil, fmt.Errorf("name of %d bytes in %d bytes of data, limit is %d", n, len(data), maxName)
	}
	name, data = string(data[4:4+n]), data[4+n:]
	count := int(binary.BigEndian.Uint16(data))
	if data = data[2:]; len(data) != 2*count {
		return "", nil, fmt.Errorf("%d informations wanted in %d bytes", count, len(data))
	}
	for ; len(data) > 0; data = data[2:] {
		infos = append(infos, binary.BigEndian.Uint16(data))
	}
	return name, infos, nil
}

// enter serves INFO and GO.
func (s *server) enter(ctx context.Context, option uint32, data []byte) (entered bool, err error) {
	name, infos, err := parseGo(data)
	if err != nil {
		return false, s.answer(option, repErrInvalid, []byte(err.Error()))
	}
	backend, err := s.open(ctx, name)
	if err != nil {
		return false, s.answer(option, repErrUnknown, []byte(cleanText([]byte(err.Error()))))
	}
	replies := [][]byte{exportInformation(backend.Size()), blockInformation(blockOf(backend))}
	for _, i := range infos {
		if i == infoName {
			replies = append(replies, append(binary.BigEndian.AppendUint16(nil, infoName), name...))
			break
		}
	}
	for _, r := range replies {
		if err := s.answer(option, repInfo, r); err != nil {
			return false, err
		}
	}
	if err := s.answer(option, repAck, nil); err != nil {
		return false, err
	}
	if option == optGo {
		s.mapped = s.mapped && name == s.mappedName
		s.backend, s.block = backend, blockOf(backend)
	}
	return option == optGo, nil
}

// open asks for a backend and vouches for its size.
func (s *server) open(ctx context.Context, name string) (Backend, error) {
	backend, err := s.o.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	size, block := backend.Size(), blockOf(backend)
	if size < 0 || block == 0 || block&(block-1) != 0 || block > 64<<10 || uint64(size)%block != 0 {
		return nil, fmt.Errorf("export of %d bytes in blocks of %d", size, block)
	}
	return backend, nil
}

// enterByName serves EXPORT_NAME, whose refusal is silence.
func (s *server) enterByName(ctx context.Context, name string, noZeroes bool) error {
	backend, err := s.open(ctx, name)
	if err != nil {
		return fmt.Errorf("nbd: open export %q: %w", name, err)
	}
	b := exportInformation(backend.Size())[2:]
	if !noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	if _, err := s.conn.Write(b); err != nil {
		return fmt.Errorf("nbd: send export: %w", err)
	}
	s.mapped = s.mapped && name == s.mappedName
	s.backend, s.block = backend, blockOf(backend)
	return nil
}

// blockOf is what a backend's ranges must be multiples of.
func blockOf(b Backend) uint64 {
	if b, ok := b.(Blocked); ok {
		return uint64(b.BlockBytes())
	}
	return 1
}

// exportInformation is the INFO_EXPORT reply.
func exportInformation(size int64) []byte {
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	return binary.BigEndian.AppendUint16(b, flagHasFlags|flagSendFlush|flagSendFUA|flagSendTrim|
		flagSendWriteZeroes|flagCanMultiConn|flagSendCache|flagSendFastZero)
}

// blockInformation is the INFO_BLOCK_SIZE reply.
func blockInformation(block uint64) []byte {
	b := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, v := range []uint64{block, max(block, preferredBytes), MaxRequestBytes} {
		b = binary.BigEndian.AppendUint32(b, uint32(v))
	}
	return b
}
