package driver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/drover-vm/drover"
)

// Catcher is the ports of one host's VMs on their networks, as far as a move has
// to save what arrives for a VM while it runs nowhere: at the source it is
// caught, at the destination it is handed to the VM's new port.
//
// Methods may be called concurrently. A VM's port is known by the MAC of its
// network card; one that has no port on this host, or none of a kind that can be
// listened to, gives drover.NotFound. Without the right to listen it is
// drover.Denied.
//
// There is no owner: nothing is made or changed that outlives the process. What
// listens is gone with it, however it ends, and no frame is taken from anybody:
// what is caught are copies.
type Catcher interface {
	// Catch begins to listen for what is sent to a station. The caller closes it.
	Catch(ctx context.Context, s CaughtStation) (Catch, error)
	// Port opens the station's port to hand it frames. The caller closes it.
	Port(ctx context.Context, mac string) (Port, error)
}

// CaughtStation is a network card for which frames are caught: those to its MAC,
// and of those to everybody the questions who has one of its addresses, by ARP
// and neighbour discovery. What it sends itself is not caught.
type CaughtStation struct {
	MAC string
	// Addresses are as far as they are known.
	Addresses []netip.Addr
}

// Catch is one network card's frames. Until Start it remembers the last ones
// only, for CatchMemory and within CatchFrames and CatchBytes; from then on it
// keeps all that were not taken, within the same limits, and drops what comes
// beyond them.
type Catch interface {
	// Start says from which moment on frames are wanted: those remembered that
	// came before it are forgotten. From now on they are also caught where the
	// station's port has gone, as far as they reach its network on this host.
	// A second call changes nothing.
	Start(since time.Time) error
	// Next waits for frames and returns those that are there, in the order in
	// which they came. It gives drover.Canceled when ctx ends or it was closed.
	Next(ctx context.Context) ([]Frame, error)
	// Dropped is how many frames were lost for want of room after Start.
	Dropped() int64
	// Close ends the listening and waits for it. Repeatable.
	Close() error
}

// Port is where a station is plugged in.
type Port interface {
	// Give hands a frame to the station. The port holds some hundred frames for
	// a guest that does not run yet; beyond that it is drover.Exhausted, and the
	// frame is lost. A port that has gone is drover.NotFound, a frame that is
	// none drover.Invalid.
	Give(f Frame) error
	Close() error
}

// Frame is an Ethernet frame as it crossed a host.
type Frame struct {
	// Offload is what was left to the network card: the segmentation of a packet
	// that is longer than the MTU, and its checksum. It is a struct
	// virtio_net_hdr of OASIS' virtio 1.2, 5.1.6, little endian and without
	// num_buffers; empty is "nothing".
	Offload []byte
	// Data is the frame from the destination's MAC on, without checksum.
	Data []byte
	// At is when it was caught.
	At time.Time
}

// Limits of a catch.
const (
	// CatchFrames and CatchBytes bound what is kept of a card's frames: a pause
	// of half a second of a busy client's window, or of a thousand clients with
	// a request each.
	CatchFrames = 2048
	CatchBytes  = 4 << 20
	// CatchMemory is how long frames are remembered before Start: longer than
	// the news of a VM's stop can be on its way.
	CatchMemory = 250 * time.Millisecond
	// MaxFrame bounds a frame: the longest packet that a card may be asked to
	// cut up, with its header.
	MaxFrame = 64<<10 + 14
	// OffloadBytes is the length of Frame.Offload.
	OffloadBytes = 10
)

// Validate reports what is wrong with a station.
func (s CaughtStation) Validate() error {
	if _, err := StationMAC(s.MAC); err != nil {
		return err
	}
	for _, a := range s.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsMulticast() || a.IsUnspecified() {
			return drover.E(drover.Invalid, "catch", fmt.Errorf("address %v: want one of a host", a))
		}
	}
	return nil
}

// Validate reports what is wrong with a frame.
func (f Frame) Validate() error {
	switch {
	case len(f.Data) < 14 || len(f.Data) > MaxFrame:
		return drover.Errorf(drover.Invalid, "frame", "%d bytes: want 14 to %d", len(f.Data), MaxFrame)
	case len(f.Offload) != 0 && len(f.Offload) != OffloadBytes:
		return drover.Errorf(drover.Invalid, "frame", "offload of %d bytes: want %d or none", len(f.Offload), OffloadBytes)
	}
	return nil
}

