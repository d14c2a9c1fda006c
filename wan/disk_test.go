package wan

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/chunk"
)

// writeAll writes a disk as a mirror job does, and flushes.
func writeAll(ctx context.Context, c *nbd.Client, data []byte) error {
	const step = 1 << 20
	for off := 0; off < len(data); off += step {
		if _, err := c.WriteAt(data[off:min(off+step, len(data))], int64(off)); err != nil {
			return err
		}
	}
	return c.Flush(ctx)
}

// copyDisk mirrors a disk to its end.
func copyDisk(t testing.TB, s *session, export string, data []byte) {
	t.Helper()
	must(t, writeAll(t.Context(), s.mirror(t, export), data))
}

// drain waits for what was acknowledged.
func (s *session) drain(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, s.out.Drain(ctx))
}

// TestDisks mirrors two disks at once, writes again, trims, zeroes, and reads
// through.
func TestDisks(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	disks := map[string]*ramDisk{"vda": newDisk(8 << 20), "vdb": newDisk(3<<20 + 512)}
	s := start(t, trip{from: north, to: south, disks: serveNBD(t, disks)})
	s.disks(t)
	var group sync.WaitGroup
	want := map[string][]byte{}
	for name, d := range disks {
		data := newGuest(uint64(len(d.data)), len(d.data)>>20+1).mem[:len(d.data)]
		want[name] = data
		c := s.mirror(t, name)
		group.Go(func() {
			r := rand.New(rand.NewPCG(4, uint64(len(data))))
			write := func(off, n int) {
				if _, err := c.WriteAt(data[off:off+n], int64(off)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			for off := 0; off < len(data); off += 1 << 20 {
				write(off, min(1<<20, len(data)-off))
			}
			for range 200 {
				off := r.IntN(len(data)/512) * 512
				n := min((1+r.IntN(32))*512, len(data)-off)
				if r.IntN(3) == 0 {
					clear(data[off:][:n])
					if err := c.Zero(t.Context(), int64(off), int64(n)); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					continue
				}
				noise(r, data[off:][:n])
				write(off, n)
			}
			got := make([]byte, 64<<10)
			if _, err := c.ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, data[1<<20:][:len(got)]) {
				t.Errorf("%s: read through the path: %v, or other bytes", name, err)
			}
		})
	}
	group.Wait()
	s.drain(t)
	for name, d := range disks {
		same(t, d.bytes(), want[name])
	}
	must(t, s.out.Err())
	must(t, s.in.Err())
	f := s.out.Figures()
	checkFigures(t, f)
	if f.Disk.GuestBytes < 11<<20 || f.Memory.GuestBytes != 0 || f.Switchover.GuestBytes != 0 {
		t.Errorf("figures %+v", f)
	}
}

// TestGolden mirrors a disk that is mostly an image that both sites have.
func TestGolden(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	golden := content(newGuest(5, 8).mem)
	for _, n := range []*site{north, south} {
		n.golden(t, "red", golden.id(), golden)
	}
	data := bytes.Clone(golden)
	noise(rand.New(rand.NewPCG(1, 1)), data[3<<20:][:256<<10])
	disks := map[string]*ramDisk{"vda": newDisk(len(data))}
	s := start(t, trip{from: north, to: south, disks: serveNBD(t, disks)})
	s.learned(t, int64(len(golden)/chunk.BlockBytes/2))
	copyDisk(t, s, "vda", data)
	s.drain(t)
	same(t, disks["vda"].bytes(), data)
	total := s.out.Figures().Total()
	if k := total.Kinds; k.Reference.Blocks < int64(len(data)/chunk.BlockBytes/2) || total.MissedReferences != 0 {
		t.Errorf("%d missed, kinds %+v", total.MissedReferences, k)
	}
	if total.WireBytes > 256<<10+total.GuestBytes/20 {
		t.Errorf("%d bytes on the wire for 256 KiB that are new", total.WireBytes)
	}
}

// TestMemoryOfDisk: memory that has what the session's disk has brought crosses as references to it.
func TestMemoryOfDisk(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	g := newNoise(6, 4)
	disks := map[string]*ramDisk{"vda": newDisk(len(g.mem))}
	there := arrive(t, nil, nil)
	s := start(t, trip{from: north, to: south, disks: serveNBD(t, disks), memory: there.path})
	copyDisk(t, s, "vda", g.mem)
	s.drain(t)
	migrate(t, s, there, g.stream(1, 16), nil)
	f := s.out.Figures()
	checkFigures(t, f)
	// What the compressors still hold when the pause comes is counted after it.
	memory := f.Memory.Plus(f.Switchover)
	if n := memory.Kinds.Reference.Blocks; n < int64(g.pages())*9/10 {
		t.Errorf("%d of %d pages crossed as references: %+v", n, g.pages(), memory.Kinds)
	}
	if f.Disk.WireBytes < 4<<20 || memory.WireBytes > 1<<20 {
		t.Errorf("%d bytes for the disk, %d for the memory", f.Disk.WireBytes, memory.WireBytes)
	}
}

// TestStaleImage: the destination's image is not what its id says.
func TestStaleImage(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	golden := content(newNoise(7, 6).mem)
	stale := bytes.Clone(golden)
	for i := 0; i < len(stale); i += 16 * chunk.BlockBytes {
		stale[i] ^= 0x80
	}
	north.golden(t, "red", golden.id(), golden)
	south.golden(t, "red", golden.id(), content(stale))
	disks := map[string]*ramDisk{"vda": newDisk(len(golden))}
	g := &guest{mem: bytes.Clone(golden), rng: rand.New(rand.NewPCG(1, 2))}
	there := arrive(t, nil, nil)
	s := start(t, trip{from: north, to: south, disks: serveNBD(t, disks), memory: there.path})
	s.learned(t, int64(len(golden)/chunk.BlockBytes))
	copyDisk(t, s, "vda", golden)
	s.drain(t)
	same(t, disks["vda"].bytes(), golden)
	if n := s.out.Figures().Total().MissedReferences; n < int64(len(golden)/chunk.BlockBytes/16) {
		t.Errorf("%d blocks were missed", n)
	}
	migrate(t, s, there, g.stream(1, 10), nil)
	f := s.out.Figures()
	checkFigures(t, f)
	if f.Total().RetransmittedBytes == 0 {
		t.Errorf("fills were not counted: %+v", f.Total())
	}
}

// TestStaleImageMemory: the same for memory alone.
func TestStaleImageMemory(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	g := newNoise(8, 4)
	north.golden(t, "red", content(g.mem).id(), content(bytes.Clone(g.mem)))
	stale := bytes.Clone(g.mem)
	noise(g.rng, stale[1<<20:2<<20])
	south.golden(t, "red", content(g.mem).id(), content(stale))
	there := arrive(t, nil, nil)
	s := start(t, trip{from: north, to: south, memory: there.path})
	s.learned(t, int64(g.pages()))
	migrate(t, s, there, g.stream(1, 10), nil)
	total := s.out.Figures().Total()
	if n := total.MissedReferences; n == 0 || total.RetransmittedBytes < drover.Bytes(n*chunk.BlockBytes) {
		t.Errorf("%d missed, %d sent again", total.MissedReferences, total.RetransmittedBytes)
	}
}

// TestTenants: what is another tenant's is not offered, and claiming that it was helps nobody.
func TestTenants(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	golden := content(newNoise(9, 4).mem)
	south.golden(t, "blue", golden.id(), golden)
	there := arrive(t, nil, nil)
	blue := Subject{Move: "m1", VM: "vm-blue", Tenant: "blue"}
	s := start(t, trip{from: north, to: south, memory: there.path, subject: blue})
	migrate(t, s, there, newGuest(1, 2).stream(1, 10), nil)
	must(t, s.in.Keep(t.Context()))
	s.end(t)
	s.in.Close()
	south.indexed(t, chunk.MemoryID("m1", "vm-blue"))

	red := Subject{Move: "m2", VM: "vm-red", Tenant: "red"}
	if o := south.node.Offer(red); len(o) != 0 {
		t.Fatalf("offered to another tenant: %+v", o)
	}
	if o := south.node.Offer(Subject{Move: "m2", VM: "vm-none"}); len(o) != 0 {
		t.Fatalf("offered to a VM without a tenant: %+v", o)
	}
	offered := south.node.Offer(blue)
	if len(offered) != 2 {
		t.Fatalf("offered to its own: %+v", offered)
	}
	if o := south.node.Offer(Subject{Move: "m2", VM: "vm-blue", Tenant: "red"}); len(o) != 1 || o[0].ID != chunk.MemoryID("m1", "vm-blue") {
		t.Fatalf("offered to the VM under another label: %+v", o)
	}

	// A source that claims to have been offered it gets no answer from it.
	north.golden(t, "red", golden.id(), golden)
	var claimed []Source
	for _, o := range offered {
		if chunk.SourceKind(o.Kind) == chunk.KindImage {
			claimed = append(claimed, o)
		}
	}
	disks := map[string]*ramDisk{"vda": newDisk(len(golden))}
	s = start(t, trip{from: north, to: south, disks: serveNBD(t, disks), subject: red, claimed: claimed})
	s.learned(t, int64(len(golden)/chunk.BlockBytes))
	copyDisk(t, s, "vda", golden)
	s.drain(t)
	same(t, disks["vda"].bytes(), golden)
	if total := s.out.Figures().Total(); total.MissedReferences == 0 || total.WireBytes < drover.Bytes(len(golden)) {
		t.Errorf("%d references were missed, %d bytes crossed", total.MissedReferences, total.WireBytes)
	}
	// Nor does one that asks for a catalogue.
	if err := s.out.ask(t.Context(), 0, func(int64, []chunk.Fingerprint) { t.Error("a catalogue that was not offered") }); err == nil {
		t.Error("asking for what was not offered ended well")
	}
}

// TestDiskFails: the destination's disk is full; the mirror and the sender are told.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	d := newDisk(4 << 20)
	d.fail = syscall.ENOSPC
	s := start(t, trip{from: north, to: south, disks: serveNBD(t, map[string]*ramDisk{"vda": d})})
	c := s.mirror(t, "vda")
	_, _ = c.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 0)
	if err := c.Flush(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("flush: %v", err)
	}
	if err := s.out.Drain(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("drain: %v", err)
	}
	if err := s.out.Err(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("sender: %v", err)
	}
}

