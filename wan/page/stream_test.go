package page_test

import (
	"bytes"
	"encoding/binary"

	"github.com/drover-vm/drover/wan/page"
)

// Commands, as QEMU numbers them.
const (
	openReturnPath  = 1
	ping            = 2
	postcopyAdvise  = 3
	packaged        = 7
	switchoverStart = 11
)

// A stream is built the way QEMU writes one. Besides the bytes it has what a
// Reader has to find.
type stream struct {
	b      []byte
	footer bool // sections have footers
	// shared and sizes add what the list of blocks has with x-ignore-shared
	// (an address each) and with post-copy (a page size, 0 for none).
	shared bool
	sizes  []uint64

	id     uint32 // of ram
	blocks []page.Block
	pages  []page.Record
	last   string // the block of the record before
	// flushed are the places at which QEMU may wait for an answer.
	flushed []int
}

func (s *stream) u8(v byte)        { s.b = append(s.b, v) }
func (s *stream) u16(v uint16)     { s.b = binary.BigEndian.AppendUint16(s.b, v) }
func (s *stream) u32(v uint32)     { s.b = binary.BigEndian.AppendUint32(s.b, v) }
func (s *stream) u64(v uint64)     { s.b = binary.BigEndian.AppendUint64(s.b, v) }
func (s *stream) raw(p []byte)     { s.b = append(s.b, p...) }
func (s *stream) counted(v string) { s.u8(byte(len(v))); s.b = append(s.b, v...) }
func (s *stream) flush()           { s.flushed = append(s.flushed, len(s.b)) }

// newStream begins a stream; machine is empty for one of a machine type before 2.4,
// without configuration and footers.
func newStream(machine string) *stream {
	s := &stream{footer: machine != ""}
	s.raw([]byte("QEVM"))
	s.u32(3)
	if machine != "" {
		s.u8(7)
		s.u32(uint32(len(machine)))
		s.raw([]byte(machine))
	}
	return s
}

func (s *stream) subsection(name string, content []byte) *stream {
	s.u8(5)
	s.counted("configuration/" + name)
	s.u32(1)
	s.raw(content)
	return s
}

// capabilities is the content of the sub-section of that name.
func capabilities(names ...string) []byte {
	var s stream
	s.u32(uint32(len(names)))
	for _, n := range names {
		s.counted(n)
	}
	return s.b
}

func (s *stream) command(id uint16, payload ...byte) *stream {
	s.u8(8)
	s.u16(id)
	s.u16(uint16(len(payload)))
	s.raw(payload)
	s.flush()
	return s
}

// advise is the command that QEMU with postcopy-ram sends before it begins.
func (s *stream) advise(sizes uint64) *stream {
	p := binary.BigEndian.AppendUint64(nil, sizes)
	return s.command(postcopyAdvise, binary.BigEndian.AppendUint64(p, page.PageBytes)...)
}

func (s *stream) section(kind byte, id uint32, name string, instance, version uint32) {
	s.u8(kind)
	s.u32(id)
	if kind == 1 || kind == 4 {
		s.counted(name)
		s.u32(instance)
		s.u32(version)
	}
}

func (s *stream) sectionEnd(id uint32) {
	if s.footer {
		s.u8(0x7e)
		s.u32(id)
	}
	s.flush()
}

// foreign adds a whole section of somebody else.
func (s *stream) foreign(kind byte, id uint32, name string, content []byte) *stream {
	s.section(kind, id, name, 0, 1)
	s.raw(content)
	s.sectionEnd(id)
	return s
}

// ram begins the ram section: its list of blocks and whatever marks.
func (s *stream) ram(id uint32, blocks ...page.Block) *stream {
	s.id = id
	s.section(1, id, "ram", 0, 4)
	s.list(blocks)
	s.eos()
	return s
}

func (s *stream) list(blocks []page.Block) {
	s.blocks = blocks
	var sum uint64
	for _, b := range blocks {
		sum += b.Bytes
	}
	s.u64(sum | 0x04)
	for i, b := range blocks {
		s.counted(b.Name)
		s.u64(b.Bytes)
		if s.sizes != nil && s.sizes[i] != 0 {
			s.u64(s.sizes[i])
		}
		if s.shared {
			s.u64(uint64(i) << 32)
		}
	}
}

func (s *stream) part() *stream { s.section(2, s.id, "", 0, 0); return s }
func (s *stream) end() *stream  { s.section(3, s.id, "", 0, 0); return s }

// eos ends a section of ram.
func (s *stream) eos() *stream {
	s.u64(0x10)
	s.sectionEnd(s.id)
	return s
}

// page adds a page, and to what has to be found.
func (s *stream) page(rec page.Record) *stream {
	switch rec.Kind {
	case page.Page:
		s.head(rec, 0x08)
		s.raw(rec.Data)
	case page.Zero:
		s.head(rec, 0x02)
		s.u8(rec.Fill)
		rec.Data = nil
	}
	s.pages = append(s.pages, rec)
	return s
}

func (s *stream) head(rec page.Record, flag uint64) {
	if rec.Continue {
		s.u64(rec.Addr | flag | 0x20)
		return
	}
	s.u64(rec.Addr | flag)
	s.counted(s.blocks[rec.Block].Name)
}

// xbzrle and compress add a page that QEMU has encoded.
func (s *stream) xbzrle(rec page.Record, difference []byte) *stream {
	s.head(rec, 0x40)
	s.u8(1)
	s.u16(uint16(len(difference)))
	s.raw(difference)
	return s
}

func (s *stream) compress(rec page.Record, deflated []byte) *stream {
	s.head(rec, 0x100)
	s.u32(uint32(len(deflated)))
	s.raw(deflated)
	return s
}

// devices adds what follows the memory.
func (s *stream) devices() *stream {
	s.foreign(4, 9, "timer", bytes.Repeat([]byte{1, 2, 0x7e}, 20))
	s.foreign(4, 10, "cpu", make([]byte, 700))
	s.u8(0)
	s.u8(6)
	s.u32(2)
	s.raw([]byte("{}"))
	s.flush()
	return s
}
