package chunk

import (
	"os"
	"sync"

	"github.com/drover-vm/drover"
)

// State says what a Memory has of a block.
type State uint8

// The states of a block.
const (
	// Absent: nothing is known of it.
	Absent State = iota
	// Fresh: it was written in this session, so it is what it should be.
	Fresh
	// Inherited: it is the base's, storage of an earlier time, and has to be
	// verified at its use.
	Inherited
)

// runBlocks is the write-behind buffer: pages of a guest come in ascending
// order, and one write of 256 KiB costs a third of 64 single ones.
const runBlocks = 64

// Memory is the mirror of a VM's memory during one move: what was sent or
// received of each block lately, on top of a read-only base from an earlier
// move. It takes 3 bits a block and the write-behind buffer of memory; the
// rest is a sparse file. Its methods are safe for concurrent use, though one
// writer is what it is made for.
//
// A write that fails makes the memory useless from there on: every later call
// but Discard gives the same error, and the move goes on without.
type Memory struct {
	library *Library
	source  Source
	path    string

	mu     sync.Mutex
	file   *os.File // nil: sealed or discarded
	base   *handle  // nil: none
	inBase int64    // blocks that the base has
	fresh  bitmap   // written in this session
	zero   bitmap   // … and zero, whatever the file holds
	stored bitmap   // the file may hold something other than zeros
	first  int64    // the block of run[0]
	run    []byte   // written, but not yet to the file
	err    error
}

// Source returns the source that the memory will become.
func (m *Memory) Source() Source { return m.source }

// bitmap has a bit a block.
type bitmap []uint64

func newBitmap(n int64) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) get(i int64) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitmap) set(i int64)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) unset(i int64)    { b[i/64] &^= 1 << (i % 64) }

// check says whether blocks block to block+n can be asked for. mu is held.
func (m *Memory) check(op string, block, n int64) error {
	switch {
	case m.err != nil:
		return m.err
	case m.file == nil:
		return drover.Errorf(drover.Refused, op, "the memory is sealed or discarded")
	case block < 0 || n < 0 || block > m.source.Blocks-n:
		return drover.Errorf(drover.Invalid, op, "blocks %d+%d of %d", block, n, m.source.Blocks)
	}
	return nil
}

// fail makes err what every later call gives. mu is held.
func (m *Memory) fail(op string, err error) error {
	if err != nil {
		m.err = diskFault(op, err)
	}
	return m.err
}

// Read reads one block into p, of BlockBytes. An absent block leaves p alone.
// What is Inherited has to be verified. A base that cannot be read gives an
// error for that block only.
func (m *Memory) Read(block int64, p []byte) (State, error) {
	const op = "read memory"
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(op, block, 1); err != nil {
		return Absent, err
	}
	if len(p) != BlockBytes {
		return Absent, drover.Errorf(drover.Invalid, op, "a buffer of %d bytes", len(p))
	}
	switch {
	case !m.fresh.get(block) && block >= m.inBase:
		return Absent, nil
	case !m.fresh.get(block):
		// Not m.fail: what was written in this session is still good.
		if err := m.base.ReadBlocks(block, p); err != nil {
			return Absent, err
		}
		return Inherited, nil
	case m.zero.get(block):
		clear(p)
		return Fresh, nil
	}
	if at := (block - m.first) * BlockBytes; at >= 0 && at < int64(len(m.run)) {
		copy(p, m.run[at:])
		return Fresh, nil
	}
	if _, err := m.file.ReadAt(p, block*BlockBytes); err != nil {
		return Absent, m.fail(op, err)
	}
	return Fresh, nil
}

// Write notes that a block, of BlockBytes, now holds p.
func (m *Memory) Write(block int64, p []byte) error {
	const op = "write memory"
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(op, block, 1); err != nil {
		return err
	}
	if len(p) != BlockBytes {
		return drover.Errorf(drover.Invalid, op, "a block of %d bytes", len(p))
	}
	at := (block - m.first) * BlockBytes
	if at < 0 || at > int64(len(m.run)) || at == int64(cap(m.run)) {
		if err := m.flush(); err != nil {
			return m.fail(op, err)
		}
		m.first, at = block, 0
	}
	if at == int64(len(m.run)) {
		m.run = m.run[:at+BlockBytes]
	}
	copy(m.run[at:], p)
	m.fresh.set(block)
	m.stored.set(block)
	m.zero.unset(block)
	return nil
}

// flush writes the run to the file. mu is held.
func (m *Memory) flush() error {
	if len(m.run) == 0 {
		return nil
	}
	if _, err := m.file.WriteAt(m.run, m.first*BlockBytes); err != nil {
		return err // Recall still finds it here
	}
	m.run = m.run[:0]
	return nil
}

// Recall reads what a block holds, as Read does, also after a write has failed, as it was before that.
func (m *Memory) Recall(block int64, p []byte) error {
	const op = "recall memory"
	m.mu.Lock()
	defer m.mu.Unlock()
	at := (block - m.first) * BlockBytes
	switch {
	case m.file == nil:
		return drover.Errorf(drover.Refused, op, "the memory is sealed or discarded")
	case block < 0 || block >= m.source.Blocks || len(p) != BlockBytes || !m.fresh.get(block) && block >= m.inBase:
		return drover.Errorf(drover.Invalid, op, "block %d of %d, a buffer of %d bytes: nothing is known of it", block, m.source.Blocks, len(p))
	case !m.fresh.get(block):
		return m.base.ReadBlocks(block, p)
	case m.zero.get(block):
		clear(p)
		return nil
	case at >= 0 && at < int64(len(m.run)):
		copy(p, m.run[at:])
		return nil
	}
	_, err := m.file.ReadAt(p, block*BlockBytes)
	return diskFault(op, err)
}

// Zero notes that n blocks from block on now hold zeros. It writes nothing.
func (m *Memory) Zero(block, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("zero memory", block, n); err != nil {
		return err
	}
	for i := block; i < block+n; i++ {
		m.fresh.set(i)
		m.zero.set(i)
	}
	return nil
}
