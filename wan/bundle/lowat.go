package bundle

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// What the kernel may queue of a connection's bytes beyond what is in
	// flight: lowatTime at the rate that the connection delivers. Less, and a
	// busy machine leaves the link idle now and then; more only makes what is
	// urgent wait. minLowat lets a connection that starts grow.
	lowatTime = 15 * time.Millisecond
	minLowat  = 64 << 10
	maxLowat  = 512 << 10
	// lowatEvery is how often it follows the rate.
	lowatEvery = 10 * tick
)

// setLowat sets TCP's limit of unsent bytes. A connection that is not TCP, or
// a kernel that lacks the option, stays as it is: that costs time, not
// correctness.
func setLowat(c net.Conn, bytes int) {
	s, ok := below[syscall.Conn](c)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes) })
}

// tuneLowat lets a connection's limit follow the rate, in bytes per second,
// that it has of the bundle's. It is set when it is a third off.
func (l *link) tuneLowat(rate int64) {
	want := int(min(max(rate*int64(lowatTime)/int64(time.Second), minLowat), maxLowat))
	if want*3 < l.lowat*4 && l.lowat*3 < want*4 {
		return
	}
	l.lowat = want
	setLowat(l.conn, want)
}
