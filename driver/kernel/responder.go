package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// responder answers neighbour discovery on a bridge for all addresses of IPv6
// subnets that this edge would route away from the bridge. For IPv4 the kernel's
// proxy_arp does the same; for IPv6 the kernel proxies single addresses only.
type responder struct {
	bridge string
	socket *raw
	own    net.HardwareAddr
	stop   chan struct{}

	mu      sync.Mutex
	subnets []netip.Prefix
}

const (
	// readWait is how often a responder that gets no solicitation looks
	// whether it is to end.
	readWait = 250 * time.Millisecond
	// maxFrame is more than any solicitation is long.
	maxFrame = 512
	// Where things are in an Ethernet frame with a solicitation: no extension
	// headers, as RFC 4861 has no use for them and attackers do.
	nextHeaderAt, hopLimitAt, sourceAt, icmpAt, targetAt, solicitationBytes = 20, 21, 22, 54, 62, 78
	neighborSolicitation                                                    = 135
)

// respond makes the responders those that the entries demand; mu is held.
func (a *Addresses) respond(entries []entry) error {
	want := map[string][]netip.Prefix{}
	for _, e := range entries {
		rest := e.role == driver.RoleRest || e.role == driver.RoleAcceptOld && !e.prefix.IsSingleIP()
		if rest && e.prefix.Addr().Is6() {
			want[e.bridge] = append(want[e.bridge], e.prefix)
		}
	}
	for bridge, r := range a.responders {
		if len(want[bridge]) == 0 {
			r.close()
			delete(a.responders, bridge)
		}
	}
	for bridge, subnets := range want {
		if r := a.responders[bridge]; r != nil && r.same() {
			r.set(subnets)
			continue
		} else if r != nil { // the bridge was made anew
			r.close()
			delete(a.responders, bridge)
		}
		err := a.startResponder(bridge, subnets)
		if drover.KindOf(err) == drover.NotFound {
			a.log.Warn("a bridge whose neighbours are to be answered is gone", "bridge", bridge)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *Addresses) startResponder(bridge string, subnets []netip.Prefix) error {
	link, err := needLink(bridge)
	if err != nil {
		return err
	}
	s, err := openRaw(link, unix.ETH_P_IPV6)
	if err != nil {
		return err
	}
	r := &responder{bridge: bridge, socket: s, own: link.Attrs().HardwareAddr, subnets: subnets, stop: make(chan struct{})}
	a.responders[bridge] = r
	a.done.Go(func() {
		defer s.close()
		if err := a.inside(func() error { return r.serve() }); err != nil {
			a.log.Error("neighbours are no longer answered", "bridge", bridge, "err", err)
		}
	})
	return nil
}

// same reports whether the bridge is still the one that it listens on.
func (r *responder) same() bool {
	link, err := needLink(r.bridge)
	return err == nil && link.Attrs().Index == r.socket.index
}

func (r *responder) set(subnets []netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subnets = subnets
}

// close has serve end; the socket is closed after it.
func (r *responder) close() {
	select {
	case <-r.stop:
	default:
		close(r.stop)
	}
}

func (r *responder) serve() error {
	buf := make([]byte, maxFrame)
	for {
		select {
		case <-r.stop:
			return nil
		default:
		}
		n, err := unix.Read(r.socket.fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			return err
		}
		if answer := r.answer(buf[:n]); answer != nil {
			if err := r.socket.send([][]byte{answer}); err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
		}
	}
}

// solicitation is who asks for what.
type solicitation struct {
	mac            net.HardwareAddr
	source, target netip.Addr
}

func parseSolicitation(f []byte) (q solicitation, ok bool) {
	if len(f) < solicitationBytes || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IPV6 || f[nextHeaderAt] != unix.IPPROTO_ICMPV6 ||
		f[hopLimitAt] != 255 || f[icmpAt] != neighborSolicitation || f[icmpAt+1] != 0 {
		return q, false
	}
	q.mac = slices.Clone(net.HardwareAddr(f[6:12]))
	q.source = netip.AddrFrom16([16]byte(f[sourceAt:]))
	q.target = netip.AddrFrom16([16]byte(f[targetAt:]))
	// Who asks without an address looks whether the target is free (RFC 4862):
	// a proxy must not say that it is taken.
	return q, !q.source.IsUnspecified() && !q.source.IsMulticast() && !q.target.IsMulticast()
}

// answer is the advertisement for a frame, nil for none.
func (r *responder) answer(f []byte) []byte {
	q, ok := parseSolicitation(f)
	if !ok || slices.Equal(q.mac, r.own) {
		return nil
	}
	r.mu.Lock()
	ours := slices.ContainsFunc(r.subnets, func(p netip.Prefix) bool { return p.Contains(q.target) })
	r.mu.Unlock()
	if !ours || !r.routedAway(q) {
		return nil
	}
	return advertisement(r.own, q.mac, r.own, q.target, q.target, q.source, advertiseAnswer)
}

// routedAway reports whether the edge would send a packet of the asking
// station to the target out of another interface.
func (r *responder) routedAway(q solicitation) bool {
	options := &netlink.RouteGetOptions{IifIndex: r.socket.index}
	if !q.source.IsLinkLocalUnicast() {
		options.SrcAddr = q.source.AsSlice()
	}
	routes, err := netlink.RouteGetWithOptions(q.target.AsSlice(), options)
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_UNICAST && routes[0].LinkIndex != r.socket.index
}

// listen binds the socket to its interface, for solicitations only.
func (s *raw) listen(ethertype uint16) error {
	// Load the next header, then the ICMP type; take the frame or none of it.
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: nextHeaderAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMPV6, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: icmpAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: neighborSolicitation, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: maxFrame},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return fmt.Errorf("attach the filter: %w", err)
	}
	wait := unix.NsecToTimeval(readWait.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return fmt.Errorf("set a timeout: %w", err)
	}
	// A bridge that snoops on multicast hands up what it has joined only.
	all := &unix.PacketMreq{Ifindex: int32(s.index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(s.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, all); err != nil {
		return fmt.Errorf("take all multicast: %w", err)
	}
	proto := ethertype<<8 | ethertype>>8 // network order
	return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: s.index})
}
