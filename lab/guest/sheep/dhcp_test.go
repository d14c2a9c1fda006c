package main

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// leaseServer is a DHCP server that gives out addr for two seconds at a time.
type leaseServer struct {
	mu       sync.Mutex
	addr     net.IP
	refuse   bool // the next renewal
	renewals int
}

func (s *leaseServer) handle(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
	s.mu.Lock()
	defer s.mu.Unlock()
	server := net.IPv4(10, 9, 0, 1)
	kind := dhcpv4.MessageTypeOffer
	if m.MessageType() == dhcpv4.MessageTypeRequest {
		kind = dhcpv4.MessageTypeAck
		if !m.ClientIPAddr.IsUnspecified() { // renewing
			s.renewals++
			if s.refuse {
				kind, s.refuse = dhcpv4.MessageTypeNak, false
				s.addr = net.IPv4(10, 9, 0, 77)
			}
		}
	}
	reply, err := dhcpv4.NewReplyFromRequest(m,
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(s.addr), dhcpv4.WithServerIP(server),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server)),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(server), dhcpv4.WithLeaseTime(2))
	if err == nil {
		_, _ = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
	}
}

func (s *leaseServer) seen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.renewals
}

// TestDHCP runs the client against a server over a pair of devices in a
// network namespace: it gets an address, renews it, and replaces it when the
// server refuses.
func TestDHCP(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := &leaseServer{addr: net.IPv4(10, 9, 0, 55)}
	ready := make(chan *netlink.Handle)
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine and takes the namespace along.
		runtime.LockOSThread()
		done <- inNamespace(ctx, s, ready)
	}()
	var ns *netlink.Handle
	select {
	case ns = <-ready:
	case err := <-done:
		t.Fatalf("this test needs root: %v", err)
	}
	defer ns.Close()

	wait := func(what string, seen func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !seen(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not seen", what)
			}
		}
	}
	has := func(want string) func() bool {
		return func() bool {
			link, err := ns.LinkByName("guest")
			if err != nil {
				t.Fatal(err)
			}
			list, err := ns.AddrList(link, netlink.FAMILY_V4)
			return err == nil && len(list) == 1 && list[0].IPNet.String() == want
		}
	}
	wait("first lease", has("10.9.0.55/24"))
	wait("two renewals", func() bool { return s.seen() >= 2 })
	if !has("10.9.0.55/24")() {
		t.Error("the address did not stay over renewals")
	}
	routes, err := ns.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Gw: net.IPv4(10, 9, 0, 1)}, netlink.RT_FILTER_GW)
	if err != nil || len(routes) != 1 {
		t.Errorf("default route: %v, %v", routes, err)
	}
	s.mu.Lock()
	s.refuse = true
	s.mu.Unlock()
	wait("address after a refusal", has("10.9.0.77/24"))
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// inNamespace makes a namespace with the devices guest and server, and runs
// a DHCP server and the client in it until ctx is done.
func inNamespace(ctx context.Context, s *leaseServer, ready chan<- *netlink.Handle) error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "guest"}, PeerName: "server"}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	for _, name := range []string{"lo", "guest", "server"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		if name == "server" {
			if err := netlink.AddrAdd(link, address(netip.MustParsePrefix("10.9.0.1/24"))); err != nil {
				return err
			}
		}
	}
	srv, err := server4.NewServer("server", nil, s.handle)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = srv.Serve() }) // ends when it is closed
	defer func() { _ = srv.Close() }()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	ready <- handle
	log := slog.New(slog.DiscardHandler)
	return newDHCP(log, settings{name: "t"}, newAddressBook(log, "guest"), nil).run(ctx)
}
