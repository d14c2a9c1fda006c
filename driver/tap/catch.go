package tap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// receiveBuffer is what the kernel holds while the reader waits for its turn: a
// tenth of a second of a busy guest. The kernel counts its own overhead in it.
const receiveBuffer = 4 << 20

// catch is one card's frames.
type catch struct {
	t         *Taps
	card      net.HardwareAddr
	addresses []netip.Addr
	bridge    int // index; zero for none
	readers   sync.WaitGroup
	queue     *driver.CatchQueue

	mu      sync.Mutex
	sockets []*os.File
}

// Catch implements driver.Catcher.
func (t *Taps) Catch(_ context.Context, s driver.CaughtStation) (driver.Catch, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	card, err := driver.StationMAC(s.MAC)
	if err != nil {
		return nil, err
	}
	link, err := find(card)
	if err != nil {
		return nil, err
	}
	c := &catch{t: t, card: card, addresses: slices.Clone(s.Addresses), queue: driver.NewCatchQueue()}
	var why string
	if c.bridge, why = bridgeOf(link); c.bridge == 0 {
		t.log.Info("frames are caught at the guest's port only, as long as it is there", "mac", s.MAC, "port", link.Attrs().Name, "why", why)
	}
	if _, err := c.listen(link.Attrs().Index, false); err != nil {
		return nil, err
	}
	return c, nil
}

// listen begins to hear an interface.
func (c *catch) listen(index int, all bool) (*os.File, error) {
	op := "listen for " + c.card.String()
	fd, err := packetSocket()
	if err != nil {
		return nil, drover.E(kindOf(err), op, err)
	}
	if err := c.bind(fd, index, all); err != nil {
		unix.Close(fd)
		return nil, drover.E(kindOf(err), op, err)
	}
	f := os.NewFile(uintptr(fd), "frames for "+c.card.String())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queue.Closed() {
		f.Close()
		return nil, drover.Errorf(drover.Canceled, op, "it is closed")
	}
	c.sockets = append(c.sockets, f)
	c.readers.Go(func() { c.read(f) })
	return f, nil
}

// bind filters before it binds, so that no other frame gets in.
func (c *catch) bind(fd, index int, all bool) error {
	filter := wanted(c.card)
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return fmt.Errorf("attach the filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		// Without the right to it the kernel's own limit has to do.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if all {
		member := &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, member); err != nil {
			return fmt.Errorf("hear all of interface %d: %w", index, err)
		}
	}
	const protocol = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}); err != nil {
		return fmt.Errorf("bind to interface %d: %w", index, err)
	}
	return nil
}

// read takes frames in until the socket is closed or its interface goes.
func (c *catch) read(f *os.File) {
	buf := make([]byte, driver.OffloadBytes+driver.MaxFrame)
	for {
		n, err := f.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.ENETDOWN) {
				c.t.log.Warn("frames are no longer caught", "mac", c.card.String(), "err", err)
			}
			return
		}
		if n < driver.OffloadBytes {
			continue
		}
		data := buf[driver.OffloadBytes:n]
		frame := driver.Frame{At: time.Now(), Data: data, Offload: buf[:driver.OffloadBytes]}
		if frame.Validate() != nil || data[0]&1 != 0 && !driver.Asks(data, c.addresses) {
			continue
		}
		own := slices.Clone(buf[:n])
		frame.Offload, frame.Data = own[:driver.OffloadBytes:driver.OffloadBytes], own[driver.OffloadBytes:]
		c.queue.Put(frame)
	}
}

// Start implements driver.Catch.
func (c *catch) Start(since time.Time) error {
	if already := c.queue.Start(since); already || c.bridge == 0 {
		return nil
	}
	f, err := c.listen(c.bridge, true)
	if err != nil {
		return err
	}
	// What crosses the bridge to the port is heard by the new socket now: the
	// few frames that both have heard come twice.
	c.mu.Lock()
	old := slices.DeleteFunc(slices.Clone(c.sockets), func(s *os.File) bool { return s == f })
	c.sockets = []*os.File{f}
	c.mu.Unlock()
	for _, s := range old {
		s.Close()
	}
	return nil
}

// Next implements driver.Catch.
func (c *catch) Next(ctx context.Context) ([]driver.Frame, error) { return c.queue.Next(ctx) }

// Dropped implements driver.Catch.
func (c *catch) Dropped() int64 { return c.queue.Dropped() }

// Close implements driver.Catch.
func (c *catch) Close() error {
	c.mu.Lock()
	c.queue.Close()
	sockets := c.sockets
	c.sockets = nil
	c.mu.Unlock()
	for _, s := range sockets {
		s.Close()
	}
	c.readers.Wait()
	return nil
}
