package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// memory is a Backend whose flush waits until it is told to go on.
type memory struct {
	mu    sync.Mutex
	disk  []byte
	zero  []ZeroOptions
	fail  error
	flush chan struct{} // if set, a flush takes one
	began chan struct{} // if set, tells that a flush has begun
}

func (m *memory) Size() int64 { return int64(len(m.disk)) }

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(p, m.disk[off:])
	return m.fail
}

func (m *memory) Write(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.disk[off:], p)
	return m.fail
}

func (m *memory) Zero(_ context.Context, off, n int64, o ZeroOptions) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.disk[off:][:n])
	m.zero = append(m.zero, o)
	return m.fail
}

func (m *memory) Trim(ctx context.Context, off, n int64) error {
	return m.Zero(ctx, off, n, ZeroOptions{})
}

func (m *memory) Flush(ctx context.Context) error {
	if m.began != nil {
		m.began <- struct{}{}
	}
	if m.flush != nil {
		select {
		case <-m.flush:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fail
}

// listen serves the exports on a unix socket until the test ends and returns
// its path.
func listen(t testing.TB, exports map[string]*memory) string {
	return listenAny(t, func(name string) Backend {
		if m := exports[name]; m != nil {
			return m
		}
		return nil
	})
}

func listenAny(t testing.TB, find func(name string) Backend) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	o := ServerOptions{Open: func(_ context.Context, name string) (Backend, error) {
		if b := find(name); b != nil {
			return b, nil
		}
		return nil, fmt.Errorf("%q is not served here", name)
	}}
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { Serve(ctx, conn, o) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	return path
}

func dialServer(t testing.TB, path, export string) *Client {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(t.Context(), conn, Options{Export: export})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestServerAndClient: what our own client wrote is there and comes back, by
// several connections at once.
func TestServerAndClient(t *testing.T) {
	m := &memory{disk: make([]byte, 16<<20)}
	path := listen(t, map[string]*memory{"d": m})
	var wg sync.WaitGroup
	for i := range 4 {
		c := dialServer(t, path, "d")
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(i)))
			base := int64(i) << 22
			want := make([]byte, 4<<20)
			for range 30 {
				off := r.Int64N(3 << 20)
				n := r.Int64N(1<<20) + 1
				var err error
				switch r.IntN(4) {
				case 0:
					clear(want[off : off+n])
					err = c.ZeroWith(t.Context(), base+off, n, ZeroOptions{KeepSpace: true})
				case 1:
					clear(want[off : off+n])
					err = c.Trim(t.Context(), base+off, n)
				default:
					for j := off; j < off+n; j += 3 {
						want[j] = byte(r.Uint32())
					}
					_, err = c.WriteAt(want[off:off+n], base+off)
				}
				if err != nil {
					t.Error(err)
				}
			}
			got := make([]byte, len(want))
			if _, err := c.ReadAt(got, base); err != nil || !bytes.Equal(got, want) {
				t.Errorf("read back: %v, equal %t", err, bytes.Equal(got, want))
			}
			if err := c.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(m.zero) == 0 {
		t.Error("no zero reached the backend")
	}
}

// TestSlowFlush: replies overtake a flush that takes its time.
func TestSlowFlush(t *testing.T) {
	m := &memory{disk: make([]byte, 1<<20), flush: make(chan struct{}), began: make(chan struct{})}
	c := dialServer(t, listen(t, map[string]*memory{"": m}), "")
	done := make(chan error)
	go func() { done <- c.Flush(t.Context()) }()
	<-m.began
	if _, err := c.WriteAt([]byte("x"), 5); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(make([]byte, 9), 0); err != nil {
		t.Fatal(err)
	}
	m.flush <- struct{}{}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestServerReportsErrors(t *testing.T) {
	m := &memory{disk: make([]byte, 1<<20), fail: fmt.Errorf("far away: %w", syscall.ENOSPC)}
	path := listen(t, map[string]*memory{"d": m})
	c := dialServer(t, path, "d")
	for name, err := range map[string]error{
		"write": second(c.WriteAt(make([]byte, 3<<19)[:1<<20], 0)), "read": second(c.ReadAt(make([]byte, 10), 0)),
		"zero": c.Zero(t.Context(), 0, 10), "trim": c.Trim(t.Context(), 0, 10), "flush": c.Flush(t.Context()),
	} {
		var se *ServerError
		if !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &se) || !strings.Contains(se.Text, "far away") {
			t.Errorf("%s: %v", name, err)
		}
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), conn, Options{Export: "other"}); err == nil || !strings.Contains(err.Error(), "not served here") {
		t.Errorf("unknown export: %v", err)
	}
}

func second(_ int, err error) error { return err }

// TestClientGoes: what waits for the backend ends when the client has gone,
// even while the server does not read (the hang-up is looked for).
func TestClientGoes(t *testing.T) {
	began, ended := make(chan struct{}), make(chan error, 1)
	server, client := socketPair(t)
	finished := make(chan error)
	go func() {
		finished <- Serve(context.Background(), server, ServerOptions{Open: func(context.Context, string) (Backend, error) {
			return &stuck{memory: memory{disk: make([]byte, 4096)}, began: began, ended: ended}, nil
		}})
	}()
	c, err := New(t.Context(), client, Options{})
	if err != nil {
		t.Fatal(err)
	}
	go c.WriteAt([]byte("x"), 0)
	<-began
	c.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the backend's context ended with %v", err)
	}
	<-finished
}

