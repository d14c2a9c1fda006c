package remote

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const diskBytes = 1 << 20

// memoryImage is an image whose writes are on the disk only after a flush.
type memoryImage struct {
	mu      sync.Mutex
	content []byte
	durable []byte
	fail    error
	// hold, if set, is received from before a write is carried out.
	hold    chan struct{}
	flushes atomic.Int64
}

func newImage() *memoryImage {
	return &memoryImage{content: make([]byte, diskBytes), durable: make([]byte, diskBytes)}
}

func (m *memoryImage) Size() int64 { return diskBytes }

func (m *memoryImage) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.content[off:]), m.fail
}

func (m *memoryImage) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	if hold != nil {
		<-hold
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	return copy(m.content[off:], p), nil
}

func (m *memoryImage) Zero(_ context.Context, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.content[off:][:n])
	return m.fail
}

// Allocation says of each block whether it is zero.
func (m *memoryImage) Allocation(_ context.Context, off, length int64, yield func(int64, bool)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; length > 0; off, length = off+4096, length-4096 {
		yield(4096, bytes.Equal(m.content[off:][:4096], make([]byte, 4096)))
	}
	return m.fail
}

func (m *memoryImage) Flush(context.Context) error {
	m.flushes.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.durable, m.content)
	return m.fail
}

func (m *memoryImage) Close() error { return nil }

func (m *memoryImage) onDisk(off, n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.durable[off:][:n])
}

// link is the way between the two ends, which can be cut.
type link struct {
	share *Share
	ctx   context.Context
	group sync.WaitGroup

	mu    sync.Mutex
	down  bool
	conns []net.Conn
	dials int
}

func (l *link) dial(context.Context) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dials++
	if l.down {
		return nil, errors.New("the link is cut")
	}
	near, far := net.Pipe()
	l.conns = append(l.conns, near, far)
	l.group.Go(func() { _ = l.share.Serve(l.ctx, far) })
	return near, nil
}

