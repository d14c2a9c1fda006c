package wanem

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// batch bounds the frames moved while holding the lock, so that Status and
	// SetShape wait for about a millisecond at most.
	batch = 64
	// lead is how much early a frame may be delivered: about what passes from
	// a timer's expiry until its goroutine runs, which it makes up for.
	lead = int64(60 * time.Microsecond)
	// coalesce is the shortest sleep: frames due within it leave together. It
	// bounds the wake-ups of a fast link with small packets and is far below
	// the millisecond that the delay is good for.
	coalesce = int64(50 * time.Microsecond)
)

var errDeviceGone = errors.New("the TAP device is gone")

// pump moves one direction's frames from one TAP to the other. Two goroutines
// serve it: read admits frames and delivers what is due anyway, tick delivers
// when nothing arrives. Both rest in the runtime's poller.
type pump struct {
	src   *os.File
	in    syscall.RawConn // of src
	dst   int             // descriptor
	timer *timer
	epoch time.Time

	mu       sync.Mutex
	shaper   *shaper
	armed    int64 // when the timer expires, 0 when it is not set
	stopping bool
	head     [vnetLen + maxHeader]byte
	iov      [2][]byte
}

func newPump(src *os.File, dst int, epoch time.Time, s *shaper) (*pump, error) {
	in, err := src.SyscallConn()
	if err != nil {
		return nil, err
	}
	timer, err := newTimer()
	if err != nil {
		return nil, err
	}
	return &pump{src: src, in: in, dst: dst, timer: timer, epoch: epoch, shaper: s}, nil
}

// now is the pump's clock, in nanoseconds.
func (p *pump) now() int64 { return int64(time.Since(p.epoch)) }

// read pumps until halted, or until a device is gone.
func (p *pump) read() error {
	var failed error
	err := p.in.Read(func(fd uintptr) (done bool) {
		for {
			var more bool
			more, failed = p.turn(int(fd))
			if failed != nil || !more {
				return failed != nil
			}
		}
	})
	return p.ended(errors.Join(failed, err))
}

// tick delivers on time until halted, or until a device is gone.
func (p *pump) tick() error {
	var failed error
	err := p.timer.conn.Read(func(uintptr) (done bool) {
		if !p.timer.expired() {
			return false
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.armed = 0
		failed = p.deliver(p.now())
		p.arm()
		return failed != nil
	})
	return p.ended(errors.Join(failed, err))
}

// ended takes the deadline that halt sets for what it is, the end.
func (p *pump) ended(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return nil
	}
	return err
}

// turn admits what can be read and delivers what is due, a batch at most, and
// reports whether there may be more to read.
func (p *pump) turn(fd int) (more bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range batch {
		if p.stopping {
			return false, os.ErrClosed
		}
		if err := p.deliver(p.now()); err != nil {
			return false, err
		}
		at, b, kept := p.shaper.slot()
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN):
			p.arm()
			return false, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EBADFD):
			return false, errDeviceGone
		case err != nil:
			return false, fmt.Errorf("read: %w", err)
		}
		p.shaper.offer(p.now(), n, at, b, kept)
	}
	return true, p.deliver(p.now())
}

// arm sets the timer for the first frame held, unless it is set for then or
// earlier already.
func (p *pump) arm() {
	if p.shaper.n == 0 {
		return
	}
	now := p.now()
	at := max(p.shaper.record(0).due-lead, now+coalesce)
	if p.armed == 0 || at < p.armed {
		p.armed = at
		p.timer.set(at - now)
	}
}

// deliver writes the frames that are due at now.
func (p *pump) deliver(now int64) error {
	for p.shaper.n > 0 {
		rec := p.shaper.record(0)
		if rec.due > now+lead {
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
	defer p.mu.Unlock()
	p.shaper.set(p.now(), s)
	p.armed = 0
	p.arm()
}

func (p *pump) counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shaper.count
}

// halt makes read and tick return.
func (p *pump) halt() error {
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
	past := time.Unix(1, 0)
	return errors.Join(p.src.SetReadDeadline(past), p.timer.file.SetReadDeadline(past))
}

// timer is a timerfd in the runtime's poller. The runtime's own timers are
// rounded up to the millisecond when the process is otherwise at rest; this one
// is not.
type timer struct {
	file *os.File
	conn syscall.RawConn
	fd   int
}

func newTimer() (*timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timerfd: %w", err)
	}
	file := os.NewFile(uintptr(fd), "timerfd")
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("timerfd: %w", err), file.Close())
	}
	return &timer{file: file, conn: conn, fd: fd}, nil
}

// set makes the timer expire in wait nanoseconds, which must be positive. It
// can only fail on a closed descriptor or a negative time.
func (t *timer) set(wait int64) {
	_ = unix.TimerfdSettime(t.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(wait)}, nil)
}

// expired takes an expiry, if there is one.
func (t *timer) expired() bool {
	var b [8]byte
	n, _ := unix.Read(t.fd, b[:])
	return n == len(b)
}
