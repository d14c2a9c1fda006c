package wireguard

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Messages of ICMP (RFC 792) and ICMPv6 (RFC 4443): type, code, checksum,
// identifier and sequence number of 2 bytes each, data.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	echoHeader               = 8
	// echoData is a random number: answers to others' requests are told apart by it.
	echoData = 16
	// maxEcho is the longest answer that is read, as much as an interface carries.
	maxEcho = maxMTU
)

// RoundTrip measures how long a packet takes to the peer's mesh address and back.
func (t *Tunnels) RoundTrip(ctx context.Context, peer string) (time.Duration, error) {
	const op = "round trip"
	if err := t.begin(ctx, op); err != nil {
		return 0, err
	}
	i := slices.IndexFunc(t.set, func(p driver.Peer) bool { return p.Name == peer })
	var to netip.Addr
	if i >= 0 {
		to = t.set[i].Addresses[0].Addr()
	}
	t.mu.Unlock()
	if i < 0 {
		return 0, drover.Errorf(drover.NotFound, op, "there is no peer %q", peer)
	}
	took, err := t.echo(ctx, to)
	var silent net.Error
	if errors.As(err, &silent) && silent.Timeout() {
		return 0, drover.Errorf(drover.Unavailable, op, "peer %s does not answer", peer)
	}
	if err != nil {
		return 0, drover.E(drover.Unavailable, op, fmt.Errorf("peer %s: %w", peer, err))
	}
	return took, nil
}

func (t *Tunnels) echo(ctx context.Context, to netip.Addr) (time.Duration, error) {
	conn, err := t.echoSocket(to.Is4())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	request, reply := echoMessage(to.Is4())
	began := time.Now()
	if _, err := conn.WriteTo(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return 0, err
	}
	b := make([]byte, maxEcho)
	for {
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			return 0, err
		}
		if n >= echoHeader && b[0] == reply && slices.Equal(b[echoHeader:n], request[echoHeader:]) {
			return time.Since(began), nil
		}
	}
}

// echoSocket is one through which only echoes pass, and only by the tunnel.
func (t *Tunnels) echoSocket(v4 bool) (net.PacketConn, error) {
	family, protocol := unix.AF_INET6, unix.IPPROTO_ICMPV6
	if v4 {
		family, protocol = unix.AF_INET, unix.IPPROTO_ICMP
	}
	var conn net.PacketConn
	err := t.within(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "echo")
		defer f.Close() // the connection has a descriptor of its own
		if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, t.cfg.Interface); err != nil {
			return err
		}
		conn, err = net.FilePacketConn(f)
		return err
	})
	return conn, err
}

// echoMessage returns a request, and the type of its answer. The kernel fills in
// the checksum of ICMPv6.
func echoMessage(v4 bool) (request []byte, reply byte) {
	b := make([]byte, echoHeader+echoData)
	_, _ = rand.Read(b[echoHeader:]) // does not fail
	if !v4 {
		b[0] = echoRequest6
		return b, echoReply6
	}
	b[0] = echoRequest4
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b, echoReply4
}
