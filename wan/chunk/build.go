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
	"github.com/drover-vm/drover/driver"
	"github.com/zeebo/blake3"
	"golang.org/x/time/rate"
)

const (
	// readBytes is how much of a source is read at a time: enough that the
	// call costs nothing beside the hashing, little enough to stay in a core's
	// cache until it is hashed.
	readBytes = 256 << 10
	// maxGap is the longest run of zero blocks that a section carries along
	// before it is cheaper to begin another one.
	maxGap = (catRecordBytes + catSumBytes) / 8
	// partSuffix marks a catalogue that is being built.
	partSuffix = ".part"
)

// BuildOptions say how fast a catalogue is built.
type BuildOptions struct {
	// Rate bounds the bytes of the source read a second; 0 is as fast as the
	// machine can.
	Rate int64
	// Stamp tells contents of the same id apart that should be equal: a
	// catalogue with another stamp is not gone on with.
	Stamp uint64
	// Wait, if not nil, is called before every read and returns when the
	// builder may go on, or with an error that ends it.
	Wait func(context.Context) error
	// Hurry, if not nil, is asked before every read whether Rate does not count.
	Hurry func() bool
	// Progress, if not nil, is told the first block not yet looked at.
	Progress func(block int64)
}

// BuildCatalogue reads what r holds and writes the fingerprints to the file at
// path. It works in path.part and goes on where an earlier call was cut short,
// up to 16 MiB of content behind; a part that is damaged or of something else
// is begun anew. The parts of the source that r.Extents does not report, or
// reports as zero, are not read. Errors: ctx's, r's, drover.Invalid when r is
// not as long as the source, drover.Exhausted when the disk is full.
func BuildCatalogue(ctx context.Context, path string, src Source, r driver.ImageReader, o BuildOptions) (*Catalogue, error) {
	const op = "build catalogue"
	if blocksOf(r.Size()) != src.Blocks {
		return nil, drover.Errorf(drover.Invalid, op, "the source has %d bytes, want %d blocks", r.Size(), src.Blocks)
	}
	b, err := resumeBuild(path+partSuffix, catHeader{id: src.ID, kind: src.Kind, blocks: src.Blocks, stamp: o.Stamp})
	if err != nil {
		return nil, diskFault(op, err)
	}
	b.options = o
	if o.Rate > 0 {
		b.limiter = rate.NewLimiter(rate.Limit(o.Rate), readBytes)
	}
	err = b.run(ctx, r)
	if err == nil {
		err = b.finish()
	}
	if cerr := b.file.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		// Not forced to the disk: a file that a crash leaves half is found by
		// its sums and built again.
		err = os.Rename(path+partSuffix, path)
	}
	if err != nil {
		return nil, diskFault(op, err)
	}
	return &Catalogue{path: path, head: b.head, indexed: b.indexed}, nil
}

// blocksOf returns how many blocks bytes take.
func blocksOf(bytes int64) int64 { return (bytes + BlockBytes - 1) / BlockBytes }

// builder writes a catalogue file section by section.
type builder struct {
	file    *os.File
	head    catHeader
	options BuildOptions
	limiter *rate.Limiter // nil: no limit
	hash    *blake3.Hasher
	sum     catSum
	next    int64 // the first block not yet looked at
	written int64 // the first block that no section in the file covers
	indexed int64
	first   int64 // the block of fps[0]
	fps     []Fingerprint
	out     []byte
	data    []byte
}

// resumeBuild opens a part and finds how far it is good.
func resumeBuild(path string, head catHeader) (*builder, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	b := &builder{
		file: f, head: head, hash: blake3.New(),
		fps: make([]Fingerprint, 0, sectionBlocks), data: make([]byte, readBytes),
	}
	r := bufio.NewReaderSize(f, 64<<10)
	if h, sum, err := readHeader(r); err == nil && h == head {
		s := newSectionReader(r, h, sum)
		for {
			if done, err := s.next(); done || err != nil {
				break
			}
		}
		b.sum, b.next, b.written, b.indexed = s.sum, s.at, s.at, s.indexed
		err = errors.Join(f.Truncate(s.bytes), seekTo(f, s.bytes))
		return b, closeOn(err, f)
	}
	h := head.encode()
	b.sum = catSum(h[64 : 64+catSumBytes])
	err = errors.Join(f.Truncate(0), seekTo(f, 0))
	if err == nil {
		_, err = f.Write(h[:])
	}
	return b, closeOn(err, f)
}

