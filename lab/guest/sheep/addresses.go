package main

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/lab/guest/control"
)

// forever is a lifetime of an address that does not end.
const forever = 1<<32 - 1

// errNoAddress says that an address to be dropped is not there, errLastAddress
// that it is the only one of its family.
var (
	errNoAddress   = errors.New("the guest has no such address")
	errLastAddress = errors.New("the last address of its family stays: the guest would be out of reach")
)

// addressBook changes the addresses that the guest was leased, so that its sessions
// outlive a change: the old address stays, without its subnet, until nobody
// uses it any more.
type addressBook struct {
	log    *slog.Logger
	device string

	mu  sync.Mutex
	old map[netip.Addr]bool
}

func newAddressBook(log *slog.Logger, device string) *addressBook {
	return &addressBook{log: log, device: device, old: map[netip.Addr]bool{}}
}

// adopt makes p the address of new connections, with a default route through gw
// unless that is not valid. What was, if valid, becomes an old one.
func (b *addressBook) adopt(p, was netip.Prefix, gw netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	link, err := netlink.LinkByName(b.device)
	if err != nil {
		return fmt.Errorf("find %s: %w", b.device, err)
	}
	delete(b.old, p.Addr())
	if err := netlink.AddrReplace(link, preferred(p)); err != nil {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	if was.IsValid() && was.Addr() != p.Addr() {
		if err := retire(link, was); err != nil {
			return err
		}
		b.old[was.Addr()] = true
	}
	if was.IsValid() && was.Masked() == p.Masked() {
		// Linux took the new one, or its subnet's route, away with the old one.
		if err := netlink.AddrReplace(link, preferred(p)); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	if gw.IsValid() {
		if err := setGateway(link, gw, []netip.Prefix{p}, p.Addr()); err != nil {
			return err
		}
	}
	return announce(b.device)
}

// preferred is an address for new connections, for as long as nobody changes it.
func preferred(p netip.Prefix) *netlink.Addr {
	a := address(p)
	a.ValidLft, a.PreferedLft = forever, forever
	return a
}

// retire keeps an address for its sessions alone: without its subnet, or, in
// IPv6, deprecated.
func retire(link netlink.Link, p netip.Prefix) error {
	if p.Addr().Is6() {
		a := address(p)
		a.Flags |= unix.IFA_F_NOPREFIXROUTE
		a.ValidLft, a.PreferedLft = forever, 0
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("deprecate %s: %w", p, err)
		}
		return nil
	}
	if p.IsSingleIP() {
		return nil
	}
	if err := netlink.AddrReplace(link, address(netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))); err != nil {
		return fmt.Errorf("keep %s: %w", p.Addr(), err)
	}
	if err := netlink.AddrDel(link, address(p)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("narrow %s: %w", p, err)
	}
	return nil
}

// sweep drops the old addresses that no session uses any more.
func (b *addressBook) sweep() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.old) == 0 {
		return nil
	}
	sessions, err := sessionsByAddress()
	if err != nil {
		return err
	}
	for a := range b.old {
		if sessions[a] > 0 {
			continue
		}
		if err := b.remove(a); err != nil && !errors.Is(err, errNoAddress) {
			return err
		}
		b.log.Info("old address dropped: no session uses it", "address", a)
		delete(b.old, a)
	}
	return nil
}

// drop takes an address away, whatever sessions it has.
func (b *addressBook) drop(a netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	all, err := b.list()
	if err != nil {
		return err
	}
	there, others := false, false
	for _, p := range all {
		there = there || p.Addr() == a
		others = others || p.Addr() != a && p.Addr().Is4() == a.Is4()
	}
	switch {
	case !there:
		return fmt.Errorf("%s: %w", a, errNoAddress)
	case !others:
		return fmt.Errorf("%s: %w", a, errLastAddress)
	}
	delete(b.old, a)
	return b.remove(a)
}

// remove takes every form of an address away.
func (b *addressBook) remove(a netip.Addr) error {
	link, err := netlink.LinkByName(b.device)
	if err != nil {
		return fmt.Errorf("find %s: %w", b.device, err)
	}
	all, err := b.list()
	if err != nil {
		return err
	}
	found := false
	for _, p := range all {
		if p.Addr() != a {
			continue
		}
		found = true
		if err := netlink.AddrDel(link, address(p)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	if !found {
		return fmt.Errorf("%s: %w", a, errNoAddress)
	}
	return nil
}

// list returns the device's addresses but link-local ones.
func (b *addressBook) list() ([]netip.Prefix, error) {
	link, err := netlink.LinkByName(b.device)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", b.device, err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var all []netip.Prefix
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if p := netip.PrefixFrom(ip.Unmap(), bits); p.IsValid() && p.Addr().IsGlobalUnicast() {
			all = append(all, p)
		}
	}
	return all, nil
}

// has reports whether the device has the address, in whatever form.
func (b *addressBook) has(a netip.Addr) bool {
	all, _ := b.list() // an error says that nothing is known to be there
	for _, p := range all {
		if p.Addr() == a {
			return true
		}
	}
	return false
}

// report is list for the control interface.
func (b *addressBook) report() ([]control.Address, error) {
	all, err := b.list()
	if err != nil {
		return nil, err
	}
	sessions, err := sessionsByAddress()
	if err != nil {
		return nil, err
	}
	sources := map[netip.Addr]bool{source("192.0.2.1"): true, source("2001:db8::1"): true}
	out := make([]control.Address, 0, len(all))
	for _, p := range all {
		out = append(out, control.Address{Prefix: p, Primary: sources[p.Addr()], Sessions: sessions[p.Addr()]})
	}
	return out, nil
}

// source is the address that a new connection to somewhere far away would have;
// not valid where there is no route.
func source(to string) netip.Addr {
	routes, err := netlink.RouteGet(net.ParseIP(to))
	if err != nil || len(routes) == 0 {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(routes[0].Src)
	return a.Unmap()
}

// tcpStates are the states of /proc/net/tcp in which a session is open for one
// side at least: ESTABLISHED, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT,
// LAST_ACK (include/net/tcp_states.h).
const tcpStates = "01 03 04 05 08 09"

// sessionsByAddress counts the open TCP sessions of each local address.
func sessionsByAddress() (map[netip.Addr]int, error) {
	count := map[netip.Addr]int{}
	for _, path := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			continue
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 4 || !strings.Contains(tcpStates, fields[3]) {
				continue
			}
			if a, ok := procAddress(fields[1]); ok {
				count[a]++
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return count, nil
}

// procAddress reads "0100007F:1F90": words of 32 bits in the machine's order,
// which is little-endian, and a port.
func procAddress(text string) (netip.Addr, bool) {
	host, _, _ := strings.Cut(text, ":")
	if len(host) != 8 && len(host) != 32 {
		return netip.Addr{}, false
	}
	b := make([]byte, len(host)/2)
	for i := range b {
		v, err := strconv.ParseUint(host[2*i:2*i+2], 16, 8)
		if err != nil {
			return netip.Addr{}, false
		}
		b[i/4*4+3-i%4] = byte(v)
	}
	a, ok := netip.AddrFromSlice(b)
	return a.Unmap(), ok
}
