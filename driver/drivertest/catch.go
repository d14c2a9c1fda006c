package drivertest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// CatchMAC is the station that the suite works on, CatchOther one that has no
// port; CatchAddress and CatchAddress6 are the station's.
const (
	CatchMAC   = "52:54:00:00:00:05"
	CatchOther = "52:54:00:00:00:06"
)

// The station's addresses.
var (
	CatchAddress  = netip.MustParseAddr("10.1.0.5")
	CatchAddress6 = netip.MustParseAddr("2001:db8:1::5")
)

// CatchHost is a host with one station on it to test with.
type CatchHost struct {
	Catcher driver.Catcher
	// Send has a frame come to the host from the network that the station is on.
	Send func(t *testing.T, frame []byte)
	// Received returns the next frame that the station's port has been given,
	// and fails the test when none comes.
	Received func(t *testing.T) []byte
	// Unplug takes the station's port away, as the end of its VM does.
	Unplug func(t *testing.T)
}

// Catcher is the conformance suite of driver.Catcher. setup is called for each
// test.
func Catcher(t *testing.T, setup func(t *testing.T) CatchHost) {
	for name, test := range map[string]func(*catchTest){
		"Start": testCatchStart, "Order": testCatchOrder, "Others": testCatchOthers, "Asks": testCatchAsks, "Unplug": testCatchUnplug,
		"Full": testCatchFull, "Give": testCatchGive, "Missing": testCatchMissing, "BadInput": testCatchBadInput, "Close": testCatchClose,
	} {
		t.Run(name, func(t *testing.T) { test(&catchTest{T: t, CatchHost: setup(t)}) })
	}
}

type catchTest struct {
	*testing.T
	CatchHost
}

func (c *catchTest) ok(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *catchTest) kind(err error, want drover.Kind) {
	c.Helper()
	if err == nil || drover.KindOf(err) != want {
		c.Errorf("got %v, want an error of kind %v", err, want)
	}
}

func (c *catchTest) catch() driver.Catch {
	c.Helper()
	got, err := c.Catcher.Catch(c.Context(), driver.CaughtStation{MAC: CatchMAC, Addresses: []netip.Addr{CatchAddress, CatchAddress6}})
	c.ok(err)
	c.Cleanup(func() { got.Close() })
	return got
}

// frame is one of the local experimental type (IEEE 802, 0x88b5) with a text.
func frame(to, from, text string) []byte {
	a, _ := net.ParseMAC(to)
	b, _ := net.ParseMAC(from)
	f := append(append([]byte{}, a...), b...)
	f = append(binary.BigEndian.AppendUint16(f, 0x88b5), text...)
	return append(f, make([]byte, max(0, 60-len(f)))...)
}

const catchNeighbour = "52:54:00:00:00:09"

func toStation(text string) []byte { return frame(CatchMAC, catchNeighbour, text) }

// next collects frames until want have come; more than these fail the test.
func (c *catchTest) next(from driver.Catch, want ...[]byte) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
	defer cancel()
	var got []driver.Frame
	for len(got) < len(want) {
		more, err := from.Next(ctx)
		if err != nil {
			c.Fatalf("%d frames of %d: %v", len(got), len(want), err)
		}
		got = append(got, more...)
	}
	for i, f := range got {
		if i >= len(want) || !bytes.Equal(f.Data, want[i]) {
			c.Fatalf("frame %d is %q, want these: %q", i, f.Data, want)
		}
		if f.At.IsZero() || time.Since(f.At) > time.Minute {
			c.Errorf("frame %d was caught at %v", i, f.At)
		}
	}
}

// Frames that came before the moment given are not returned, those after it are,
// whether they came before Start or not.
func testCatchStart(c *catchTest) {
	got := c.catch()
	c.Send(c.T, toStation("long before"))
	time.Sleep(20 * time.Millisecond)
	since := time.Now()
	time.Sleep(20 * time.Millisecond)
	c.Send(c.T, toStation("before the news"))
	time.Sleep(20 * time.Millisecond) // it is remembered by now
	c.ok(got.Start(since))
	c.next(got, toStation("before the news"))
	c.Send(c.T, toStation("after it"))
	c.next(got, toStation("after it"))
	c.ok(got.Start(time.Now().Add(time.Hour)))
	c.Send(c.T, toStation("after a second start"))
	c.next(got, toStation("after a second start"))
}

func testCatchOrder(c *catchTest) {
	got := c.catch()
	c.ok(got.Start(time.Now()))
	var want [][]byte
	for i := range 200 {
		f := toStation(fmt.Sprint("frame ", i))
		want = append(want, f)
		c.Send(c.T, f)
	}
	c.next(got, want...)
	if n := got.Dropped(); n != 0 {
		c.Errorf("%d dropped", n)
	}
}

// What is for others, or for everybody, or the station's own, is not caught.
func testCatchOthers(c *catchTest) {
	got := c.catch()
	c.ok(got.Start(time.Now()))
	c.Send(c.T, frame(CatchOther, catchNeighbour, "for another"))
	c.Send(c.T, frame("ff:ff:ff:ff:ff:ff", catchNeighbour, "for all"))
	c.Send(c.T, frame("01:00:5e:00:00:05", catchNeighbour, "for some"))
	c.Send(c.T, frame(CatchMAC, CatchMAC, "its own"))
	c.Send(c.T, toStation("for it"))
	c.next(got, toStation("for it"))
}

// arpRequest asks who has an address.
func arpRequest(target netip.Addr) []byte {
	f := frame("ff:ff:ff:ff:ff:ff", catchNeighbour, "")[:12]
	f = append(binary.BigEndian.AppendUint16(f, 0x0806), 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(f, f[6:12]...), 10, 1, 0, 9)
	f = append(append(f, 0, 0, 0, 0, 0, 0), target.AsSlice()...)
	return append(f, make([]byte, 60-len(f))...)
}

