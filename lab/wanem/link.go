package wanem

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
)

// MTU limits of a link: what IPv6 needs at least, and what a TAP carries.
const (
	MinMTU = 1280
	MaxMTU = 65521
)

// Link is a running link between two TAP devices. Its methods may be called
// from any goroutine.
type Link struct {
	log   *slog.Logger
	name  string
	ends  [2]End
	pumps [2]*pump // forward, reverse
	files []*os.File
	group errgroup.Group

	mu     sync.Mutex // held while the shape changes, and guards what follows
	shape  Shape
	closed bool
	err    error // what Close returned
}

// Open creates the two devices, up and with the given MTU in bytes, and starts
// to carry packets between them. The link runs until Close, whatever becomes
// of ctx. Errors are of kind drover.Invalid when an argument is out of range,
// drover.Exists when a device of that name is there already, drover.Denied
// without the right to create devices, and leave nothing behind.
func Open(ctx context.Context, log *slog.Logger, name string, mtu int, a, b End, shape Shape) (*Link, error) {
	op := "open link " + name
	if err := ctx.Err(); err != nil {
		return nil, drover.E(drover.Canceled, op, err)
	}
	if name == "" {
		return nil, drover.Errorf(drover.Invalid, op, "name is empty")
	}
	if mtu < MinMTU || mtu > MaxMTU {
		return nil, drover.Errorf(drover.Invalid, op, "mtu %d: want %d to %d", mtu, MinMTU, MaxMTU)
	}
	if err := shape.Validate(); err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	l := &Link{log: log.With("link", name), name: name, ends: [2]End{a, b}, shape: shape}
	if err := l.open(mtu); err != nil {
		return nil, drover.E(openKind(err), op, errors.Join(err, l.closeFiles()))
	}
	for i, p := range l.pumps {
		from, to := l.ends[i].Name, l.ends[1-i].Name
		for _, run := range []func() error{p.read, p.tick} {
			l.group.Go(func() error {
				if err := run(); err != nil {
					l.log.Error("link stopped carrying packets", "from", from, "to", to, "err", err)
					return fmt.Errorf("%s to %s: %w", from, to, err)
				}
				return nil
			})
		}
	}
	l.log.Debug("link open", "a", a.Name, "b", b.Name, "shape", shape.String())
	return l, nil
}

func openKind(err error) drover.Kind {
	switch {
	case errors.Is(err, unix.EINVAL):
		return drover.Invalid
	case errors.Is(err, unix.EBUSY):
		return drover.Exists
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return drover.Denied
	case errors.Is(err, unix.ENOENT):
		return drover.NotFound
	default:
		return drover.Internal
	}
}

// open makes the devices and the pumps; what it made when it fails is in
// l.files.
func (l *Link) open(mtu int) error {
	var fds [2]int
	for i, e := range l.ends {
		fd, err := openTAP(e, mtu)
		if err != nil {
			return fmt.Errorf("end %s, interface %s: %w", e.Name, e.Interface, err)
		}
		// The descriptor does not block, so the runtime's poller takes it.
		fds[i] = fd
		l.files = append(l.files, os.NewFile(uintptr(fd), e.Interface))
	}
	epoch := time.Now()
	for i := range l.pumps {
		p, err := newPump(l.files[i], fds[1-i], epoch, newShaper(l.shape, seed(l.name, i)))
		if err != nil {
			return err
		}
		l.pumps[i] = p
		l.files = append(l.files, p.timer.file)
	}
	return nil
}

// seed makes loss and jitter of a link the same in every run of a lab.
func seed(name string, direction int) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%d", name, direction)
	return h.Sum64()
}

// Name returns the link's name.
func (l *Link) Name() string { return l.name }

// SetShape replaces the shape, in both directions, while packets flow. Frames
// that wait are sent at the new rate; a shorter delay hastens frames in flight,
// a longer one leaves them. An error of kind drover.Invalid changes nothing.
func (l *Link) SetShape(s Shape) error {
	_, err := l.update(func(Shape) Shape { return s })
	return err
}

// Change replaces only the settings that c names, and returns the new status.
func (l *Link) Change(c ShapeChange) (Status, error) {
	if _, err := l.update(c.Apply); err != nil {
		return Status{}, err
	}
	return l.Status(), nil
}

func (l *Link) update(change func(Shape) Shape) (Shape, error) {
	op := "set link " + l.name
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return Shape{}, drover.Errorf(drover.Unavailable, op, "the link is closed")
	}
	s := change(l.shape)
	if err := s.Validate(); err != nil {
		return Shape{}, drover.E(drover.Invalid, op, err)
	}
	l.shape = s
	for _, p := range l.pumps {
		p.set(s)
	}
	l.log.Debug("link set", "shape", s.String())
	return s, nil
}

// Status returns the shape and what was carried until now. It works on a
// closed link, too.
func (l *Link) Status() Status {
	l.mu.Lock()
	shape := l.shape
	l.mu.Unlock()
	return Status{
		Name:    l.name,
		Ends:    [2]string{l.ends[0].Name, l.ends[1].Name},
		Shape:   shape,
		Forward: l.pumps[0].counters(),
		Reverse: l.pumps[1].counters(),
	}
}

// Close stops the link and removes its devices; packets in flight are lost.
// Its error says if the link had stopped carrying packets before, for instance
// because somebody else had removed a device. Later calls return the same.
func (l *Link) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.err
	}
	l.closed = true
	var errs []error
	for _, p := range l.pumps {
		errs = append(errs, p.halt())
	}
	err := errors.Join(errors.Join(errs...), l.group.Wait(), l.closeFiles())
	l.err = drover.E(drover.Internal, "close link "+l.name, err)
	return l.err
}

func (l *Link) closeFiles() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	l.files = nil
	return errors.Join(errs...)
}
