package wan

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/reduce"
)

// mark is a moment at which a session's phase changes.
type mark int

const (
	atStart mark = iota
	atMemory
	atPause
	atEnd
	marks
)

// meter tells a sender's figures apart by phase.
type meter struct {
	bundle       *bundle.Bundle
	memory, disk *reduce.Stats

	mu   sync.Mutex
	seen [marks]*reading
}

// reading is everything that counts, at one moment.
type reading struct {
	at   time.Time
	cpu  time.Duration
	path bundle.Stats
	// memory and disk have guest bytes, kinds and misses only.
	memory, disk drover.PathPhase
}

func newMeter(b *bundle.Bundle) *meter {
	m := &meter{bundle: b, memory: new(reduce.Stats), disk: new(reduce.Stats)}
	m.mark(atStart)
	return m
}

// mark notes the first time that a moment comes. After the end none does: what a
// session that is being closed was about to begin is not counted.
func (m *meter) mark(k mark) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen[k] == nil && m.seen[atEnd] == nil {
		m.seen[k] = m.read() // under the lock, so that marks are in order of time
	}
}

func (m *meter) read() *reading {
	return &reading{at: time.Now(), cpu: processTime(), path: m.bundle.Stats(), memory: phaseOf(m.memory), disk: phaseOf(m.disk)}
}

// figures are the session's so far.
func (m *meter) figures() drover.PathFigures {
	m.mu.Lock()
	seen := m.seen
	m.mu.Unlock()
	now := seen[atEnd]
	if now == nil {
		now = m.read()
	}
	pause := seen[atPause]
	if pause == nil {
		pause = now
	}
	begin := seen[atMemory]
	if begin == nil {
		begin = pause
	}
	var f drover.PathFigures
	// What a channel carried goes to its phase, what happened to the phase of
	// the moment.
	f.Disk, f.Memory = pause.disk, pause.memory
	f.Switchover = now.memory.Plus(now.disk).Minus(pause.memory.Plus(pause.disk))
	f.Disk.Seconds, f.Memory.Seconds, f.Switchover.Seconds = 0, 0, 0
	span(&f.Disk, seen[atStart], begin)
	span(&f.Memory, begin, pause)
	span(&f.Switchover, pause, now)
	// On the wire, frames of both share connections: they are told apart by
	// their payload.
	wire := wireBytes(pause.path) - wireBytes(seen[atStart].path)
	disks := payload(pause.path, bundle.Disk) + payload(pause.path, bundle.Copy)
	rest := payload(pause.path, bundle.Memory) + payload(pause.path, bundle.Return)
	if all := disks + rest; all > 0 {
		f.Disk.WireBytes = drover.Bytes(float64(wire) * float64(disks) / float64(all))
	} else {
		f.Disk.WireBytes = drover.Bytes(wire)
	}
	f.Memory.WireBytes = drover.Bytes(wire) - f.Disk.WireBytes
	f.Switchover.WireBytes = drover.Bytes(wireBytes(now.path) - wireBytes(pause.path))
	return f
}

// span adds what happened between two readings.
func span(p *drover.PathPhase, from, to *reading) {
	p.Seconds = to.at.Sub(from.at).Seconds()
	p.CPUSeconds = (to.cpu - from.cpu).Seconds()
	p.Cuts = to.path.Cuts - from.path.Cuts
	p.CutSeconds = (to.path.CutTime - from.path.CutTime).Seconds()
	p.RetransmittedBytes += drover.Bytes(to.path.Resent - from.path.Resent)
}

// phaseOf is what a channel's encoder has counted.
func phaseOf(s *reduce.Stats) drover.PathPhase {
	count := func(k reduce.Kind) drover.PathCount {
		c := s.Of(k)
		return drover.PathCount{Blocks: c.Blocks, GuestBytes: drover.Bytes(c.GuestBytes), WireBytes: drover.Bytes(c.WireBytes)}
	}
	return drover.PathPhase{
		GuestBytes: drover.Bytes(s.Total().GuestBytes), MissedReferences: s.Missed.Load(),
		RetransmittedBytes: drover.Bytes(s.FillBytes.Load()),
		Kinds: drover.PathKinds{
			Zero: count(reduce.Zero), Same: count(reduce.Same), Reference: count(reduce.Reference), Delta: count(reduce.Delta),
			Compressed: count(reduce.Compressed), Raw: count(reduce.Raw), Opaque: count(reduce.Opaque),
		},
	}
}

// processTime is the processor time of the whole process: sessions that run
// side by side see each other's.
func processTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func wireBytes(s bundle.Stats) int64 { return s.WireSent + s.WireReceived }

// payload is what a class carried, both ways.
func payload(s bundle.Stats, c bundle.Class) int64 { return s.Sent[c] + s.Received[c] }
