package chunk

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/drover-vm/drover"
	"github.com/zeebo/blake3"
)

// A catalogue file, all numbers little-endian:
//
//	header   0  magic "DROVERCT"
//	         8  version, 2 bytes: 1
//	        10  source kind, 1 byte; 11: 0
//	        12  block size, 4 bytes: 4096
//	        16  source id, 32 bytes
//	        48  blocks of the source, 8 bytes
//	        56  stamp, 8 bytes: which content of that id it is made from
//	        64  BLAKE3-256 of bytes 0 to 63
//	section  0  first block, 8 bytes
//	         8  count, 4 bytes: 0 to 4096
//	        12  0x53, 4 bytes
//	        16  count fingerprints, 8 bytes each
//	         …  sum, 16 bytes
//	end      0  fingerprints other than 0 in all sections, 8 bytes
//	         8  0, 4 bytes
//	        12  0x45, 4 bytes
//	        16  sum, 16 bytes
//
// A sum is the first 16 bytes of BLAKE3-256 over the sum before it (for the
// first section: the first 16 bytes of the header's) and the section without
// its sum. Sections ascend and do not overlap; blocks in none are zero. A
// section of no blocks marks how far the building came. A file without an end
// is one that is being built.
const (
	catalogueMagic   = "DROVERCT"
	catalogueVersion = 1
	catHeaderBytes   = 96
	catRecordBytes   = 16 // a section's or the end's head
	catSumBytes      = 16
	catSection       = 0x53
	catEnd           = 0x45
	// sectionBlocks is the most blocks in a section: 16 MiB of content, which
	// is also what a crash makes the builder read again.
	sectionBlocks = 4096
)

// catHeader is what a catalogue was made of.
type catHeader struct {
	id     SourceID
	kind   SourceKind
	blocks int64
	stamp  uint64
}

type catSum [catSumBytes]byte

func (h catHeader) encode() (b [catHeaderBytes]byte) {
	copy(b[:], catalogueMagic)
	binary.LittleEndian.PutUint16(b[8:], catalogueVersion)
	b[10] = byte(h.kind)
	binary.LittleEndian.PutUint32(b[12:], BlockBytes)
	copy(b[16:], h.id[:])
	binary.LittleEndian.PutUint64(b[48:], uint64(h.blocks))
	binary.LittleEndian.PutUint64(b[56:], h.stamp)
	sum := blake3.Sum256(b[:64])
	copy(b[64:], sum[:])
	return b
}

// readHeader reads the header of a catalogue; it gives drover.Corrupt for
// anything that is not one of this version.
func readHeader(r io.Reader) (h catHeader, sum catSum, err error) {
	var b [catHeaderBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, sum, corrupt("header: %w", short(err))
	}
	h = catHeader{
		id: SourceID(b[16:48]), kind: SourceKind(b[10]),
		blocks: int64(binary.LittleEndian.Uint64(b[48:])),
		stamp:  binary.LittleEndian.Uint64(b[56:]),
	}
	if h.encode() != b {
		return h, sum, corrupt("the header is damaged or of another version")
	}
	if h.blocks < 0 || h.blocks > MaxBlocks {
		return h, sum, corrupt("%d blocks are out of bounds", h.blocks)
	}
	return h, catSum(b[64 : 64+catSumBytes]), nil
}

func corrupt(format string, args ...any) error {
	return drover.Errorf(drover.Corrupt, "read catalogue", format, args...)
}

// short says that a file ends early in words that are not "EOF", which callers
// take for success.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the file ends early")
	}
	return err
}

// Catalogue is the list of a source's fingerprints, in a file. It holds no
// resource; when its file has been removed meanwhile, Each says NotFound.
type Catalogue struct {
	path    string
	head    catHeader
	indexed int64
	// onCorrupt, if not nil, is told that the file is not what it was.
	onCorrupt func()
}

// OpenCatalogue opens a complete catalogue file. It checks the file's two
// ends; Each checks all of it. Errors: drover.NotFound, drover.Corrupt.
func OpenCatalogue(path string) (*Catalogue, error) {
	const op = "open catalogue"
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, drover.E(drover.NotFound, op, err)
	} else if err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	defer f.Close()
	c := &Catalogue{path: path}
	if c.head, _, err = readHeader(f); err != nil {
		return nil, err
	}
	end := make([]byte, catRecordBytes+catSumBytes)
	if _, err := f.Seek(-int64(len(end)), io.SeekEnd); err != nil {
		return nil, corrupt("end: %w", err)
	}
	if _, err := io.ReadFull(f, end); err != nil {
		return nil, corrupt("end: %w", short(err))
	}
	if binary.LittleEndian.Uint32(end[12:]) != catEnd || binary.LittleEndian.Uint32(end[8:]) != 0 {
		return nil, corrupt("the file has no end record")
	}
	c.indexed = int64(binary.LittleEndian.Uint64(end))
	if c.indexed < 0 || c.indexed > c.head.blocks {
		return nil, corrupt("%d of %d blocks indexed", c.indexed, c.head.blocks)
	}
	return c, nil
}