// solicitation asks who has an address, by neighbour discovery.
func solicitation(target netip.Addr) []byte {
	ip := target.As16()
	f := append([]byte{0x33, 0x33, 0xff}, ip[13:]...)
	f = append(f, 0x52, 0x54, 0, 0, 0, 9, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255)
	source := netip.MustParseAddr("2001:db8:1::9").As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], ip[13:])
	f = append(append(f, source[:]...), group[:]...)
	return append(append(f, 135, 0, 0, 0, 0, 0, 0, 0), ip[:]...)
}

// Questions for the station's addresses are caught, those for others are not.
func testCatchAsks(c *catchTest) {
	got := c.catch()
	c.ok(got.Start(time.Now()))
	c.Send(c.T, arpRequest(netip.MustParseAddr("10.1.0.6")))
	c.Send(c.T, arpRequest(CatchAddress))
	c.Send(c.T, solicitation(netip.MustParseAddr("2001:db8:1::6")))
	c.Send(c.T, solicitation(CatchAddress6))
	c.next(got, arpRequest(CatchAddress), solicitation(CatchAddress6))
}

// A port that goes after Start takes nothing along.
func testCatchUnplug(c *catchTest) {
	got := c.catch()
	c.ok(got.Start(time.Now()))
	c.Send(c.T, toStation("while it is there"))
	c.next(got, toStation("while it is there"))
	c.Unplug(c.T)
	c.Send(c.T, toStation("after it has gone"))
	c.next(got, toStation("after it has gone"))
}

// What nobody takes is bounded, and counted.
func testCatchFull(c *catchTest) {
	got := c.catch()
	c.ok(got.Start(time.Now()))
	const more = 10
	for i := range driver.CatchFrames + more {
		c.Send(c.T, toStation(fmt.Sprint("frame ", i)))
		if i%200 == 0 {
			time.Sleep(time.Millisecond) // who listens has a processor to share
		}
	}
	for end := time.Now().Add(10 * time.Second); got.Dropped() < more && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	frames, err := got.Next(c.Context())
	c.ok(err)
	if n := got.Dropped(); len(frames) != driver.CatchFrames || n != more || !bytes.Equal(frames[0].Data, toStation("frame 0")) {
		c.Errorf("%d frames, %d dropped: want the first %d, and %d dropped", len(frames), n, driver.CatchFrames, more)
	}
}

// What was caught can be handed over, and arrives as it was sent.
func testCatchGive(c *catchTest) {
	got := c.catch()
	c.ok(got.Start(time.Now()))
	c.Send(c.T, toStation("hello"))
	frames, err := got.Next(c.Context())
	c.ok(err)
	c.ok(got.Close())
	for range 2 { // the one that was sent to it, if it has not been unplugged
		p, err := c.Catcher.Port(c.Context(), CatchMAC)
		c.ok(err)
		c.ok(p.Give(frames[0]))
		c.ok(p.Give(driver.Frame{Data: toStation("last")}))
		c.ok(p.Close())
		c.ok(p.Close())
	}
	seen := map[string]int{}
	for seen["last"] < 2 {
		f := c.Received(c.T)
		for _, text := range []string{"hello", "last"} {
			if bytes.Equal(f, toStation(text)) {
				seen[text]++
			}
		}
	}
	if n := seen["hello"]; n < 2 || n > 3 {
		c.Errorf("the frame arrived %d times", n)
	}
}

func testCatchMissing(c *catchTest) {
	_, err := c.Catcher.Catch(c.Context(), driver.CaughtStation{MAC: CatchOther})
	c.kind(err, drover.NotFound)
	_, err = c.Catcher.Port(c.Context(), CatchOther)
	c.kind(err, drover.NotFound)
	p, err := c.Catcher.Port(c.Context(), CatchMAC)
	c.ok(err)
	defer p.Close()
	c.Unplug(c.T)
	c.kind(p.Give(driver.Frame{Data: toStation("too late")}), drover.NotFound)
}

func testCatchBadInput(c *catchTest) {
	for _, mac := range []string{"", "52:54", "01:00:5e:00:00:01", "nonsense", "00:11:22:33:44:55:66:77"} {
		_, err := c.Catcher.Catch(c.Context(), driver.CaughtStation{MAC: mac})
		c.kind(err, drover.Invalid)
		_, err = c.Catcher.Port(c.Context(), mac)
		c.kind(err, drover.Invalid)
	}
	_, err := c.Catcher.Catch(c.Context(), driver.CaughtStation{MAC: CatchMAC, Addresses: []netip.Addr{{}}})
	c.kind(err, drover.Invalid)
	p, err := c.Catcher.Port(c.Context(), CatchMAC)
	c.ok(err)
	defer p.Close()
	for _, f := range []driver.Frame{
		{}, {Data: make([]byte, 13)}, {Data: make([]byte, driver.MaxFrame+1)}, {Data: toStation("x"), Offload: make([]byte, 3)},
	} {
		c.kind(p.Give(f), drover.Invalid)
	}
}

func testCatchClose(c *catchTest) {
	got := c.catch()
	ctx, cancel := context.WithCancel(c.Context())
	cancel()
	_, err := got.Next(ctx)
	c.kind(err, drover.Canceled)
	ended := make(chan error, 1)
	go func() {
		_, err := got.Next(c.Context())
		ended <- err
	}()
	time.Sleep(10 * time.Millisecond)
	c.ok(got.Close())
	c.kind(<-ended, drover.Canceled)
	c.ok(got.Close())
	c.Send(c.T, toStation("to nobody"))
}
