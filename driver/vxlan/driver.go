package vxlan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/namespace"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var _ driver.Segments = (*Segments)(nil)

const (
	// DefaultPort is VXLAN's, RFC 7348.
	DefaultPort = 4789
	// DefaultFloodFrames is 12 Mbit/s of full frames for everybody: far above
	// what discovery and DHCP of a segment need, far below what a WAN carries.
	DefaultFloodFrames = 1000
)

// Config describes the driver.
type Config struct {
	// Port is the UDP port of VXLAN, the same at all edges; zero is DefaultPort.
	Port uint16
	// FloodFrames is how many frames a second to everybody and to stations that are
	// not known may enter a tunnel; zero is DefaultFloodFrames.
	FloodFrames uint64
	// Log may be nil.
	Log *slog.Logger
}

// Segments is the driver in one network namespace.
type Segments struct {
	cfg Config
	log *slog.Logger
	ns  netns.NsHandle
	nl  *netlink.Handle
	nft *nftables.Conn

	mu     sync.Mutex // all of a method, as two changes of one extension must not mix
	closed bool
	guards map[uint32]*guard // by VNI, of the extensions there are

	running sync.WaitGroup // what the guards run
}

// Open returns a driver that works in the network namespace of the calling
// thread. Extensions that are there are found, and guarded against loops again.
func Open(ctx context.Context, cfg Config) (*Segments, error) {
	const op = "open vxlan"
	cfg.Port = cmp.Or(cfg.Port, DefaultPort)
	cfg.FloodFrames = cmp.Or(cfg.FloodFrames, DefaultFloodFrames)
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ns, err := netns.Get()
	if err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	s := &Segments{cfg: cfg, log: log, ns: ns, guards: map[uint32]*guard{}}
	if s.nl, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		return nil, drover.E(drover.Internal, op, errors.Join(err, s.release()))
	}
	if s.nft, err = nftables.New(nftables.WithNetNSFd(int(ns)), nftables.AsLasting()); err != nil {
		return nil, drover.E(drover.Internal, op, errors.Join(err, s.release()))
	}
	if err := s.guardAll(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// guardAll takes up the guards of the extensions that are there.
func (s *Segments) guardAll(ctx context.Context) error {
	if err := s.begin(ctx, "find extensions"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	found, err := s.extensions()
	if err != nil {
		return err
	}
	for _, e := range found {
		if e.link == nil || e.bridge == "" {
			continue
		}
		if err := s.guardStart(e); err != nil {
			return err
		}
	}
	return nil
}

// begin takes the lock unless the operation cannot begin. On success the
// caller unlocks.
func (s *Segments) begin(ctx context.Context, op string) error {
	s.mu.Lock()
	var err error
	switch {
	case s.closed:
		err = drover.Errorf(drover.Canceled, op, "the driver is closed")
	case ctx.Err() != nil:
		err = drover.E(drover.Canceled, op, ctx.Err())
	}
	if err != nil {
		s.mu.Unlock()
	}
	return err
}

// Close ends the guards; extensions stay.
func (s *Segments) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	guards := s.guards
	s.guards = nil
	s.mu.Unlock()
	for _, g := range guards {
		g.stop()
	}
	s.running.Wait() // outside of the lock: a guard that has found a loop takes it
	return s.release()
}

func (s *Segments) release() error {
	var err error
	if s.nft != nil {
		err = s.nft.CloseLasting()
	}
	if s.nl != nil {
		s.nl.Close()
	}
	return errors.Join(err, s.ns.Close())
}

// within runs f in the driver's network namespace, for what makes
// sockets of its own.
func (s *Segments) within(f func() error) error {
	return namespace.In(s.ns, f)
}

// fail wraps what the kernel said, with the kind it stands for.
func fail(op string, err error) error {
	var e *drover.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return drover.E(e.Kind, op, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return drover.E(drover.Canceled, op, err)
	case errors.Is(err, os.ErrPermission):
		return drover.E(drover.Denied, op, err)
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENFILE), errors.Is(err, unix.EMFILE):
		return drover.E(drover.Exhausted, op, err)
	}
	return drover.E(drover.Internal, op, err)
}

// missing reports whether the kernel says that there is no such thing.
func missing(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) || errors.As(err, &none)
}

// dumpTries bounds how often a listing is repeated that the kernel says was
// not consistent: each needs a change at the same moment.
const dumpTries = 5

func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		got, err := list()
		if err == nil || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
		if try == dumpTries {
			return nil, fmt.Errorf("after %d tries: %w", try, err)
		}
	}
}
