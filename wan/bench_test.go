package wan

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/chunk"
)

// The benchmarks carry benchMiB through the whole path on loopback, both agents
// in one process: MB/s, what processor time both ends needed for a megabyte,
// and wire bytes for each of the guest's. BenchmarkBareTLS is the same bytes
// over one TLS connection without any of it, on the same machine in the same
// run:
//
//	go test -run '^$' -bench . -benchtime 3x ./wan
const benchMiB = 64

// report says what n bytes cost since the processor time was before.
func report(b *testing.B, before time.Duration, bytes, wire int64) {
	b.ReportMetric(float64(processTime()-before)/float64(time.Microsecond)/(float64(bytes)/1e6), "cpu-µs/MB")
	b.ReportMetric(float64(wire)/float64(bytes), "wire/byte")
}

// benchGuests are guests' memories of different kinds.
func benchGuests() map[string]*guest {
	g := &guest{mem: make([]byte, benchMiB<<20), rng: newGuest(62, 1).rng}
	text(g.rng, g.mem)
	return map[string]*guest{"compressible": g, "incompressible": newNoise(61, benchMiB)}
}

// BenchmarkBareTLS is what there is to be had: one connection, one copy at
// each end.
func BenchmarkBareTLS(b *testing.B) {
	a := newAuthority(b)
	south := newSite(b, a, "south", Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	defer l.Close()
	got := make(chan int64)
	cfg := south.config.Clone()
	cfg.NextProtos = []string{Protocol}
	go func() {
		defer close(got)
		raw, err := l.Accept()
		if err != nil {
			return
		}
		conn := tls.Server(raw, cfg)
		defer conn.Close()
		buf := make([]byte, 256<<10)
		for {
			for left := int64(benchMiB << 20); left > 0; {
				n, err := conn.Read(buf[:min(int64(len(buf)), left)])
				if err != nil {
					return
				}
				left -= int64(n)
			}
			got <- benchMiB << 20
		}
	}()
	conn, err := dial(b.Context(), a.config("agent", "north"), l.Addr().String(), "south")
	must(b, err)
	defer conn.Close()
	data := newNoise(63, benchMiB).mem
	b.SetBytes(int64(len(data)))
	before, total := processTime(), int64(0)
	for b.Loop() {
		_, err := conn.Write(data)
		must(b, err)
		total += within(b, "all has come", got)
	}
	report(b, before, total, total)
}

// BenchmarkMemory carries a guest's memory that is not known at the
// destination, and one that is: from the VM's last stay, or as an image.
func BenchmarkMemory(b *testing.B) {
	for name, g := range benchGuests() {
		stream := g.stream(0, 0)
		b.Run(name, func(b *testing.B) {
			north, south := pair(b, Config{})
			benchMemory(b, north, south, stream, 0)
		})
		b.Run(name+"/image", func(b *testing.B) {
			north, south := pair(b, Config{IndexRate: drover.GiB})
			img := content(g.mem)
			for _, s := range []*site{north, south} {
				s.golden(b, "red", img.id(), img)
			}
			benchMemory(b, north, south, stream, int64(len(img)/chunk.BlockBytes/2))
		})
		b.Run(name+"/returning", func(b *testing.B) {
			north, south := pair(b, Config{})
			there := arrive(b, nil, nil)
			s := start(b, trip{from: south, to: north, memory: there.path, subject: Subject{Move: "there", VM: "vm1"}})
			migrate(b, s, there, stream, nil)
			must(b, s.out.Keep(b.Context()))
			must(b, s.in.Keep(b.Context()))
			s.end(b)
			s.in.Close()
			benchMemory(b, north, south, stream, 0)
		})
	}
}

// compare plays a QEMU that waits for a guest, at little cost of its own.
func compare(b *testing.B, stream []byte) (socket string, came <-chan error) {
	socket = filepath.Join(socketDir(b), "m")
	l, err := net.Listen("unix", socket)
	must(b, err)
	done := make(chan error, 1)
	go func() {
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		buf := make([]byte, 256<<10)
		for at := 0; ; {
			n, err := conn.Read(buf)
			if at+n > len(stream) || !bytes.Equal(buf[:n], stream[at:at+n]) {
				done <- errors.New("other bytes came")
				return
			}
			if at += n; err != nil {
				if err == io.EOF && at == len(stream) {
					err = nil
				}
				done <- err
				return
			}
		}
	}()
	return socket, done
}

func benchMemory(b *testing.B, north, south *site, stream []byte, known int64) {
	b.SetBytes(int64(len(stream)))
	before, total, wire := processTime(), int64(0), int64(0)
	for b.Loop() {
		b.StopTimer()
		outside := processTime()
		socket, came := compare(b, stream)
		s := start(b, trip{from: north, to: south, memory: socket, subject: Subject{Move: "bench", VM: "vm1", Tenant: "red"}})
		s.learned(b, known)
		before += processTime() - outside
		b.StartTimer()
		path := filepath.Join(s.dir, "m")
		must(b, s.out.ListenMemory(path, benchMiB<<20))
		gone := depart(path, stream)
		must(b, within(b, "the guest has left", gone).err)
		must(b, within(b, "the guest has come", came))
		b.StopTimer()
		outside = processTime()
		total, wire = total+int64(len(stream)), wire+int64(s.out.Figures().Total().WireBytes)
		s.end(b)
		s.in.Close()
		before += processTime() - outside
		b.StartTimer()
	}
	report(b, before, total, wire)
}

// BenchmarkDisk mirrors a disk from an NBD client to an NBD server.
func BenchmarkDisk(b *testing.B) {
	for name, g := range benchGuests() {
		b.Run(name, func(b *testing.B) {
			north, south := pair(b, Config{})
			b.SetBytes(int64(len(g.mem)))
			before, total, wire := processTime(), int64(0), int64(0)
			for b.Loop() {
				b.StopTimer()
				outside := processTime()
				disks := map[string]*ramDisk{"vda": newDisk(len(g.mem))}
				s := start(b, trip{from: north, to: south, disks: serveNBD(b, disks)})
				c := s.mirror(b, "vda")
				before += processTime() - outside
				b.StartTimer()
				must(b, writeAll(context.Background(), c, g.mem))
				b.StopTimer()
				outside = processTime()
				total, wire = total+int64(len(g.mem)), wire+int64(s.out.Figures().Total().WireBytes)
				s.end(b)
				s.in.Close()
				before += processTime() - outside
				b.StartTimer()
			}
			report(b, before, total, wire)
		})
	}
}

// BenchmarkCopy copies an image, digest and reading back included.
func BenchmarkCopy(b *testing.B) {
	for name, g := range benchGuests() {
		b.Run(name, func(b *testing.B) {
			north, south := pair(b, Config{})
			b.SetBytes(int64(len(g.mem)))
			before, total, wire := processTime(), int64(0), int64(0)
			for b.Loop() {
				b.StopTimer()
				outside := processTime()
				s := start(b, trip{from: north, to: south, image: into(newDisk(len(g.mem)))})
				before += processTime() - outside
				b.StartTimer()
				_, err := s.out.SendImage(context.Background(), "vda", content(g.mem), nil)
				must(b, err)
				b.StopTimer()
				outside = processTime()
				total, wire = total+int64(len(g.mem)), wire+int64(s.out.Figures().Total().WireBytes)
				s.end(b)
				s.in.Close()
				before += processTime() - outside
				b.StartTimer()
			}
			report(b, before, total, wire)
		})
	}
}