func seekTo(f *os.File, at int64) error {
	_, err := f.Seek(at, io.SeekStart)
	return err
}

// closeOn closes f if err is not nil, and returns err.
func closeOn(err error, f io.Closer) error {
	if err != nil {
		f.Close()
	}
	return err
}

// run looks at every block that may hold data, from where the part ends.
func (b *builder) run(ctx context.Context, r driver.ImageReader) error {
	var inner error
	err := r.Extents(ctx, func(e driver.Extent) bool {
		if e.Zero || e.Length <= 0 {
			return true
		}
		// Two extents may share a block; it is looked at once.
		from, to := max(b.next, e.Offset/BlockBytes), min(blocksOf(e.Offset+e.Length), b.head.blocks)
		for from < to && inner == nil {
			n := min(to-from, readBytes/BlockBytes)
			inner = b.look(ctx, r, from, b.data[:n*BlockBytes])
			from += n
		}
		return inner == nil
	})
	return errors.Join(inner, err)
}

// look reads and hashes the blocks from first on that fill p.
func (b *builder) look(ctx context.Context, r driver.ImageReader, first int64, p []byte) error {
	if b.options.Wait != nil {
		if err := b.options.Wait(ctx); err != nil {
			return err
		}
	}
	if b.limiter != nil && (b.options.Hurry == nil || !b.options.Hurry()) {
		if err := b.limiter.WaitN(ctx, len(p)); err != nil {
			return err
		}
	} else if err := ctx.Err(); err != nil {
		return err
	}
	if err := readPadded(r, r.Size(), p, first*BlockBytes); err != nil {
		return fmt.Errorf("block %d: %w", first, err)
	}
	for i := 0; i < len(p); i += BlockBytes {
		if err := b.add(first+int64(i/BlockBytes), FingerprintOf(p[i:i+BlockBytes])); err != nil {
			return err
		}
	}
	if b.options.Progress != nil {
		b.options.Progress(b.next)
	}
	return nil
}

// readPadded fills p from off on; what lies past size is zero.
func readPadded(r io.ReaderAt, size int64, p []byte, off int64) error {
	have := int(max(0, min(int64(len(p)), size-off)))
	clear(p[have:])
	if have == 0 {
		return nil
	}
	n, err := r.ReadAt(p[:have], off)
	switch {
	case n == have:
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF // it was cut short since it was opened
	default:
		return err
	}
}

// add appends a block's fingerprint.
func (b *builder) add(block int64, fp Fingerprint) error {
	b.next = block + 1
	if fp == 0 {
		// Zeros are left out; after a long run of them the place is noted.
		if len(b.fps) == 0 && b.next-b.written >= sectionBlocks {
			return b.section(b.next)
		}
		return nil
	}
	if gap := block - b.first - int64(len(b.fps)); len(b.fps) > 0 {
		if gap > maxGap || int64(len(b.fps))+gap >= sectionBlocks {
			if err := b.section(b.first); err != nil {
				return err
			}
		} else {
			b.fps = append(b.fps, make([]Fingerprint, gap)...)
		}
	}
	if len(b.fps) == 0 {
		b.first = block
	}
	b.fps = append(b.fps, fp)
	b.indexed++
	return nil
}

// section writes the fingerprints gathered so far as one that begins at first.
func (b *builder) section(first int64) error {
	err := b.record(first, catSection)
	b.written = first + int64(len(b.fps))
	b.fps = b.fps[:0]
	return err
}

func (b *builder) record(first int64, kind uint32) error {
	out := binary.LittleEndian.AppendUint64(b.out[:0], uint64(first))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(b.fps)))
	out = binary.LittleEndian.AppendUint32(out, kind)
	for _, fp := range b.fps {
		out = binary.LittleEndian.AppendUint64(out, uint64(fp))
	}
	b.sum = chain(b.hash, b.sum, out)
	b.out = append(out, b.sum[:]...)
	_, err := b.file.Write(b.out)
	return err
}

func (b *builder) finish() error {
	if len(b.fps) > 0 {
		if err := b.section(b.first); err != nil {
			return err
		}
	}
	return b.record(b.indexed, catEnd)
}
