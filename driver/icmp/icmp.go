// Package icmp measures the way to other hosts with echo requests (RFC 792, RFC
// 4443), which their kernels answer. It needs CAP_NET_RAW.
//
// A packet is 64 bytes beside its IP header. It carries when it was sent and a
// random number of its asking, so that other programs' answers, and late ones,
// are told apart.
package icmp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Types of messages, and the layout of a packet: type, code, sum (2), identifier
// (2), number (2), token (8), padding.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129

	headerBytes = 8
	tokenBytes  = 8
	packetBytes = 64
	// readBytes holds any packet with its IPv4 header, which the kernel passes on.
	readBytes = 256
)

// Pings implements driver.Pings with a raw socket for each asking.
type Pings struct{}

var _ driver.Pings = Pings{}

// Close implements driver.Pings; there is nothing to close.
func (Pings) Close() error { return nil }

// asking is one series of echo requests.
type asking struct {
	conn  net.PacketConn
	to    netip.Addr
	token [tokenBytes]byte
	sent  []time.Time
	trips []time.Duration // zero: no answer yet
	left  int
}

// Ping implements driver.Pings.
func (Pings) Ping(ctx context.Context, to netip.Addr, count int, gap, limit time.Duration) (driver.PingResult, error) {
	op := "ping " + to.String()
	if err := driver.CheckPing(to, count); err != nil {
		return driver.PingResult{}, err
	}
	if err := ctx.Err(); err != nil {
		return driver.PingResult{}, drover.E(drover.Canceled, op, err)
	}
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	conn, err := new(net.ListenConfig).ListenPacket(ctx, network, "")
	if err != nil {
		return driver.PingResult{}, drover.E(drover.Refused, op, err)
	}
	defer conn.Close()
	a := &asking{conn: conn, to: to, trips: make([]time.Duration, count), left: count}
	_, _ = rand.Read(a.token[:])
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer unhook()
	err = a.run(count, gap, limit)
	switch {
	case ctx.Err() != nil:
		return driver.PingResult{}, drover.E(drover.Canceled, op, ctx.Err())
	case err != nil:
		return driver.PingResult{}, drover.E(drover.Unavailable, op, err)
	case a.left == count:
		return driver.PingResult{}, drover.Errorf(drover.Unavailable, op, "no answer to %d packets", count)
	}
	r := driver.PingResult{Sent: count, Received: count - a.left}
	for _, t := range a.trips {
		if t > 0 {
			r.Trips = append(r.Trips, t)
		}
	}
	return r, nil
}

// run sends one packet each gap, and hears answers between them and, after the
// last, until all are there or the limit is over.
func (a *asking) run(count int, gap, limit time.Duration) error {
	for i := range count {
		a.sent = append(a.sent, time.Now())
		if _, err := a.conn.WriteTo(a.packet(i), &net.IPAddr{IP: a.to.AsSlice(), Zone: a.to.Zone()}); err != nil {
			return err
		}
		wait := gap
		if i == count-1 {
			wait = limit
		}
		if err := a.hear(a.sent[i].Add(wait), i == count-1); err != nil {
			return err
		}
	}
	return nil
}

// packet makes request number i.
func (a *asking) packet(i int) []byte {
	p := make([]byte, packetBytes)
	p[0] = echoRequest4
	if a.to.Is6() {
		p[0] = echoRequest6 // the kernel sums
	}
	copy(p[4:6], a.token[:])
	binary.BigEndian.PutUint16(p[6:], uint16(i))
	copy(p[headerBytes:], a.token[:])
	if a.to.Is4() {
		binary.BigEndian.PutUint16(p[2:], checksum(p))
	}
	return p
}

// checksum is RFC 1071's.
func checksum(p []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// hear takes answers until the time is over or, when done asks for it, until all
// are there.
func (a *asking) hear(until time.Time, done bool) error {
	if err := a.conn.SetReadDeadline(until); err != nil {
		return err
	}
	buf := make([]byte, readBytes)
	for !done || a.left > 0 {
		n, from, err := a.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("hear answers: %w", err)
		}
		now := time.Now()
		if ip, ok := from.(*net.IPAddr); ok {
			if addr, ok := netip.AddrFromSlice(ip.IP); ok && addr.Unmap() == a.to.WithZone("") {
				a.take(buf[:n], now)
			}
		}
	}
	return nil
}

// take takes an answer; net has cut off the IPv4 header.
func (a *asking) take(p []byte, now time.Time) {
	reply := byte(echoReply4)
	if a.to.Is6() {
		reply = echoReply6
	}
	if len(p) < headerBytes+tokenBytes || p[0] != reply || [tokenBytes]byte(p[headerBytes:]) != a.token {
		return
	}
	i := int(binary.BigEndian.Uint16(p[6:]))
	if i >= len(a.sent) || a.trips[i] != 0 {
		return
	}
	// A clock that does not tick between two readings is no answer before time.
	a.trips[i] = max(now.Sub(a.sent[i]), time.Nanosecond)
	a.left--
}
