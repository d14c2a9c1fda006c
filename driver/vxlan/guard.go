package vxlan

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A guard finds out whether a bridge reaches an edge by another way than the
// tunnel: two ways would make a loop. It sends a beacon to everybody in the
// segment; the tunnels do not let beacons pass, so whoever hears the beacon of
// a remote hears it by another way, and shuts its tunnel.
//
//	edge A (extended)                        edge B (about to extend)
//	   beacon each second ──▶ its bridge        asks in its bridge, listens
//	                          ══ another way? ══▶ hears A: refused
//	   hears the question  ◀═══════════════════   …
//	   answers at once
//
// A beacon is an Ethernet frame with the EtherType 0x88b5 (for local
// experiments, IEEE 802) to a group of its own; after the header of 14 bytes:
//
//	0  6 bytes "drover"
//	6  1 byte  version, 1
//	7  1 byte  0 beacon, 1 question
//	8  4 bytes VNI, big endian
//	12 16 bytes mesh address of the sender, IPv4 mapped into IPv6
//	28 zeros up to the 60 bytes of the shortest frame
type guard struct {
	vni             uint32
	segment, bridge string
	local           netip.Addr
	log             *slog.Logger
	socket          *os.File
	index           int // of the bridge
	done            chan struct{}
	running         *sync.WaitGroup
	// loop is called when a remote was heard; nil while the tunnel is not open.
	loop func(from netip.Addr)

	mu      sync.Mutex
	remotes []netip.Addr
	heard   map[netip.Addr]time.Time // when a remote was heard last
	looped  string
}

const (
	// beaconInterval is how long a loop may last that is made after a tunnel
	// was opened.
	beaconInterval = time.Second
	// listenTime is how long a tunnel that is about to open listens: more than the
	// round trip to any site that somebody would join by layer 2.
	listenTime = 250 * time.Millisecond
	// questionInterval is how often it asks meanwhile: a question may be lost.
	questionInterval = 50 * time.Millisecond
	// heardFor is how long a remote that was heard counts as reached by another way.
	heardFor      = 3 * beaconInterval
	beaconBytes   = 60
	beaconVersion = 1
	kindBeacon    = 0
	kindQuestion  = 1
)

var (
	beaconMagic = []byte("drover")
	// beaconGroup is a group address of local administration.
	beaconGroup = net.HardwareAddr{0x03, 'd', 'r', 'o', 'v', 'e'}
)

// newGuard makes one that is about to run.
func (s *Segments) newGuard(vni uint32, segment string, bridge netlink.Link, local netip.Addr, remotes []netip.Addr) (*guard, error) {
	g := &guard{
		vni: vni, segment: segment, bridge: bridge.Attrs().Name, local: local, log: s.log,
		index: bridge.Attrs().Index, done: make(chan struct{}), running: &sync.WaitGroup{},
		remotes: remotes, heard: map[netip.Addr]time.Time{},
	}
	err := s.within(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, etherBeacon))
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: g.index}); err != nil {
			unix.Close(fd)
			return err
		}
		g.socket = os.NewFile(uintptr(fd), "beacons of "+g.bridge)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listen for beacons in %s: %w", g.bridge, err)
	}
	return g, nil
}

// stop tells the guard to end. Who stops one under the driver's lock does not
// wait for it, as it may be waiting for the lock; Close does.
func (g *guard) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.done:
	default:
		close(g.done)
		g.socket.Close()
	}
}

func (g *guard) watch(remotes []netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remotes = remotes
}

func (g *guard) fault() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.looped
}

