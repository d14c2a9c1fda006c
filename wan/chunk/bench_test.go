package chunk

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// BenchmarkIndexLookup looks up fingerprints in an index of 4 million (16 GiB
// of content), in random order, as pages come: half of them known.
func BenchmarkIndexLookup(b *testing.B) {
	x := NewIndex(1 << 30)
	const entries = 4 << 20
	key := func(i uint64) Fingerprint { return Fingerprint((i + 1) * 0x9e3779b97f4a7c15) }
	r := seeded(1)
	for i := range uint64(entries) {
		x.Add(key(i), Ref{Block: uint32(i)})
	}
	probe := make([]Fingerprint, 1<<20)
	for i := range probe {
		probe[i] = key(r.Uint64N(2 * entries))
	}
	found := 0
	b.ReportAllocs()
	before := spent(b)
	defer func() { b.ReportMetric(float64(spent(b)-before)/float64(b.N), "cpu-ns/op") }()
	for i := 0; b.Loop(); i++ {
		if _, ok := x.Lookup(probe[i%len(probe)]); ok {
			found++
		}
	}
	b.ReportMetric(float64(x.Bytes())/float64(x.Len()), "B/entry")
	b.ReportMetric(100*float64(x.Bytes())/float64(x.Len()*BlockBytes), "%ofdata")
	b.ReportMetric(100*float64(found)/float64(b.N), "%known")
}

func BenchmarkIndexAdd(b *testing.B) {
	r := seeded(2)
	x := NewIndex(1 << 32)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		x.Add(Fingerprint(r.Uint64()), Ref{Block: uint32(i)})
	}
	b.ReportMetric(float64(x.Bytes())/float64(x.Len()), "B/entry")
}

// perCPU reports the bytes handled per second of this process's CPU time, which
// other load on the machine moves less than the time on the wall. The function
// it returns ends the measurement.
func perCPU(b *testing.B, bytes int64) (end func()) {
	before := spent(b)
	return func() {
		b.ReportMetric(float64(bytes)*float64(b.N)/1e6/(spent(b)-before).Seconds(), "MB/cpu-s")
	}
}

// spent returns the CPU time of this process so far.
func spent(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const benchBytes = 256 << 20

func benchData() []byte {
	data, r := make([]byte, benchBytes), seeded(3)
	for i := 0; i < len(data); i += 512 {
		data[i] = byte(r.Uint32()) | 1
	}
	return data
}

// BenchmarkBLAKE3 is the bare library on blocks of 4 KiB: what
// BenchmarkBuildCatalogue is compared with.
func BenchmarkBLAKE3(b *testing.B) {
	data := benchData()
	b.SetBytes(benchBytes)
	var sink byte
	defer perCPU(b, benchBytes)()
	for b.Loop() {
		for i := 0; i < len(data); i += BlockBytes {
			sum := blake3.Sum256(data[i : i+BlockBytes])
			sink ^= sum[0]
		}
	}
	_ = sink
}

// BenchmarkBuildCatalogue catalogues a memory file from the page cache.
func BenchmarkBuildCatalogue(b *testing.B) {
	l := openLibrary(b, b.TempDir(), Options{})
	src := memorySource("m", "", "vm", benchBytes/BlockBytes)
	keep(b, l, src, benchData())
	e := l.entries[src.ID]
	path := filepath.Join(b.TempDir(), "c")
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	defer perCPU(b, benchBytes)()
	for b.Loop() {
		r, err := l.openReader(context.Background(), e)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := BuildCatalogue(context.Background(), path, src, r, BuildOptions{}); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

func BenchmarkAddCatalogue(b *testing.B) {
	path, src := filepath.Join(b.TempDir(), "c"), memorySource("m", "", "vm", benchBytes/BlockBytes)
	c, err := BuildCatalogue(context.Background(), path, src, &image{data: benchData()}, BuildOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchBytes) // of content
	for b.Loop() {
		x := NewIndex(1 << 30)
		if err := x.AddCatalogue(context.Background(), 0, c); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory writes and reads 4 KiB pages of a guest of 256 MiB: as a
// first round does (ascending), and as later rounds do (ascending with gaps).
func BenchmarkMemory(b *testing.B) {
	const blocks = benchBytes / BlockBytes
	data := benchData()
	for _, step := range []int64{1, 3} {
		open := func(b *testing.B) *Memory {
			l := openLibrary(b, b.TempDir(), Options{})
			m, err := l.NewMemory(memorySource("m", "", "vm", blocks), SourceID{})
			if err != nil {
				b.Fatal(err)
			}
			return m
		}
		write := func(b *testing.B, m *Memory) {
			for i := int64(0); i < blocks; i += step {
				if err := m.Write(i, data[i*BlockBytes:][:BlockBytes]); err != nil {
					b.Fatal(err)
				}
			}
		}
		bytes := (blocks + step - 1) / step * BlockBytes
		b.Run(fmt.Sprintf("first-write/step%d", step), func(b *testing.B) {
			b.SetBytes(bytes)
			defer perCPU(b, bytes)() // opening and removing the file included
			for b.Loop() {
				b.StopTimer()
				m := open(b)
				b.StartTimer()
				write(b, m)
				b.StopTimer()
				m.Discard()
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("rewrite/step%d", step), func(b *testing.B) {
			m := open(b)
			defer m.Discard()
			write(b, m)
			b.SetBytes(bytes)
			b.ReportAllocs()
			defer perCPU(b, bytes)()
			for b.Loop() {
				write(b, m)
			}
		})
		b.Run(fmt.Sprintf("read/step%d", step), func(b *testing.B) {
			m := open(b)
			defer m.Discard()
			write(b, m)
			p := make([]byte, BlockBytes)
			b.SetBytes(bytes)
			b.ReportAllocs()
			defer perCPU(b, bytes)()
			for b.Loop() {
				for i := int64(0); i < blocks; i += step {
					if state, err := m.Read(i, p); err != nil || state != Fresh {
						b.Fatal(state, err)
					}
				}
			}
		})
	}
}

// BenchmarkSeal seals a memory of which nine tenths are inherited.
func BenchmarkSeal(b *testing.B) {
	const blocks = benchBytes / BlockBytes
	l := openLibrary(b, b.TempDir(), Options{})
	data := benchData()
	base := memorySource("0", "", "", blocks) // of no VM, so that it stays
	keep(b, l, base, data)
	b.SetBytes(benchBytes)
	for i := 1; b.Loop(); i++ {
		b.StopTimer()
		src := memorySource(fmt.Sprint(i), "", "vm", blocks)
		m, err := l.NewMemory(src, base.ID)
		if err != nil {
			b.Fatal(err)
		}
		for i := int64(0); i < blocks; i += 10 {
			if err := m.Write(i, data[i*BlockBytes:][:BlockBytes]); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		if err := m.Seal(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
