package chunk

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/drover-vm/drover"
	"pgregory.net/rapid"
)

func openLibrary(t testing.TB, dir string, o Options) *Library {
	t.Helper()
	l, err := OpenLibrary(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func memorySource(name, scope, vm string, blocks int64) Source {
	return Source{ID: MemoryID(name, vm), Kind: KindMemory, Blocks: blocks, Scope: scope, VM: vm}
}

// keep makes a sealed memory of data.
func keep(t testing.TB, l *Library, src Source, data []byte) {
	t.Helper()
	m, err := l.NewMemory(src, SourceID{})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(data); i += BlockBytes {
		b := data[i : i+BlockBytes]
		if IsZero(b) {
			continue // absent is zero
		}
		if err := m.Write(int64(i/BlockBytes), b); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Seal(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// content returns all of a source.
func content(t testing.TB, l *Library, src Source) []byte {
	t.Helper()
	c, err := l.Open(src.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, src.Blocks*BlockBytes)
	if err := c.ReadBlocks(0, p); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestMemoryProperty runs random moves of one VM, each on the memory of the
// one before, against slices.
func TestMemoryProperty(t *testing.T) {
	dir := t.TempDir()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		l, err := OpenLibrary(filepath.Join(dir, fmt.Sprint(round)), Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		r := seeded(rapid.Uint64().Draw(t, "seed"))
		var before []byte
		var base SourceID
		for move := range rapid.IntRange(1, 3).Draw(t, "moves") {
			blocks := rapid.Int64Range(1, 300).Draw(t, "blocks")
			src := memorySource(fmt.Sprint("move", move), "a", "vm", blocks)
			m, err := l.NewMemory(src, base)
			if err != nil {
				t.Fatal(err)
			}
			model := make([]byte, blocks*BlockBytes)
			copy(model, before)
			inBase, fresh := int64(len(before)/BlockBytes), make(map[int64]bool)
			buf := make([]byte, BlockBytes)
			block := int64(0)
			for range rapid.IntRange(0, 500).Draw(t, "steps") {
				// Mostly one after another, as pages come.
				if block++; r.IntN(8) == 0 || block >= blocks {
					block = r.Int64N(blocks)
				}
				at := model[block*BlockBytes:][:BlockBytes]
				switch r.IntN(8) {
				case 0:
					n := 1 + r.Int64N(min(blocks-block, 70))
					if err := m.Zero(block, n); err != nil {
						t.Fatal(err)
					}
					clear(model[block*BlockBytes : (block+n)*BlockBytes])
					for i := range n {
						fresh[block+i] = true
					}
				case 1, 2:
					fill(r, buf)
					state, err := m.Read(block, buf)
					want := Absent
					switch {
					case fresh[block]:
						want = Fresh
					case block < inBase:
						want = Inherited
					}
					if err != nil || state != want {
						t.Fatalf("block %d: state %v, %v, want %v", block, state, err, want)
					}
					if state != Absent && !bytes.Equal(buf, at) {
						t.Fatalf("block %d (state %v) is not what was written", block, state)
					}
				default:
					fill(r, at)
					if err := m.Write(block, at); err != nil {
						t.Fatal(err)
					}
					fresh[block] = true
				}
			}
			if err := m.Seal(context.Background()); err != nil {
				t.Fatal(err)
			}
			list := l.Sources("a", "vm")
			if len(list) != 1 || list[0] != src {
				t.Fatalf("sources %v, want the last memory alone", list)
			}
			c, err := l.Open(src.ID)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(model)+3*BlockBytes)
			fill(r, got)
			if err := c.ReadBlocks(0, got); err != nil {
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[:len(model)], model) || !IsZero(got[len(model):][:BlockBytes]) || !IsZero(got[len(got)-BlockBytes:]) {
				t.Fatal("the sealed memory is not what was written")
			}
			before, base = model, src.ID
		}
	})
}

func TestMemoryMisuse(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	src := memorySource("m", "", "vm", 10)
	_, err := l.NewMemory(src, MemoryID("unknown", "vm"))
	wantKind(t, err, drover.NotFound)
	bad := src
	bad.Blocks = 0
	_, err = l.NewMemory(bad, SourceID{})
	wantKind(t, err, drover.Invalid)
	m, err := l.NewMemory(src, SourceID{})
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, BlockBytes)
	wantKind(t, m.Write(10, block), drover.Invalid)
	wantKind(t, m.Write(-1, block), drover.Invalid)
	wantKind(t, m.Write(0, block[1:]), drover.Invalid)
	wantKind(t, m.Zero(5, 6), drover.Invalid)
	_, err = m.Read(10, block)
	wantKind(t, err, drover.Invalid)
	ctx, cancel := context.WithCancel(context.Background())
	if err := m.Write(3, bytes.Repeat([]byte{7}, BlockBytes)); err != nil {
		t.Fatal(err)
	}
	if err := m.Zero(3, 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := m.Seal(ctx); err != context.Canceled {
		t.Fatalf("seal after cancel: %v", err)
	}
	if err := m.Seal(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantKind(t, m.Write(0, block), drover.Refused)
	wantKind(t, m.Seal(context.Background()), drover.Refused)
	if err := m.Discard(); err != nil {
		t.Error(err)
	}
	if !l.Has(src.ID) {
		t.Error("discarding after sealing removed the source")
	}
	if got := content(t, l, src); !bytes.Equal(got, make([]byte, len(got))) {
		t.Error("a block that became zero is not")
	}
}

func TestMemoryDiscard(t *testing.T) {
	dir := t.TempDir()
	l := openLibrary(t, dir, Options{})
	m, err := l.NewMemory(memorySource("m", "", "vm", 1000), SourceID{})
	if err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Bytes != 1000*BlockBytes || s.Unsealed != 1 {
		t.Errorf("stats %+v while it is open", s)
	}
	for range 2 {
		if err := m.Discard(); err != nil {
			t.Fatal(err)
		}
	}
	if s := l.Stats(); s.Bytes != 0 || s.Unsealed != 0 {
		t.Errorf("stats %+v after discarding", s)
	}
	left, err := os.ReadDir(filepath.Join(dir, memoryFolder))
	if err != nil || len(left) != 0 {
		t.Errorf("left in the folder: %v %v", left, err)
	}
}

// TestMemoriesAtOnce has several moves of several VMs, each with a reader.
func TestMemoriesAtOnce(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	var wg sync.WaitGroup
	for v := range 4 {
		wg.Go(func() {
			data := noise(seeded(uint64(v)), 400)
			src := memorySource("m", "a", fmt.Sprint("vm", v), 400)
			m, err := l.NewMemory(src, SourceID{})
			if err != nil {
				t.Error(err)
				return
			}
			wg.Go(func() {
				buf := make([]byte, BlockBytes)
				for i := range int64(400) {
					if state, err := m.Read(i, buf); err != nil || state == Fresh && !bytes.Equal(buf, data[i*BlockBytes:][:BlockBytes]) {
						if drover.KindOf(err) != drover.Refused { // sealed meanwhile
							t.Errorf("block %d: %v %v", i, state, err)
						}
						return
					}
				}
			})
			for i := range int64(400) {
				if err := m.Write(i, data[i*BlockBytes:][:BlockBytes]); err != nil {
					t.Error(err)
				}
			}
			if err := m.Seal(context.Background()); err != nil {
				t.Error(err)
				return
			}
			if !bytes.Equal(content(t, l, src), data) {
				t.Errorf("vm%d: wrong content", v)
			}
		})
	}
	wg.Wait()
}

// smallDisk mounts a file system of that many MiB.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Fatalf("mount a small tmpfs (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func TestMemoryKeepsReserve(t *testing.T) {
	l, err := OpenLibrary(smallDisk(t, 1032), Options{}) // the reserve and 8 MiB
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m, err := l.NewMemory(memorySource("1", "", "vm1", 1500), SourceID{})
	if err != nil {
		t.Fatal(err)
	}
	// The first has written nothing yet, but will.
	_, err = l.NewMemory(memorySource("2", "", "vm2", 1500), SourceID{})
	wantKind(t, err, drover.Exhausted)
	if err := m.Write(0, bytes.Repeat([]byte{1}, BlockBytes)); err != nil {
		t.Fatal(err)
	}
	if err := m.Seal(context.Background()); err != nil {
		t.Fatal(err)
	}
	// A sealed one counts with what it takes, and may be evicted.
	if m, err = l.NewMemory(memorySource("3", "", "vm3", 1500), SourceID{}); err != nil {
		t.Fatal(err)
	}
	if err := m.Discard(); err != nil {
		t.Fatal(err)
	}
}

func TestMemoryOnFullDisk(t *testing.T) {
	dir := smallDisk(t, 4)
	l, err := OpenLibrary(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.reserve = -1 << 30 // as if others had filled the disk after the check
	m, err := l.NewMemory(memorySource("1", "", "vm1", 4000), SourceID{})
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte{1}, BlockBytes)
	for i := int64(0); i < 4000 && err == nil; i++ {
		err = m.Write(i, block)
	}
	wantKind(t, err, drover.Exhausted)
	// A disk that has room again does not make it whole.
	_, err = m.Read(0, block)
	wantKind(t, err, drover.Exhausted)
	wantKind(t, m.Seal(context.Background()), drover.Exhausted)
	if err := m.Discard(); err != nil {
		t.Fatal(err)
	}
	if len(l.Sources("", "vm1")) != 0 {
		t.Error("a memory that failed is listed")
	}
}

// TestMemoryRecalls: what was written can be had also when a later write has failed, from the file and from
// what still waits to be written to it.
func TestMemoryRecalls(t *testing.T) {
	l := openLibrary(t, t.TempDir(), Options{})
	m, err := l.NewMemory(memorySource("m", "", "vm", 400), SourceID{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Discard()
	p := make([]byte, BlockBytes)
	for i := range int64(100) {
		p[0] = byte(1 + i)
		if err := m.Write(i, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Zero(7, 1); err != nil {
		t.Fatal(err)
	}
	readOnly, err := os.Open(m.path)
	if err != nil {
		t.Fatal(err)
	}
	m.file.Close()
	m.file = readOnly
	if err := m.Write(300, p); err == nil {
		t.Fatal("a write to a file that cannot be written has not failed")
	}
	if _, err := m.Read(0, p); err == nil {
		t.Error("Read goes on after a write has failed")
	}
	for i := range int64(100) {
		want := byte(1 + i)
		if i == 7 {
			want = 0
		}
		if err := m.Recall(i, p); err != nil || p[0] != want {
			t.Fatalf("block %d begins with %d, %v; want %d", i, p[0], err, want)
		}
	}
	for _, block := range []int64{-1, 150, 300, 400} {
		if err := m.Recall(block, p); drover.KindOf(err) != drover.Invalid {
			t.Errorf("block %d, which was never written: %v", block, err)
		}
	}
}
