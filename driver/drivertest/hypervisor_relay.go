package drivertest

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// route is the way of one migration's bytes: at the source it listens on the
// memory and the disk socket, and passes on what comes to the sockets at which
// the destination's hypervisor listens.
type route struct {
	folder string
	memory *relay
	disk   *relay
}

// newRoute makes a route in a folder with a short path: the path of a unix
// socket has 107 bytes at most.
func newRoute(t *testing.T) *route {
	folder, err := os.MkdirTemp("", "drv")
	succeed(t, err)
	t.Cleanup(func() { succeed(t, os.RemoveAll(folder)) })
	return &route{
		folder: folder,
		memory: newRelay(t, filepath.Join(folder, "sm"), filepath.Join(folder, "dm")),
		disk:   newRelay(t, filepath.Join(folder, "sd"), filepath.Join(folder, "dd")),
	}
}

func (r *route) spec(vm drover.VM, side string, copyDisks bool) driver.MigrationSpec {
	spec := driver.MigrationSpec{
		Name:         vm.Name,
		MemorySocket: filepath.Join(r.folder, side+"m"),
		DiskSocket:   filepath.Join(r.folder, side+"d"),
		AutoConverge: true,
	}
	if copyDisks {
		for _, disk := range vm.Disks {
			spec.CopyDisks = append(spec.CopyDisks, disk.Target)
			spec.TopOnly = len(disk.Backing) > 0
		}
	}
	return spec
}

func (r *route) source(vm drover.VM, copyDisks bool) driver.MigrationSpec {
	return r.spec(vm, "s", copyDisks)
}

func (r *route) destination(vm drover.VM, copyDisks bool) driver.MigrationSpec {
	return r.spec(vm, "d", copyDisks)
}

// cut ends the relays and what runs through them, as the death of the process
// that holds them does.
func (r *route) cut() {
	r.memory.close()
	r.disk.close()
}

// relay passes connections from one unix socket to another.
type relay struct {
	to     string
	listen net.Listener
	done   sync.WaitGroup
	sent   atomic.Int64

	// After stallAt bytes (negative: never) the relay passes nothing on until
	// release is closed; stalled is closed then.
	stallAt int64
	stalled chan struct{}
	once    sync.Once
	release chan struct{}

	mu    sync.Mutex
	conns []net.Conn
	ended bool
}

func newRelay(t *testing.T, from, to string) *relay {
	listen, err := net.Listen("unix", from)
	succeed(t, err)
	r := &relay{to: to, listen: listen, stallAt: -1, stalled: make(chan struct{}), release: make(chan struct{})}
	r.done.Go(func() {
		for {
			conn, err := listen.Accept()
			if err != nil {
				return
			}
			r.done.Go(func() { r.pass(conn) })
		}
	})
	t.Cleanup(r.close)
	return r
}

// close ends the relay and waits for it.
func (r *relay) close() {
	r.mu.Lock()
	if !r.ended {
		r.ended = true
		close(r.release)
	}
	for _, conn := range r.conns {
		_ = conn.Close()
	}
	r.mu.Unlock()
	_ = r.listen.Close()
	r.done.Wait()
}

// hold keeps a connection for close; false when it came too late.
func (r *relay) hold(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, conn)
	return !r.ended
}

func (r *relay) pass(from net.Conn) {
	defer from.Close()
	if !r.hold(from) {
		return
	}
	to, err := net.Dial("unix", r.to)
	if err != nil {
		return
	}
	defer to.Close()
	if !r.hold(to) {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(from, to)
		_ = from.(*net.UnixConn).CloseWrite()
	})
	_, _ = io.Copy(gate{r, to}, from)
	_ = to.(*net.UnixConn).CloseWrite()
	back.Wait()
}

// gate is where the relay counts and stalls.
type gate struct {
	r  *relay
	to net.Conn
}

func (g gate) Write(p []byte) (int, error) {
	if total := g.r.sent.Add(int64(len(p))); g.r.stallAt >= 0 && total > g.r.stallAt {
		g.r.once.Do(func() { close(g.r.stalled) })
		<-g.r.release
	}
	return g.to.Write(p)
}