// other returns a remote that was heard lately, that is, by another way.
func (g *guard) other() (netip.Addr, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for a, at := range g.heard {
		if time.Since(at) < heardFor && slices.Contains(g.remotes, a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (g *guard) frame(kind byte) []byte {
	b := make([]byte, 0, beaconBytes)
	b = append(b, beaconGroup...)
	b = append(b, g.source()...)
	b = binary.BigEndian.AppendUint16(b, etherBeacon)
	b = append(b, beaconMagic...)
	b = append(b, beaconVersion, kind)
	b = binary.BigEndian.AppendUint32(b, g.vni)
	a := g.local.As16()
	return append(b, a[:]...)[:beaconBytes]
}

// source is a MAC of local administration, made of the edge's address: no
// station's, and not the gateway's, which all edges share.
func (g *guard) source() net.HardwareAddr {
	a := g.local.As16()
	return net.HardwareAddr{0x02, 0xd7, a[12], a[13], a[14], a[15]}
}

// parseBeacon returns what a frame says, and whether it is a beacon of the segment.
func parseBeacon(b []byte, vni uint32) (from netip.Addr, kind byte, ok bool) {
	const header = 14
	if len(b) < header+28 || binary.BigEndian.Uint16(b[ethType:]) != etherBeacon {
		return from, 0, false
	}
	b = b[header:]
	if !bytes.Equal(b[:6], beaconMagic) || b[6] != beaconVersion || b[7] > kindQuestion || binary.BigEndian.Uint32(b[8:]) != vni {
		return from, 0, false
	}
	return netip.AddrFrom16([16]byte(b[12:28])).Unmap(), b[7], true
}

func (g *guard) transmit(kind byte) {
	if _, err := g.socket.Write(g.frame(kind)); err != nil && !errors.Is(err, os.ErrClosed) {
		// The bridge is down or gone: then there is no way at all.
		g.log.Debug("beacon was not sent", "bridge", g.bridge, "err", err)
	}
}

func (g *guard) send() {
	tick := time.NewTicker(beaconInterval)
	defer tick.Stop()
	for {
		g.transmit(kindBeacon)
		select {
		case <-g.done:
			return
		case <-tick.C:
		}
	}
}

func (g *guard) receive() {
	frame := make([]byte, 256)
	for {
		n, err := g.socket.Read(frame)
		if err != nil {
			select {
			case <-g.done:
				return
			case <-time.After(beaconInterval): // the bridge is down (ENETDOWN, once)
				continue
			}
		}
		from, kind, ok := parseBeacon(frame[:n], g.vni)
		if !ok || !g.note(from) {
			continue
		}
		if kind == kindQuestion {
			g.transmit(kindBeacon)
		}
		if g.loop != nil {
			g.loop(from)
		}
	}
}

// note remembers a remote that was heard, and says whether it is one.
func (g *guard) note(from netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := slices.Contains(g.remotes, from)
	if known {
		g.heard[from] = time.Now()
	}
	return known
}

// shut sets the tunnel down because the remote was heard by another way.
func (s *Segments) shut(g *guard, from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.guards[g.vni] != g {
		return // it is not open yet, or no more
	}
	g.mu.Lock()
	first := g.looped == ""
	g.looped = fmt.Sprintf("shut: %s reaches %v by another way too", g.bridge, from)
	g.mu.Unlock()
	v, err := s.tunnel(g.vni)
	if err == nil && v != nil && v.Flags&net.FlagUp != 0 {
		err = s.nl.LinkSetDown(v)
	}
	if first || err != nil {
		s.log.Error("loop: tunnel was shut", "segment", g.segment, "interface", linkName(g.vni), "bridge", g.bridge, "remote", from, "err", err)
	}
}

// listen asks the bridge for the remotes before a tunnel opens. One that
// answers, or was heard lately, is reached by another way: drover.Refused.
func (s *Segments) listen(ctx context.Context, e *extension, bridge netlink.Link, ext driver.Extension) error {
	open := e.link != nil && e.link.Flags&net.FlagUp != 0
	remotes := make([]netip.Addr, 0, len(ext.Remotes))
	added := false
	for _, r := range ext.Remotes {
		remotes = append(remotes, r.Address)
		added = added || !slices.Contains(e.marks.remotes(), r.Address)
	}
	if open && !added {
		return nil
	}
	g, err := s.newGuard(ext.VNI, ext.Segment, bridge, ext.Local, remotes)
	if err != nil {
		return err
	}
	g.running.Go(g.receive)
	for range listenTime / questionInterval {
		g.transmit(kindQuestion)
		select {
		case <-ctx.Done():
		case <-time.After(questionInterval):
		}
		if _, heard := g.other(); heard || ctx.Err() != nil {
			break
		}
	}
	g.stop()
	g.running.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	if from, heard := g.other(); heard {
		return drover.Errorf(drover.Refused, "loop", "%s reaches %v by another way", ext.Bridge, from)
	}
	return nil
}

// guardStart lets the extension be guarded.
func (s *Segments) guardStart(e *extension) error {
	vni := e.marks.vni
	bridge, err := s.bridge(e.bridge)
	if err != nil {
		if drover.KindOf(err) == drover.NotFound {
			return nil // and so no way but the tunnel
		}
		return err
	}
	if g := s.guards[vni]; g != nil {
		if g.index == bridge.Attrs().Index && g.local == e.local() {
			g.watch(e.marks.remotes())
			g.mu.Lock()
			g.looped = ""
			g.mu.Unlock()
			return nil
		}
		g.stop()
		delete(s.guards, vni)
	}
	g, err := s.newGuard(vni, e.segment, bridge, e.local(), e.marks.remotes())
	if err != nil {
		return err
	}
	g.running = &s.running
	g.loop = func(from netip.Addr) { s.shut(g, from) }
	s.guards[vni] = g
	g.running.Go(g.receive)
	g.running.Go(g.send)
	return nil
}
