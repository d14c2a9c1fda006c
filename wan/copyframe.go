package wan

import (
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/zeebo/blake3"

	"github.com/drover-vm/drover"
)

// Frame kinds of the copy format; see the package comment.
const (
	frameBegin    = 1
	frameData     = 2
	frameZero     = 3
	frameEnd      = 4
	frameVerified = 5
	frameDone     = 6
	frameFailed   = 7
)

const (
	copyVersion = 1
	// pieceBytes is the largest data frame, and what one read asks a disk for.
	// Pieces begin at multiples of it, so that they do not cut clusters.
	pieceBytes = 1 << 20
	// readers and readAhead keep a disk and a link busy at once: four reads in
	// flight fill an NVMe device with 1 MiB requests, and 16 MiB read ahead are
	// a second and a half at 100 Mbit/s. Per disk being copied.
	readers   = 4
	readAhead = 16
	// maxRuns bounds what a destination remembers to read back: 96 MiB, which
	// is 256 GiB of disk in the worst case that every second cluster of
	// 64 KiB is allocated.
	maxRuns = 4 << 20
	// verifyBeat is how often a destination says that it is alive while it
	// flushes and reads back; beatLimit is how long the source believes it.
	verifyBeat = 2 * time.Second
	beatLimit  = 60 * time.Second
	// maxFailText bounds what a destination may make the source log.
	maxFailText = 512
)

// CopyReport says what crossed for one disk.
type CopyReport struct {
	// Digest over everything that was sent, as the package comment defines it;
	// the destination computed the same from what it read back.
	Digest [32]byte
	// DataBytes crossed as they are, ZeroBytes as their length only.
	DataBytes, ZeroBytes drover.Bytes
}

// run is a maximal sequence of frames of one kind.
type run struct {
	off, length int64
	zero        bool
}

// digester computes the digest of a copy from its pieces in order.
type digester struct {
	hash    hash.Hash
	current run
	any     bool
}

func newDigester() *digester { return &digester{hash: blake3.New()} }

// add takes the next piece; content is nil for zeros.
func (d *digester) add(off, length int64, content []byte) {
	zero := content == nil
	if d.any && (d.current.zero != zero || d.current.off+d.current.length != off) {
		d.closeRun()
	}
	if !d.any {
		d.current, d.any = run{off: off, zero: zero}, true
	}
	d.current.length += length
	_, _ = d.hash.Write(content) // a hash does not fail
}

func (d *digester) closeRun() {
	if !d.any {
		return
	}
	kind := byte(frameData)
	if d.current.zero {
		kind = frameZero
	}
	tail := append(make([]byte, 0, 17), kind)
	tail = binary.BigEndian.AppendUint64(tail, uint64(d.current.off))
	tail = binary.BigEndian.AppendUint64(tail, uint64(d.current.length))
	_, _ = d.hash.Write(tail)
	d.any = false
}

func (d *digester) sum() (out [32]byte) {
	d.closeRun()
	copy(out[:], d.hash.Sum(nil))
	return out
}

// copyFrame is one decoded frame. Which fields count depends on kind.
type copyFrame struct {
	kind        byte
	off, length int64
	checksum    uint64
	digest      [32]byte
	text        string
}

func (f copyFrame) head() []byte {
	b := []byte{f.kind}
	switch f.kind {
	case frameBegin:
		b = append(b, copyVersion)
		b = binary.BigEndian.AppendUint64(b, uint64(f.length))
	case frameData:
		b = binary.BigEndian.AppendUint64(b, uint64(f.off))
		b = binary.BigEndian.AppendUint32(b, uint32(f.length))
		b = binary.BigEndian.AppendUint64(b, f.checksum)
	case frameZero:
		b = binary.BigEndian.AppendUint64(b, uint64(f.off))
		b = binary.BigEndian.AppendUint64(b, uint64(f.length))
	case frameEnd, frameDone:
		b = append(b, f.digest[:]...)
	case frameVerified:
		b = binary.BigEndian.AppendUint64(b, uint64(f.length))
	case frameFailed:
		text := f.text[:min(len(f.text), maxFailText)]
		b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
		b = append(b, text...)
	}
	return b
}

// frameSizes are the bytes after the kind, without what has a length of its own.
var frameSizes = [...]int{frameBegin: 9, frameData: 20, frameZero: 16, frameEnd: 32, frameVerified: 8, frameDone: 32, frameFailed: 2}

// readFrame reads one frame; a data frame's content is left unread. It checks
// what a frame alone can be wrong in: negative or too large numbers.
func readFrame(r io.Reader) (copyFrame, error) {
	var buf [32]byte
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return copyFrame{}, err
	}
	f := copyFrame{kind: buf[0]}
	if int(f.kind) >= len(frameSizes) || frameSizes[f.kind] == 0 {
		return f, fmt.Errorf("frame of kind %d, want %d to %d", f.kind, frameBegin, frameFailed)
	}
	b := buf[:frameSizes[f.kind]]
	if _, err := io.ReadFull(r, b); err != nil {
		return f, unexpected(err)
	}
	switch f.kind {
	case frameBegin:
		if b[0] != copyVersion {
			return f, fmt.Errorf("copy format version %d, want %d", b[0], copyVersion)
		}
		f.length = int64(binary.BigEndian.Uint64(b[1:]))
	case frameData:
		f.off = int64(binary.BigEndian.Uint64(b))
		f.length = int64(binary.BigEndian.Uint32(b[8:]))
		f.checksum = binary.BigEndian.Uint64(b[12:])
		if f.length == 0 || f.length > pieceBytes {
			return f, fmt.Errorf("data frame of %d bytes, want 1 to %d", f.length, pieceBytes)
		}
	case frameZero:
		f.off = int64(binary.BigEndian.Uint64(b))
		f.length = int64(binary.BigEndian.Uint64(b[8:]))
		if f.length <= 0 {
			return f, fmt.Errorf("zero frame of %d bytes", f.length)
		}
	case frameEnd, frameDone:
		copy(f.digest[:], b)
	case frameVerified:
		f.length = int64(binary.BigEndian.Uint64(b))
	case frameFailed:
		n := binary.BigEndian.Uint16(b)
		if n > maxFailText {
			return f, fmt.Errorf("text of %d bytes, want at most %d", n, maxFailText)
		}
		text := make([]byte, n)
		if _, err := io.ReadFull(r, text); err != nil {
			return f, unexpected(err)
		}
		f.text = printable(text)
	}
	if f.off < 0 || f.length < 0 || f.off+f.length < 0 {
		return f, fmt.Errorf("frame at %d of %d bytes", f.off, f.length)
	}
	return f, nil
}

// unexpected is io.ErrUnexpectedEOF for an end inside a frame.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
