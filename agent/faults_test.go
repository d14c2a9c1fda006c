package agent

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/memory"
)

// errDead is what a killed agent's work gets.
var errDead = drover.E(drover.Unavailable, "", errors.New("this process is dead"))

// gate is a hypervisor as one life of an agent sees it: once that is dead, its
// calls have no effect.
type gate struct {
	*memory.Hypervisor
	life *life
	// deaf guests do not do what their power button asks for.
	deaf *atomic.Bool
}

func (g *gate) VM(ctx context.Context, name string) (drover.VM, error) {
	if g.life.dead.Load() {
		return drover.VM{}, errDead
	}
	return g.Hypervisor.VM(ctx, name)
}

func (g *gate) Begin(ctx context.Context, name string, s driver.MigrationSpec) (driver.Outgoing, error) {
	if g.life.dead.Load() {
		return nil, errDead
	}
	return g.Hypervisor.Begin(ctx, name, s)
}

func (g *gate) Prepare(ctx context.Context, s driver.MigrationSpec, o driver.Offer) (driver.Incoming, error) {
	if g.life.dead.Load() {
		return nil, errDead
	}
	return g.Hypervisor.Prepare(ctx, s, o)
}

func (g *gate) Settle(ctx context.Context, name string, to driver.Settlement) error {
	if g.life.dead.Load() {
		return errDead
	}
	return g.Hypervisor.Settle(ctx, name, to)
}

func (g *gate) CopyDisk(ctx context.Context, name string, c driver.DiskCopy) error {
	if g.life.dead.Load() {
		return errDead
	}
	return g.Hypervisor.CopyDisk(ctx, name, c)
}

func (g *gate) EndDiskCopy(ctx context.Context, name, target string, pivot bool) error {
	if g.life.dead.Load() {
		return errDead
	}
	return g.Hypervisor.EndDiskCopy(ctx, name, target, pivot)
}

func (g *gate) Start(ctx context.Context, name string) error {
	if g.life.dead.Load() {
		return errDead
	}
	return g.Hypervisor.Start(ctx, name)
}

func (g *gate) Define(ctx context.Context, def driver.Definition) (string, error) {
	if g.life.dead.Load() {
		return "", errDead
	}
	return g.Hypervisor.Define(ctx, def)
}

func (g *gate) Undefine(ctx context.Context, name string) error {
	if g.life.dead.Load() {
		return errDead
	}
	return g.Hypervisor.Undefine(ctx, name)
}

func (g *gate) Shutdown(ctx context.Context, name string) error {
	if g.life.dead.Load() {
		return errDead
	}
	if g.deaf.Load() {
		return nil
	}
	return g.Hypervisor.Shutdown(ctx, name)
}

func (g *gate) Destroy(ctx context.Context, name string) error {
	if g.life.dead.Load() {
		return errDead
	}
	return g.Hypervisor.Destroy(ctx, name)
}

// faultyListener can sever what it has accepted, and refuse for a while.
type faultyListener struct {
	net.Listener

	mu    sync.Mutex
	conns []net.Conn
	cut   bool
}

func (l *faultyListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		cut := l.cut
		l.conns = append(l.conns, c)
		l.mu.Unlock()
		if !cut {
			return c, nil
		}
		_ = c.Close()
	}
}

// sever breaks every connection there is.
func (l *faultyListener) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
	l.conns = nil
}

// partition severs and refuses until healed.
func (l *faultyListener) partition(on bool) {
	l.mu.Lock()
	l.cut = on
	l.mu.Unlock()
	if on {
		l.sever()
	}
}

func (l *faultyListener) isCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut
}
