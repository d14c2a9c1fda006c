package wanem

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// batch bounds the frames moved while holding the lock, so that Status and
	// SetShape wait for about a millisecond at most.
	batch = 64
	// coalesce is the shortest sleep: frames due within it leave together, up
	// to this much late. It bounds the wake-ups of a fast link with small
	// packets and is far below the millisecond that the delay is good for.
	coalesce = int64(50 * time.Microsecond)
)

// pump moves one direction's frames from one TAP to the other.
type pump struct {
	src, dst int
	stop     *event // readable once the pump has to look up
	epoch    time.Time

	mu       sync.Mutex
	shaper   *shaper
	stopping bool
	head     [vnetLen + maxHeader]byte
	iov      [2][]byte
}

// now is the pump's clock, in nanoseconds.
func (p *pump) now() int64 { return int64(time.Since(p.epoch)) }

// run pumps until stopped, or until a device is gone.
func (p *pump) run() error {
	// The thread is the pump's own: its timer slack, by default 50 µs, is set
	// to the least, and put back to the default (0) in the end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }()

	fds := []unix.PollFd{
		{Fd: int32(p.src), Events: unix.POLLIN},
		{Fd: int32(p.stop.fd), Events: unix.POLLIN},
	}
	for {
		wait, err := p.turn()
		if err != nil || wait == stopped {
			return err
		}
		if wait == 0 {
			continue
		}
		var timeout *unix.Timespec
		if wait != forever {
			ts := unix.NsecToTimespec(wait)
			timeout = &ts
		}
		if _, err := unix.Ppoll(fds, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
		if fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0 {
			return errDeviceGone
		}
		if fds[1].Revents != 0 {
			p.stop.drain()
		}
	}
}

// Special results of turn.
const (
	stopped int64 = -1
	forever int64 = -2
)

var errDeviceGone = errors.New("the TAP device is gone")

// turn delivers what is due and admits what can be read, a batch at most, and
// returns how many nanoseconds to sleep: 0 when there may be more to read.
func (p *pump) turn() (wait int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return stopped, nil
	}
	for range batch {
		if err := p.deliver(p.now()); err != nil {
			return 0, err
		}
		at, b, kept := p.shaper.slot()
		n, err := unix.Read(p.src, b)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return p.untilDue(), nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("read: %w", err)
		}
		p.shaper.offer(p.now(), n, at, b, kept)
	}
	return 0, p.deliver(p.now())
}

// untilDue returns how long to sleep until the next frame is due.
func (p *pump) untilDue() int64 {
	if p.shaper.n == 0 {
		return forever
	}
	return max(p.shaper.record(0).due-p.now(), coalesce)
}

// deliver writes the frames that are due at now.
func (p *pump) deliver(now int64) error {
	for p.shaper.n > 0 {
		rec := p.shaper.record(0)
		if rec.due > now {
			return nil
		}
		err := p.write(rec)
		switch {
		case err == nil:
			p.shaper.deliver(rec)
		case errors.Is(err, unix.EBADFD):
			return errDeviceGone
		default:
			// The far device is down, out of memory, or refuses a malformed
			// frame: to the sender the frame is lost, the link goes on.
			p.shaper.drop(rec)
		}
		p.shaper.pop()
	}
	return nil
}

func (p *pump) write(rec *record) error {
	frame := p.shaper.bytes(rec)
	for {
		var err error
		if rec.count == 0 {
			_, err = unix.Write(p.dst, frame)
		} else {
			lay := parse(frame)
			p.iov[0], p.iov[1] = lay.run(&p.head, frame, int(rec.first), int(rec.count))
			_, err = unix.Writev(p.dst, p.iov[:])
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// set changes the shape at once: when it returns from a cut, nothing more is
// delivered.
func (p *pump) set(s Shape) {
	p.mu.Lock()
	p.shaper.set(p.now(), s)
	p.mu.Unlock()
	p.stop.signal()
}

func (p *pump) counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shaper.count
}

// halt makes run return.
func (p *pump) halt() {
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
	p.stop.signal()
}

// event is an eventfd: it wakes a thread out of poll.
type event struct{ fd int }

func newEvent() (*event, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &event{fd: fd}, nil
}

// signal cannot fail but by a counter of 2^64-1, which is as good as signalled.
func (e *event) signal() { _, _ = unix.Write(e.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

func (e *event) drain() {
	var b [8]byte
	_, _ = unix.Read(e.fd, b[:])
}
