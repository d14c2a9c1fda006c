package wan

import (
	"encoding/binary"
	"fmt"
	"hash"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/drover-vm/drover"
)

// A disk at rest crosses on two channels. Its content goes over one of class
// disk, as that of a running VM's disk does (package disk). What it consists of
// goes over one of class copy with the same name, in messages of these kinds;
// numbers are uvarints unless said otherwise:
//
//	1 runs      from the source, ascending: the distance from the end of the
//	            run before, then twice the length, plus one if it is zeros; all
//	            of it is durable at the destination
//	2 end       from the source: the digest (32 bytes); no runs follow
//	3 verified  from the destination: bytes read back (8 bytes, big-endian)
//	4 done      from the destination: the digest (32 bytes) of what it has read
//	            back, all durable and in its journal
//	5 failed    from the destination: why (1 byte: 1 no room, 2 corrupt,
//	            3 refused, 4 invalid, 0 anything else) and a text
//
// The digest is BLAKE3-256 over the runs in ascending order, where adjacent
// runs of one kind count as one: for a run of data its content and then kind
// (1 byte, 2), offset (8) and length (8), big-endian; for a run of zeros kind
// (1 byte, 3), offset (8) and length (8).
const (
	copyRuns     = 1
	copyEnd      = 2
	copyVerified = 3
	copyDone     = 4
	copyFailed   = 5

	runData = 2
	runZero = 3
)

const (
	// pieceBytes is the most that one read asks a disk for. Pieces begin at
	// multiples of it, so that they do not cut clusters.
	pieceBytes = 1 << 20
	// foldBytes is the unit in which zeros within data are looked for: a
	// cluster of qcow2, the least that the destination can leave out.
	foldBytes = 64 << 10
	// readers and readAhead keep a disk and a link busy at once: four reads in
	// flight fill an NVMe device with 1 MiB requests, and 16 MiB read ahead are
	// a second and a half at 100 Mbit/s. Per disk being copied.
	readers   = 4
	readAhead = 16
	// windowBytes of data are made durable and read back at a time, while the
	// next are on their way: 64 MiB are a few seconds of a WAN and worth a
	// flush. maxWindows bounds those that wait for theirs.
	windowBytes = 64 << 20
	maxWindows  = 2
	// maxRunBytes bounds the list of a window's runs, well within a message.
	maxRunBytes = 256 << 10
	// maxFailText bounds what a destination may make the source log.
	maxFailText = 512
)

// CopyReport says what crossed for one disk.
type CopyReport struct {
	// Digest over the image's runs, as package wan defines it; the destination
	// computed the same from what it read back.
	Digest [32]byte
	// DataBytes are the image's content, ZeroBytes its zeros.
	DataBytes, ZeroBytes drover.Bytes
}

// run is a part of an image that is all data or all zeros.
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
	kind := byte(runData)
	if d.current.zero {
		kind = runZero
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

// parseRuns reads the list of a window and checks it: ascending from end on,
// within size.
func parseRuns(p []byte, end, size int64) (runs []run, last int64, err error) {
	for len(p) > 0 {
		gap, n := binary.Uvarint(p)
		if n <= 0 {
			return nil, end, drover.Errorf(drover.Corrupt, "copy format", "list of runs is cut short")
		}
		p = p[n:]
		length, n := binary.Uvarint(p)
		if n <= 0 {
			return nil, end, drover.Errorf(drover.Corrupt, "copy format", "list of runs is cut short")
		}
		p = p[n:]
		r := run{length: int64(length >> 1), zero: length&1 != 0}
		if gap > uint64(size-end) || r.length == 0 || r.length > size-end-int64(gap) {
			return nil, end, drover.Errorf(drover.Corrupt, "copy format", "run of %d bytes, %d after %d: the image has %d", r.length, gap, end, size)
		}
		r.off = end + int64(gap)
		end = r.off + r.length
		runs = append(runs, r)
	}
	return runs, end, nil
}

// failures are the kinds of errors that a destination tells, by their numbers on
// the wire.
var failures = [...]drover.Kind{drover.Unavailable, drover.Exhausted, drover.Corrupt, drover.Refused, drover.Invalid}

// appendFailure encodes why a copy has failed.
func appendFailure(b []byte, err error) []byte {
	text := err.Error()
	return append(append(b, byte(max(0, slices.Index(failures[:], drover.KindOf(err))))), text[:min(len(text), maxFailText)]...)
}

// parseFailure makes an error of it again.
func parseFailure(p []byte) error {
	kind := drover.Unavailable
	if len(p) > 0 {
		if int(p[0]) < len(failures) {
			kind = failures[p[0]]
		}
		p = p[1:]
	}
	return drover.Errorf(kind, "the destination", "%s", printable(p))
}

// printable keeps a peer's text from writing control characters to a log.
func printable(text []byte) string {
	q := fmt.Sprintf("%q", text[:min(len(text), maxFailText)])
	return q[1 : len(q)-1]
}
