package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/namespace"
)

// noDAD lets interfaces that are made from now on use their IPv6 addresses at
// once.
func noDAD() error {
	return os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644)
}

// clients is a network namespace with an interface in each segment, where
// DHCP clients run.
type clients struct {
	ns netns.NsHandle
	// number is in the names of its interfaces: package net remembers an
	// interface's index by its name for a minute, whatever the namespace.
	number int32
}

var clientsMade atomic.Int32

// iface is the name of the clients' interface in a segment.
func (c clients) iface(segment string) string { return fmt.Sprintf("c%d-%s", c.number, segment) }

func newClients(t *testing.T) clients {
	t.Helper()
	c := clients{number: clientsMade.Add(1)}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if c.ns, err = netns.New(); err == nil {
		err = noDAD()
	}
	if back := netns.Set(own); back != nil {
		panic(back) // the thread is of no more use
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ns.Close() })
	return c
}

// in runs f in the clients' namespace.
func (c clients) in(t *testing.T, f func() error) {
	t.Helper()
	if err := namespace.In(c.ns, f); err != nil {
		t.Fatal(err)
	}
}

// plug gives the clients an interface whose other end is here, and is named.
func (c clients) plug(t *testing.T, here, segment string) netlink.Link {
	t.Helper()
	there := c.iface(segment)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: here}, PeerName: there, PeerNamespace: netlink.NsFd(c.ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	if err := netlink.LinkSetUp(veth); err != nil {
		t.Fatal(err)
	}
	c.in(t, func() error {
		link, err := netlink.LinkByName(there)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		return linkLocal(link)
	})
	return veth
}

// linkLocal waits until an interface has an IPv6 address that is in use.
func linkLocal(link netlink.Link) error {
	for range 1000 {
		list, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		for _, a := range list {
			if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New(link.Attrs().Name + " has no link-local address")
}

const (
	// askTime bounds one packet of a client that has to get an answer, and
	// silence the wait of one that gets none.
	askTime = 2 * time.Second
	tries   = 4
)

// ask gets addresses as a guest's DHCP client does. Without an answer of a
// family there is none in the list.
func (c clients) ask(t *testing.T, segment, mac string) []netip.Addr {
	t.Helper()
	iface := c.iface(segment)
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	var got []netip.Addr
	if a := c.ask4(t, iface, hw); a.IsValid() {
		got = append(got, a)
	}
	if a := c.ask6(t, iface, hw); a.IsValid() {
		got = append(got, a)
	}
	return got
}

func (c clients) ask4(t *testing.T, iface string, hw net.HardwareAddr) netip.Addr {
	t.Helper()
	var client *nclient4.Client
	c.in(t, func() (err error) {
		client, err = nclient4.New(iface, nclient4.WithHWAddr(hw), nclient4.WithTimeout(askTime), nclient4.WithRetry(tries))
		return err
	})
	defer client.Close()
	lease, err := client.Request(context.Background(),
		dhcpv4.WithBroadcast(true), // the interface has another MAC
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier(append([]byte{1}, hw...))))
	if err != nil {
		t.Logf("DHCPv4 client %v: %v", hw, err)
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(lease.ACK.YourIPAddr.To4())
	return a
}

func (c clients) ask6(t *testing.T, iface string, hw net.HardwareAddr) netip.Addr {
	t.Helper()
	var client *nclient6.Client
	c.in(t, func() (err error) {
		conn, err := nclient6.NewIPv6UDPConn(iface, dhcpv6.DefaultClientPort)
		if err != nil {
			return err
		}
		client, err = nclient6.NewWithConn(conn, hw, nclient6.WithTimeout(askTime), nclient6.WithRetry(tries))
		return err
	})
	defer client.Close()
	id := dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw})
	advertise, err := client.Solicit(context.Background(), id)
	if err != nil {
		t.Logf("DHCPv6 client %v: %v", hw, err)
		return netip.Addr{}
	}
	if advertise.Options.OneIANA() == nil || advertise.Options.OneIANA().Options.OneAddress() == nil {
		t.Logf("DHCPv6 client %v: no address: %v", hw, advertise)
		return netip.Addr{}
	}
	reply, err := client.Request(context.Background(), advertise)
	if err != nil {
		t.Fatalf("DHCPv6 client %v: %v", hw, err)
	}
	one := reply.Options.OneIANA().Options.OneAddress()
	if one == nil {
		t.Fatalf("DHCPv6 client %v: %v", hw, reply)
	}
	a, _ := netip.AddrFromSlice(one.IPv6Addr)
	return a
}

// testSegments are the tests' two segments.
var testSegments = map[string]KeaSegment{
	"blue":  {netip.MustParsePrefix("10.77.1.0/24"), netip.MustParsePrefix("fd77:1::/64")},
	"green": {netip.MustParsePrefix("10.77.2.0/24"), netip.MustParsePrefix("fd77:2::/64")},
}

// testPool are a segment's addresses from number 16 on.
func testPool(segment string, n int) []netip.Addr {
	s := testSegments[segment]
	four, six := s.Subnet4.Addr(), s.Subnet6.Addr()
	for range 16 {
		four, six = four.Next(), six.Next()
	}
	var a, b []netip.Addr
	for range n {
		a, b = append(a, four), append(b, six)
		four, six = four.Next(), six.Next()
	}
	return slices.Concat(a, b)
}

// testStatic is what the services' configuration reserves in blue.
var testStatic = driver.Lease{
	Segment: "blue", MAC: "52:54:00:00:00:99", Hostname: "printer", Addresses: []netip.Addr{netip.MustParseAddr("10.77.1.99")},
}

// testLog writes a logger's lines to the test's.
type testLog struct{ t *testing.T }

func (w testLog) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func logTo(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(testLog{t}, nil)) }
