package wan

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// notSentBytes is how much may lie in the kernel's send queue beyond what
	// is in flight, until a bundle sets what its rate needs. What is queued here
	// delays the switchover and makes QEMU believe in a faster link.
	notSentBytes = 128 << 10
	// deadAfter is how long sent bytes may go unacknowledged, and how long a
	// silent connection may go unanswered, before the peer counts as dead.
	// Bundles notice earlier; the agents' control calls do not.
	deadAfter = 60 * time.Second
	// A connection at rest is probed every keepEvery, so that a dead peer is
	// noticed although nothing is sent.
	keepEvery = 10 * time.Second
	keepCount = int(deadAfter/keepEvery) - 1
	// congestion control of the data path: on a long link with little loss,
	// CUBIC needs minutes to fill it; BBR measures.
	congestion = "bbr"
)

// tune sets what the data path wants of TCP. Options that a kernel lacks are
// left as they are: they cost speed, not correctness.
func tune(c *net.TCPConn) {
	_ = c.SetNoDelay(true)
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepEvery, Interval: keepEvery, Count: keepCount})
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentBytes)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter/time.Millisecond))
	})
}

const (
	// A guest waits for what a cut has swallowed, and the next connection sends it
	// again: so a disk's connection is given up soon. What is lost is a few round
	// trips, even when it would have come back.
	diskDeadAfter = 5 * time.Second
	diskKeepEvery = time.Second
	diskKeepCount = int(diskDeadAfter/diskKeepEvery) - 1
)

// tuneDisk sets, after tune, what a way to a disk wants otherwise.
func tuneDisk(c *net.TCPConn) {
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: diskKeepEvery, Interval: diskKeepEvery, Count: diskKeepCount})
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(diskDeadAfter/time.Millisecond))
	})
}
