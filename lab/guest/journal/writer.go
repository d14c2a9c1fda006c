package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"
	"unsafe"
)

// Device is the disk a journal lives on. A Writer's promises hold as far as
// the Device's: a write has to have reached the medium when WriteAt returns
// (O_DIRECT and O_DSYNC on a real disk).
type Device interface {
	io.ReaderAt
	io.WriterAt
}

// Options say how to open a journal for writing.
type Options struct {
	// BlockBytes is the size of a record, a multiple of 512.
	BlockBytes int
	// RingBytes bounds the ring; 0 takes all of the disk, at most
	// MaxRingBytes.
	RingBytes int64
	// Format starts a new journal whatever the disk holds.
	Format bool
	// Boot is written into every record.
	Boot ID
}

// Writer appends records. It is not safe for concurrent use: one write in
// flight is what bounds the tear after a crash.
type Writer struct {
	dev  Device
	geo  Geometry
	boot ID
	next uint64
	buf  []byte
}

// Open opens the journal on dev for appending after its newest record. A
// disk without a journal is formatted when it is blank where the journal
// goes, or when opt.Format is set; otherwise Open returns ErrForeign, and
// ErrGeometry for a journal of another shape. It reads the whole ring.
func Open(dev Device, diskBytes int64, opt Options) (*Writer, error) {
	if err := checkBlockBytes(opt.BlockBytes); err != nil {
		return nil, err
	}
	want, err := planGeometry(diskBytes, opt)
	if err != nil {
		return nil, err
	}
	w := &Writer{dev: dev, geo: want, boot: opt.Boot, next: 1, buf: alignedBuffer(opt.BlockBytes)}
	if opt.Format {
		return w, w.format()
	}
	scan, err := Check(dev, diskBytes)
	if errors.Is(err, ErrNoJournal) {
		if err := requireBlank(dev, diskBytes); err != nil {
			return nil, err
		}
		return w, w.format()
	}
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if scan.BlockBytes != want.BlockBytes || scan.Slots != want.Slots {
		return nil, fmt.Errorf("%w: it has %d slots of %d bytes, asked for %d of %d",
			ErrGeometry, scan.Slots, scan.BlockBytes, want.Slots, want.BlockBytes)
	}
	w.geo = scan.Geometry
	w.next = scan.MaxSeq + 1
	return w, nil
}

func planGeometry(diskBytes int64, opt Options) (Geometry, error) {
	ring := min(diskBytes-RingOffset, MaxRingBytes)
	if opt.RingBytes < 0 || opt.RingBytes > ring {
		return Geometry{}, fmt.Errorf("ring_bytes %d: this disk has room for %d", opt.RingBytes, max(ring, 0))
	}
	if opt.RingBytes > 0 {
		ring = opt.RingBytes
	}
	g := Geometry{BlockBytes: opt.BlockBytes}
	if ring >= 2*int64(opt.BlockBytes) {
		g.Slots = uint64(ring) / uint64(opt.BlockBytes)
		_, err := rand.Read(g.Journal[:])
		return g, err
	}
	return g, fmt.Errorf("%w: %d bytes, want at least %d", ErrTooSmall, diskBytes, RingOffset+2*opt.BlockBytes)
}

// requireBlank refuses a disk that somebody else uses. A disk is taken for
// blank when the superblock and the first slots are zero: a file system or a
// partition would have left something there.
func requireBlank(dev Device, diskBytes int64) error {
	b := alignedBuffer(int(min(superblockBytes+RingOffset, diskBytes-SuperblockOffset) &^ (MinBlockBytes - 1)))
	if _, err := dev.ReadAt(b, SuperblockOffset); err != nil {
		return fmt.Errorf("read disk: %w", err)
	}
	if !isZero(b) {
		return ErrForeign
	}
	return nil
}

func (w *Writer) format() error {
	if _, err := w.dev.WriteAt(w.geo.marshal(), SuperblockOffset); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return nil
}

// Geometry returns the journal's shape and id.
func (w *Writer) Geometry() Geometry { return w.geo }

// Next returns the sequence number that the next Append will write.
func (w *Writer) Next() uint64 { return w.next }

// Append writes one record and returns its sequence number after the device
// has acknowledged it. After an error nothing is known about the record; the
// next Append writes the same sequence number again.
func (w *Writer) Append() (uint64, error) {
	seq := w.next
	putRecord(w.buf, w.geo.Journal, w.boot, seq, time.Now())
	if _, err := w.dev.WriteAt(w.buf, w.geo.offset(seq%w.geo.Slots)); err != nil {
		return 0, fmt.Errorf("write record %d: %w", seq, err)
	}
	w.next++
	return seq, nil
}

// alignedBuffer returns n zero bytes at an address that direct I/O accepts.
func alignedBuffer(n int) []byte {
	const align = 4096 // the largest logical sector in use
	b := make([]byte, n+align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (align - 1))
	return b[skip : skip+n : skip+n]
}