// ID returns the source's id.
func (c *Catalogue) ID() SourceID { return c.head.id }

// Blocks returns the source's length in blocks.
func (c *Catalogue) Blocks() int64 { return c.head.blocks }

// Indexed returns how many blocks are not zero.
func (c *Catalogue) Indexed() int64 { return c.indexed }

// Each calls yield for runs of fingerprints in ascending order, and stops with
// the first error. Blocks in no run are zero. fps is valid during the call.
// Every run has been checked before it is yielded. Errors: yield's own,
// ctx's, drover.NotFound, drover.Corrupt.
func (c *Catalogue) Each(ctx context.Context, yield func(first int64, fps []Fingerprint) error) error {
	const op = "read catalogue"
	f, err := os.Open(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return drover.E(drover.NotFound, op, err)
	} else if err != nil {
		return drover.E(drover.Internal, op, err)
	}
	defer f.Close()
	err = c.each(ctx, bufio.NewReaderSize(f, 64<<10), yield)
	if drover.KindOf(err) == drover.Corrupt && c.onCorrupt != nil {
		c.onCorrupt()
	}
	return err
}

func (c *Catalogue) each(ctx context.Context, r io.Reader, yield func(int64, []Fingerprint) error) error {
	h, sum, err := readHeader(r)
	if err != nil {
		return err
	}
	if h != c.head {
		return corrupt("the file was replaced")
	}
	s := newSectionReader(r, h, sum)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		done, err := s.next()
		if err != nil {
			return err
		}
		if done {
			return nil
		}
		if len(s.fps) > 0 {
			if err := yield(s.first, s.fps); err != nil {
				return err
			}
		}
	}
}

// sectionReader reads and checks sections one after another.
type sectionReader struct {
	r       io.Reader
	head    catHeader
	hash    *blake3.Hasher
	buf     []byte
	sum     catSum // of the last good section
	first   int64
	fps     []Fingerprint
	at      int64 // the first block after the last good section
	indexed int64
	bytes   int64 // the file up to here is good
}

func newSectionReader(r io.Reader, h catHeader, sum catSum) *sectionReader {
	return &sectionReader{
		r: r, head: h, sum: sum, hash: blake3.New(), bytes: catHeaderBytes,
		buf: make([]byte, catRecordBytes+sectionBlocks*8+catSumBytes),
		fps: make([]Fingerprint, 0, sectionBlocks),
	}
}

// next reads one section into first and fps; done says that it was the end.
func (s *sectionReader) next() (done bool, err error) {
	head := s.buf[:catRecordBytes]
	if _, err := io.ReadFull(s.r, head); err != nil {
		return false, corrupt("section: %w", short(err))
	}
	first := int64(binary.LittleEndian.Uint64(head))
	count, kind := binary.LittleEndian.Uint32(head[8:]), binary.LittleEndian.Uint32(head[12:])
	switch {
	case kind == catEnd && count == 0:
	case kind != catSection || count > sectionBlocks:
		return false, corrupt("a section of kind %#x with %d blocks", kind, count)
	case first < s.at || first > s.head.blocks-int64(count):
		return false, corrupt("a section at block %d does not fit after block %d of %d", first, s.at, s.head.blocks)
	}
	n := catRecordBytes + int(count)*8
	if _, err := io.ReadFull(s.r, s.buf[catRecordBytes:n+catSumBytes]); err != nil {
		return false, corrupt("section: %w", short(err))
	}
	sum := chain(s.hash, s.sum, s.buf[:n])
	if sum != catSum(s.buf[n:n+catSumBytes]) {
		return false, corrupt("the checksum of the section at block %d is wrong", first)
	}
	if kind == catEnd {
		if first != s.indexed {
			return false, corrupt("%d blocks indexed, and the end says %d", s.indexed, first)
		}
		return true, nil
	}
	s.sum, s.first, s.at = sum, first, first+int64(count)
	s.bytes += int64(n + catSumBytes)
	s.fps = s.fps[:count]
	for i := range s.fps {
		s.fps[i] = Fingerprint(binary.LittleEndian.Uint64(s.buf[catRecordBytes+8*i:]))
		if s.fps[i] != 0 {
			s.indexed++
		}
	}
	return false, nil
}

// chain returns the sum of a section that follows one with the sum before.
func chain(h *blake3.Hasher, before catSum, section []byte) catSum {
	h.Reset()
	h.Write(before[:])
	h.Write(section)
	var out [32]byte
	return catSum(h.Sum(out[:0])[:catSumBytes])
}

// String says what the catalogue is of, for logs.
func (c *Catalogue) String() string {
	return fmt.Sprintf("catalogue of %v %v (%d of %d blocks)", c.head.kind, c.head.id, c.indexed, c.head.blocks)
}