// stuck never takes a write.
type stuck struct {
	memory
	began chan struct{}
	ended chan error
}

func (s *stuck) Write(ctx context.Context, _ []byte, _ int64) error {
	close(s.began)
	<-ctx.Done()
	s.ended <- ctx.Err()
	return ctx.Err()
}

func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "p"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if b, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if a, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// TestQEMU lets QEMU's own client work on the server.
func TestQEMU(t *testing.T) {
	m := &memory{disk: make([]byte, 40<<20)}
	path := listen(t, map[string]*memory{"drive-virtio-disk0": m})
	uri := "nbd+unix:///drive-virtio-disk0?socket=" + path
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil || strings.Contains(string(out), "failed") {
			t.Fatalf("%s %q (package qemu-utils): %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run("qemu-io", "-f", "raw",
		"-c", "write -P 7 0 34M", "-c", "write -f -P 9 4097 1000", "-c", "flush", "-c", "write -z -u 1M 33M",
		"-c", "write -z 512 512", "-c", "discard 64k 64k", "-c", "aio_write -P 3 35M 1M", "-c", "aio_write -P 4 36M 1M", "-c", "aio_flush",
		"-c", "read -P 9 4097 1000", "-c", "read -P 7 0 512", "-c", "read -P 0 1M 33M", "-c", "read -P 3 35M 1M", "-c", "read -P 4 36M 1M", uri)
	want := make([]byte, 40<<20)
	for from, b := range map[[2]int]byte{{0, 1 << 20}: 7, {35 << 20, 36 << 20}: 3, {36 << 20, 37 << 20}: 4} {
		copy(want[from[0]:from[1]], bytes.Repeat([]byte{b}, from[1]-from[0]))
	}
	copy(want[4097:], bytes.Repeat([]byte{9}, 1000))
	clear(want[512:1024])
	clear(want[64<<10 : 128<<10])
	if !bytes.Equal(m.disk, want) {
		t.Error("the content is not what qemu-io wrote")
	}
	if out := run("qemu-img", "info", uri); !strings.Contains(out, "40 MiB") {
		t.Errorf("qemu-img info: %s", out)
	}
	file := filepath.Join(t.TempDir(), "copy.raw")
	run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, file)
	run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, file)
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "read 0 1", "nbd+unix:///none?socket="+path).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "not served here") {
		t.Errorf("a wrong export: %v, %s", err, out)
	}
}

// coarse is a backend that takes whole blocks only.
type coarse struct{ memory }

func (c *coarse) BlockBytes() int64 { return 512 }

// TestBlocks: QEMU keeps to the blocks that it is told of, and what does not is
// refused.
func TestBlocks(t *testing.T) {
	m := &coarse{memory{disk: bytes.Repeat([]byte{5}, 1<<20)}}
	path := listenAny(t, func(string) Backend { return m })
	out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 9 777 1000", "-c", "read -P 5 0 777", "-c", "read -P 9 777 1000",
		"nbd+unix:///x?socket="+path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "failed") || m.disk[776] != 5 || m.disk[777] != 9 {
		t.Errorf("qemu-io (package qemu-utils): %v\n%s", err, out)
	}
	c := dialServer(t, path, "x")
	if c.BlockBytes() != 512 {
		t.Errorf("blocks of %d", c.BlockBytes())
	}
	c.session.minBlock = 1 // as a client that does not care
	if _, err := c.WriteAt([]byte("x"), 3); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("write of a byte: %v", err)
	}
}

