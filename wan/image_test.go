package wan

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/chunk"
)

// content is an image at rest.
type content []byte

var _ driver.ImageReader = content(nil)

func (c content) Size() int64  { return int64(len(c)) }
func (c content) Close() error { return nil }

func (c content) ReadAt(p []byte, off int64) (int, error) {
	if off >= c.Size() {
		return 0, io.EOF
	}
	n := copy(p, c[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (c content) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	yield(driver.Extent{Length: c.Size()})
	return ctx.Err()
}

func (c content) open(context.Context) (driver.ImageReader, error) { return c, nil }

// id names the content, whatever its opener gives.
func (c content) id() driver.ContentID { return blake3.Sum256(c) }

// golden makes an image known to a site.
func (s *site) golden(t testing.TB, tenant string, id driver.ContentID, c content) {
	t.Helper()
	must(t, s.node.AddImage(t.Context(), tenant, id, drover.Bytes(c.Size()), c.open))
	s.indexed(t, chunk.SourceID(id))
}

// ramDisk is a disk of the QEMU at the destination, and an image that a copy
// is written to.
type ramDisk struct {
	mu    sync.Mutex
	data  []byte
	fail  error         // of writes
	hold  chan struct{} // writes wait until it is closed; nil: they do not
	rot   int64         // one bit of this byte reads wrong; 0: none does
	seals []CopyReport
	// unflushed says that something was written since the last flush.
	unflushed bool
	closed    int
}

func newDisk(size int) *ramDisk { return &ramDisk{data: make([]byte, size)} }

func (d *ramDisk) Size() int64 { return int64(len(d.data)) }

func (d *ramDisk) bytes() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]byte(nil), d.data...)
}

func (d *ramDisk) read(p []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := copy(p, d.data[off:])
	if d.rot > 0 && off <= d.rot && d.rot < off+int64(n) {
		p[d.rot-off] ^= 1
	}
}

func (d *ramDisk) write(off, length int64, p []byte) error {
	if d.hold != nil {
		<-d.hold
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	d.unflushed = true
	if p == nil {
		clear(d.data[off:][:length])
		return nil
	}
	copy(d.data[off:], p)
	return nil
}

func (d *ramDisk) flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unflushed = false
	return d.fail
}

// exported is the disk as QEMU's NBD server has it.
type exported struct{ *ramDisk }

var _ nbd.Backend = exported{}

func (e exported) ReadAt(_ context.Context, p []byte, off int64) error { e.read(p, off); return nil }

func (e exported) Write(_ context.Context, p []byte, off int64) error {
	return e.write(off, int64(len(p)), p)
}

func (e exported) Zero(_ context.Context, off, length int64, _ nbd.ZeroOptions) error {
	return e.write(off, length, nil)
}
func (e exported) Trim(context.Context, int64, int64) error { return nil }
func (e exported) Flush(context.Context) error              { return e.flush() }

// written is the disk as what a copy is written to.
type written struct{ *ramDisk }

var _ Image = written{}

func (w written) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > w.Size() {
		return 0, io.EOF
	}
	w.read(p, off)
	return len(p), nil
}

func (w written) WriteAt(p []byte, off int64) (int, error) {
	if err := w.write(off, int64(len(p)), p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w written) Zero(_ context.Context, off, length int64) error { return w.write(off, length, nil) }
func (w written) Flush(context.Context) error                     { return w.flush() }

func (w written) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed++
	return nil
}

func (w written) Seal(r CopyReport) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unflushed {
		return drover.Errorf(drover.Internal, "seal", "not all of it is durable")
	}
	w.seals = append(w.seals, r)
	return nil
}

// serveNBD is the NBD server of the QEMU at the destination.
func serveNBD(t testing.TB, disks map[string]*ramDisk) (socket string) {
	t.Helper()
	socket = filepath.Join(socketDir(t), "d")
	l, err := net.Listen("unix", socket)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				_ = nbd.Serve(ctx, conn, nbd.ServerOptions{Open: func(_ context.Context, name string) (nbd.Backend, error) {
					if d := disks[name]; d != nil {
						return exported{d}, nil
					}
					return nil, drover.Errorf(drover.NotFound, "open", "no export %q", name)
				}})
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
		ends(t, "the NBD server's end", group.Wait)
	})
	return socket
}

// mirror connects to a sender's disk as QEMU's mirror job does.
func (s *session) mirror(t testing.TB, export string) *nbd.Client {
	t.Helper()
	conn, err := net.Dial("unix", s.disks(t))
	must(t, err)
	c, err := nbd.New(t.Context(), conn, nbd.Options{Export: export})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// disks makes the sender listen for disks, once.
func (s *session) disks(t testing.TB) string {
	t.Helper()
	path := filepath.Join(s.dir, "d")
	s.out.mu.Lock()
	listening := s.out.disks != nil
	s.out.mu.Unlock()
	if !listening {
		must(t, s.out.ListenDisks(path))
	}
	return path
}