// StationMAC reads the MAC of a station; the kind of its error is drover.Invalid.
func StationMAC(mac string) (net.HardwareAddr, error) {
	m, err := net.ParseMAC(mac)
	if err != nil || len(m) != 6 || m[0]&1 != 0 {
		return nil, drover.Errorf(drover.Invalid, "mac", "%q: want a station's, such as 52:54:00:12:34:56", mac)
	}
	return m, nil
}

// CatchQueue is what a catch keeps, by the rules of the contract. Methods may be
// called concurrently. The zero value is not usable; see NewCatchQueue.
type CatchQueue struct {
	mu      sync.Mutex
	frames  []Frame
	bytes   int
	started bool
	dropped int64

	some   chan struct{} // holds a token when there may be something to take
	closed chan struct{}
	once   sync.Once
}

// NewCatchQueue returns an empty one.
func NewCatchQueue() *CatchQueue {
	return &CatchQueue{some: make(chan struct{}, 1), closed: make(chan struct{})}
}

// Put takes a frame in.
func (q *CatchQueue) Put(f Frame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	full := func() bool { return len(q.frames) >= CatchFrames || q.bytes+len(f.Data) > CatchBytes }
	if q.started {
		if full() {
			q.dropped++
			return
		}
	} else {
		for len(q.frames) > 0 && (full() || f.At.Sub(q.frames[0].At) > CatchMemory) {
			q.bytes -= len(q.frames[0].Data)
			q.frames[0] = Frame{}
			q.frames = q.frames[1:]
		}
	}
	q.frames, q.bytes = append(q.frames, f), q.bytes+len(f.Data)
	q.tell()
}

func (q *CatchQueue) tell() {
	select {
	case q.some <- struct{}{}:
	default:
	}
}

// Start forgets what came before the moment, and reports whether it had begun.
func (q *CatchQueue) Start(since time.Time) (already bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.started {
		return true
	}
	q.started = true
	for len(q.frames) > 0 && q.frames[0].At.Before(since) {
		q.bytes -= len(q.frames[0].Data)
		q.frames = q.frames[1:]
	}
	q.tell()
	return false
}

// take returns all that is wanted, and forgets it.
func (q *CatchQueue) take() []Frame {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.started {
		return nil
	}
	all := q.frames
	q.frames, q.bytes = nil, 0
	return all
}

// Next is Catch.Next.
func (q *CatchQueue) Next(ctx context.Context) ([]Frame, error) {
	const op = "wait for frames"
	for {
		if frames := q.take(); len(frames) > 0 {
			return frames, nil
		}
		select {
		case <-q.some:
		case <-q.closed:
			return nil, drover.Errorf(drover.Canceled, op, "it is closed")
		case <-ctx.Done():
			return nil, drover.E(drover.Canceled, op, ctx.Err())
		}
	}
}

// Dropped is how many frames found no room after Start.
func (q *CatchQueue) Dropped() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

// Close wakes who waits. Repeatable.
func (q *CatchQueue) Close() { q.once.Do(func() { close(q.closed) }) }

// Closed reports whether Close was called.
func (q *CatchQueue) Closed() bool {
	select {
	case <-q.closed:
		return true
	default:
		return false
	}
}

// Asks reports whether a frame to everybody asks who has one of the addresses,
// by ARP (RFC 826) or neighbour discovery (RFC 4861).
func Asks(frame []byte, addresses []netip.Addr) bool {
	const (
		typeAt, arpTargetAt, arpBytes   = 12, 38, 42
		nextHeaderAt, icmpAt, ndTarget  = 20, 54, 62
		ndBytes                         = 78
		etherARP, etherIPv6             = 0x0806, 0x86dd
		protocolICMPv6, solicitNeighbor = 58, 135
	)
	if len(frame) < arpBytes {
		return false
	}
	var target netip.Addr
	switch int(frame[typeAt])<<8 | int(frame[typeAt+1]) {
	case etherARP:
		target = netip.AddrFrom4([4]byte(frame[arpTargetAt:]))
	case etherIPv6:
		if len(frame) < ndBytes || frame[nextHeaderAt] != protocolICMPv6 || frame[icmpAt] != solicitNeighbor {
			return false
		}
		target = netip.AddrFrom16([16]byte(frame[ndTarget:]))
	default:
		return false
	}
	for _, a := range addresses {
		if a == target {
			return true
		}
	}
	return false
}
