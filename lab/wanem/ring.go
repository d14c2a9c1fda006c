package wanem

const (
	// ringStart is a direction's first buffer: it must hold two largest frames,
	// one being read and one that may straddle the end.
	ringStart = 256 << 10
	// ringMax bounds what one direction holds: 2 s of 1 Gbit/s in flight. What
	// arrives when it is full is dropped and counted.
	ringMax = 256 << 20
)

// record is a frame, or a run of a frame's segments, on its way.
type record struct {
	at            uint64 // where the frame begins, a position that only grows
	length        int32  // of the frame, virtio-net header included
	first, count  int32  // the run; count 0: the whole frame
	packets       int32  // segments
	wire, charged int32  // bytes with and without Ethernet headers
	sent, due     int64  // when its last bit leaves and arrives, clock ns
}

// ring keeps frames in order in one buffer: each is read into its end and
// given back from its front. Several records in a row may share a frame.
// Buffer and records double when full, up to ringMax.
type ring struct {
	buf     []byte
	tail    uint64 // position behind the last frame kept
	recs    []record
	head, n int
	scratch []byte // where frames go that cannot be kept
}

func newRing() *ring {
	return &ring{buf: make([]byte, ringStart), recs: make([]record, 256)}
}

// record returns the i-th record from the front.
func (r *ring) record(i int) *record { return &r.recs[(r.head+i)&(len(r.recs)-1)] }

func (r *ring) bytes(rec *record) []byte {
	o := rec.at & uint64(len(r.buf)-1)
	return r.buf[o : o+uint64(rec.length)]
}

// slot returns a place of maxFrame bytes for the next frame, its position, and
// whether a frame put there can be kept.
func (r *ring) slot() (at uint64, b []byte, ok bool) {
	for {
		at, size := r.tail, uint64(len(r.buf))
		if at&(size-1)+maxFrame > size {
			at = (at | (size - 1)) + 1
		}
		front := at
		if r.n > 0 {
			front = r.record(0).at
		}
		if at+maxFrame-front <= size {
			return at, r.buf[at&(size-1):][:maxFrame], true
		}
		if len(r.buf) >= ringMax {
			if r.scratch == nil {
				r.scratch = make([]byte, maxFrame)
			}
			return 0, r.scratch, false
		}
		r.grow()
	}
}

// grow doubles the buffer and packs the frames at its beginning.
func (r *ring) grow() {
	old := *r
	r.buf, r.tail = make([]byte, 2*len(old.buf)), 0
	last, moved := ^uint64(0), uint64(0)
	for i := range r.n {
		rec := r.record(i)
		if rec.at != last {
			last, moved = rec.at, r.tail
			copy(r.buf[moved:], old.bytes(rec))
			r.tail = align(moved + uint64(rec.length))
		}
		rec.at = moved
	}
}

// push appends a record whose frame lies at rec.at.
func (r *ring) push(rec record) {
	if r.n == len(r.recs) {
		recs := make([]record, 2*r.n)
		for i := range r.n {
			recs[i] = *r.record(i)
		}
		r.recs, r.head = recs, 0
	}
	r.n++
	*r.record(r.n - 1) = rec
	r.tail = align(rec.at + uint64(rec.length))
}

func (r *ring) pop() {
	r.head = (r.head + 1) & (len(r.recs) - 1)
	r.n--
}

// align keeps frames on cache lines of their own.
func align(at uint64) uint64 { return (at + 63) &^ 63 }