// TestOldHandshake: EXPORT_NAME and simple replies, large reads included.
func TestOldHandshake(t *testing.T) {
	m := &memory{disk: bytes.Repeat([]byte("abcd"), 1<<20)}
	conn, err := net.Dial("unix", listen(t, map[string]*memory{"old": m}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(append(numbers(uint32(flagFixedNewstyle), uint64(magicOption), uint32(optExtendedHeaders), uint32(0),
		uint64(magicOption), uint32(optExportName), uint32(3)), "old"...))
	head := make([]byte, 18+20+8+2+124)
	if _, err := io.ReadFull(conn, head); err != nil {
		t.Fatal(err)
	}
	if kind := binary.BigEndian.Uint32(head[18+12:]); kind != repErrUnsup {
		t.Errorf("extended headers answered with %#x", kind)
	}
	if size := binary.BigEndian.Uint64(head[38:]); size != 4<<20 {
		t.Errorf("size %d", size)
	}
	for _, tt := range []struct {
		off   uint64
		n     uint32
		errno uint32
	}{{4, 3 << 20, 0}, {4 << 20, 1, uint32(syscall.EINVAL)}, {1<<64 - 2, 4, uint32(syscall.EINVAL)}, {0, 4, 0}} {
		conn.Write(numbers(uint32(magicRequest), uint16(0), uint16(cmdRead), uint64(77), tt.off, tt.n))
		r := make([]byte, 16)
		io.ReadFull(conn, r)
		if !bytes.Equal(r, numbers(uint32(magicSimple), tt.errno, uint64(77))) {
			t.Fatalf("reply %x", r)
		}
		if tt.errno == 0 {
			b := make([]byte, tt.n)
			if _, err := io.ReadFull(conn, b); err != nil || !bytes.Equal(b, m.disk[tt.off:][:tt.n]) {
				t.Fatalf("data: %v", err)
			}
		}
	}
}

// FuzzServer: no bytes from a client make the server panic, hang or touch what
// lies outside of the export.
func FuzzServer(f *testing.F) {
	hello := numbers(uint32(3), uint64(magicOption), uint32(optStructuredReply), uint32(0))
	goes := append(bytes.Clone(hello), numbers(uint64(magicOption), uint32(optGo), uint32(8), uint32(0), uint16(1), uint16(3))...)
	for _, cmd := range []uint16{cmdRead, cmdWrite, cmdTrim, cmdFlush, cmdWriteZeroes, cmdDisc, cmdCache, 99} {
		f.Add(append(bytes.Clone(goes), append(numbers(uint32(magicRequest), uint16(1), cmd, uint64(1), uint64(8), uint32(4)), 1, 2, 3, 4)...))
	}
	f.Add(append(hello, numbers(uint64(magicOption), uint32(optInfo), uint32(6), uint32(1<<30), uint16(1))...))
	f.Add(numbers(uint32(1), uint64(magicOption), uint32(optList), uint32(0), uint64(magicOption), uint32(77), uint32(1<<20)))
	f.Fuzz(func(t *testing.T, b []byte) {
		Serve(t.Context(), &replay{Reader: bytes.NewReader(b)}, ServerOptions{Open: func(context.Context, string) (Backend, error) {
			return &memory{disk: make([]byte, 4096)}, nil
		}})
	})
}

// replay is a connection from which bytes come and into which any may go.
type replay struct {
	io.Reader
	net.Conn
}

func (r *replay) Read(p []byte) (int, error)      { return r.Reader.Read(p) }
func (r *replay) Write(p []byte) (int, error)     { return len(p), nil }
func (r *replay) Close() error                    { return nil }
func (r *replay) SetReadDeadline(time.Time) error { return nil }

// both is a Parallel backend that lets no write go on before there are two.
type both struct {
	memory
	arrived chan struct{}
	go2     chan struct{}
}

func (b *both) Parallel() {}

func (b *both) Write(ctx context.Context, p []byte, off int64) error {
	b.arrived <- struct{}{}
	select {
	case <-b.go2:
	case <-ctx.Done():
		return ctx.Err()
	}
	return b.memory.Write(ctx, p, off)
}

// Operations of a backend that wants it so do not wait for each other.
func TestParallel(t *testing.T) {
	b := &both{memory: memory{disk: make([]byte, 1<<20)}, arrived: make(chan struct{}), go2: make(chan struct{})}
	path := listenAny(t, func(string) Backend { return b })
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(t.Context(), conn, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	errs := make(chan error, 2)
	for i := range 2 {
		go func() {
			_, err := c.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), int64(i)*4096)
			errs <- err
		}()
	}
	for range 2 {
		select {
		case <-b.arrived:
		case <-time.After(10 * time.Second):
			t.Fatal("a write waits for the other")
		}
	}
	close(b.go2)
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if b.disk[0] != 1 || b.disk[4096] != 2 {
		t.Error("what was written is not there")
	}
	// A run of zeros comes as a hole, and reads as zeros.
	p := bytes.Repeat([]byte{7}, 8192)
	if _, err := c.ReadAt(p, 4096); err != nil || p[0] != 2 || !bytes.Equal(p[4096:], make([]byte, 4096)) {
		t.Errorf("read %v: %v", p[:1], err)
	}
}