// cut ends all connections; set keeps others from being made.
func (l *link) cut(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

// fixture is a client of a disk over a link, as QEMU is.
type fixture struct {
	t     *testing.T
	image *memoryImage
	share *Share
	link  *link
	disk  *Disk
	ready atomic.Bool
	qemu  *nbd.Client
}

func newFixture(t *testing.T) *fixture {
	ctx, cancel := context.WithCancel(context.Background())
	f := &fixture{t: t, image: newImage()}
	f.ready.Store(true)
	f.share = NewShare(ShareOptions{Size: diskBytes, Open: func(context.Context) (Image, error) {
		if !f.ready.Load() {
			return nil, errors.New("the guest has not left")
		}
		return f.image, nil
	}})
	f.link = &link{share: f.share, ctx: ctx}
	f.disk = New(Options{Size: diskBytes, Export: "vm/vda", Dial: f.link.dial})
	t.Cleanup(func() {
		if f.qemu != nil {
			_ = f.qemu.Close()
		}
		f.disk.Close()
		if err := f.share.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		f.link.cut(true)
		f.link.group.Wait()
	})
	f.connect()
	return f
}

// connect has QEMU connect (again).
func (f *fixture) connect() {
	f.t.Helper()
	near, far := net.Pipe()
	f.link.group.Go(func() { _ = f.disk.Serve(f.link.ctx, far) })
	var err error
	if f.qemu, err = nbd.New(f.t.Context(), near, nbd.Options{Export: "vda", Contexts: []string{nbd.Allocation}}); err != nil {
		f.t.Fatal(err)
	}
	if f.qemu.Size() != diskBytes {
		f.t.Fatalf("the disk has %d bytes", f.qemu.Size())
	}
}

func (f *fixture) write(off int64, p []byte) {
	f.t.Helper()
	if _, err := f.qemu.WriteAt(p, off); err != nil {
		f.t.Fatal(err)
	}
}

func block(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }

// What is acknowledged is durable at the far end, without a flush of the guest's.
func TestAcknowledgedIsDurable(t *testing.T) {
	f := newFixture(t)
	f.disk.Open()
	for i := range 16 {
		p := block(byte(i + 1))
		f.write(int64(i)*4096, p)
		if got := f.image.onDisk(i*4096, 4096); !bytes.Equal(got, p) {
			t.Fatalf("block %d was acknowledged and is not on the disk", i)
		}
	}
	if err := f.qemu.Zero(t.Context(), 4096, 4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3*4096)
	if _, err := f.qemu.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if want := bytes.Join([][]byte{block(1), make([]byte, 4096), block(3)}, nil); !bytes.Equal(got, want) {
		t.Error("what was read is not what was written")
	}
	figures := f.disk.Figures()
	if figures.WrittenBytes != 16*4096 || figures.ReadBytes != 3*4096 || figures.Operations != 18 {
		t.Errorf("figures %+v", figures)
	}
}

// What reads as zeros is told, so that a copy need not read it.
func TestZerosAreKnown(t *testing.T) {
	f := newFixture(t)
	f.disk.Open()
	f.write(8192, block(9))
	if !f.qemu.HasContext(0) {
		t.Fatal("nothing is told of what is data")
	}
	var st nbd.Status
	if err := f.qemu.BlockStatus(t.Context(), 4096, 3*4096, &st); err != nil {
		t.Fatal(err)
	}
	zero := uint64(nbd.FlagHole | nbd.FlagZero)
	want := []nbd.Extent{{Length: 4096, Flags: zero}, {Length: 4096}, {Length: 4096, Flags: zero}}
	if got := st.Extents[0]; !slices.Equal(got, want) {
		t.Errorf("extents %v, want %v", got, want)
	}
}

// Before it is opened a disk tells its size and nothing else, whether or not the
// far end is there.
func TestNotOpen(t *testing.T) {
	f := newFixture(t)
	f.link.cut(true)
	if _, err := f.qemu.ReadAt(make([]byte, 512), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("a read says %v, want %v", err, syscall.EIO)
	}
	if _, err := f.qemu.WriteAt(block(1), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("a write says %v, want %v", err, syscall.EIO)
	}
	if err := f.qemu.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// The far end has requests wait until it may open the image.
func TestWaitsForImage(t *testing.T) {
	f := newFixture(t)
	f.ready.Store(false)
	f.disk.Open()
	done := make(chan error, 1)
	go func() { _, err := f.qemu.WriteAt(block(7), 0); done <- err }()
	select {
	case err := <-done:
		t.Fatalf("the write has ended before the image was there: %v", err)
	case <-time.After(3 * reopenEvery):
	}
	f.ready.Store(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// While the link is cut requests wait; after it each is carried out, and nothing
// fails. QEMU goes too, and comes again.
func TestCuts(t *testing.T) {
	f := newFixture(t)
	f.disk.Open()
	r := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, diskBytes)
	for round := range 12 {
		var group sync.WaitGroup
		for lane := range 8 { // no two of them overlap
			off := (lane*32 + r.IntN(30)) * 4096
			p := block(byte(1 + r.IntN(255)))
			copy(want[off:], p)
			group.Go(func() {
				if _, err := f.qemu.WriteAt(p, int64(off)); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		f.link.cut(round%2 == 0)
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
		f.link.cut(false)
		group.Wait()
		if round%4 == 3 {
			_ = f.qemu.Close()
			f.connect()
		}
	}
	if got := f.image.onDisk(0, diskBytes); !bytes.Equal(got, want) {
		t.Error("the disk does not hold what was acknowledged")
	}
	if f.link.dials < 3 {
		t.Errorf("%d sessions: the cuts have cut nothing", f.link.dials)
	}
}

// A request from before a cut is carried out before the first from behind it is
// taken, or never.
func TestOldRequestsFirst(t *testing.T) {
	f := newFixture(t)
	f.disk.Open()
	hold := make(chan struct{})
	f.image.mu.Lock()
	f.image.hold = hold
	f.image.mu.Unlock()
	done := make(chan error, 2)
	go func() { _, err := f.qemu.WriteAt(block(1), 0); done <- err }()
	hold <- struct{}{} // the image has it, and another will be taken
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	go func() { _, err := f.qemu.WriteAt(block(2), 0); done <- err }()
	time.Sleep(20 * time.Millisecond) // under way at the image, which does not answer
	f.link.cut(false)
	select {
	case err := <-done:
		t.Fatalf("a write was acknowledged that the image has not carried out: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	close(hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	f.write(0, block(3))
	time.Sleep(50 * time.Millisecond)
	if got := f.image.onDisk(0, 4096); !bytes.Equal(got, block(3)) {
		t.Errorf("an old write came last: %d", got[0])
	}
}

// The image's own errors reach the guest; what they are not about goes on.
func TestImageFails(t *testing.T) {
	f := newFixture(t)
	f.disk.Open()
	f.image.mu.Lock()
	f.image.fail = syscall.ENOSPC
	f.image.mu.Unlock()
	if _, err := f.qemu.WriteAt(block(1), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write says %v, want %v", err, syscall.ENOSPC)
	}
	f.image.mu.Lock()
	f.image.fail = nil
	f.image.mu.Unlock()
	f.write(0, block(1))
}

// Writes at the same time share flushes.
func TestFlushesAreShared(t *testing.T) {
	f := newFixture(t)
	f.disk.Open()
	hold := make(chan struct{})
	f.image.mu.Lock()
	f.image.hold = hold
	f.image.mu.Unlock()
	var group sync.WaitGroup
	for i := range nbd.MaxInFlight {
		group.Go(func() {
			if _, err := f.qemu.WriteAt(block(1), int64(i)*4096); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	close(hold)
	group.Wait()
	if n := f.image.flushes.Load(); n == 0 || n > nbd.MaxInFlight {
		t.Errorf("%d flushes for %d writes", n, nbd.MaxInFlight)
	}
}

func TestSummary(t *testing.T) {
	var all []time.Duration
	for i := range 100 {
		all = append(all, time.Duration(100-i)*time.Millisecond)
	}
	mean, p95 := summary(all)
	if mean != 50500*time.Microsecond || p95 != 95*time.Millisecond {
		t.Errorf("mean %s, p95 %s, want 50.5ms and 95ms", mean, p95)
	}
	if mean, p95 = summary(nil); mean != 0 || p95 != 0 {
		t.Errorf("of nothing: %s, %s", mean, p95)
	}
}