// TestNoDisk: an export that is not there, and a session without disks.
func TestNoDisk(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	for name, socket := range map[string]string{"no export": serveNBD(t, nil), "no server": filepath.Join(t.TempDir(), "d"), "no disks": ""} {
		t.Run(name, func(t *testing.T) {
			s := start(t, trip{from: north, to: south, disks: socket})
			_, err := s.out.SendImage(t.Context(), "vda", content(make([]byte, 512)), nil)
			if err == nil {
				t.Error("it was taken")
			}
			eventually(t, "both ends say why", func() bool { return s.out.Err() != nil && s.in.Err() != nil })
		})
	}
}

// TestListen: paths that cannot be, and listening twice.
func TestListen(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	s := start(t, trip{from: north, to: south})
	long := filepath.Join(s.dir, string(bytes.Repeat([]byte("x"), maxUnixPath)))
	wantKind(t, s.out.ListenMemory(long, 1<<20), drover.Invalid)
	wantKind(t, s.out.ListenDisks(long), drover.Invalid)
	must(t, s.out.ListenDisks(filepath.Join(s.dir, "d")))
	wantKind(t, s.out.ListenDisks(filepath.Join(s.dir, "e")), drover.Exists)
	must(t, s.out.ListenMemory(filepath.Join(s.dir, "m"), 1<<20))
	wantKind(t, s.out.ListenMemory(filepath.Join(s.dir, "n"), 1<<20), drover.Exists)
}
