package wan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"

	"github.com/drover-vm/drover/wan/page"
)

// guest is a VM's memory that changes.
type guest struct {
	mem []byte
	rng *rand.Rand
}

// newGuest makes memory of which one page in four is zeros, one random, and two
// are text.
func newGuest(seed uint64, mib int) *guest {
	g := &guest{mem: make([]byte, mib<<20), rng: rand.New(rand.NewPCG(seed, 7))}
	for i := range g.pages() {
		switch i % 4 {
		case 0:
		case 1:
			noise(g.rng, g.page(i))
		default:
			text(g.rng, g.page(i))
		}
	}
	return g
}

// newNoise makes memory that does not compress.
func newNoise(seed uint64, mib int) *guest {
	g := &guest{mem: make([]byte, mib<<20), rng: rand.New(rand.NewPCG(seed, 9))}
	noise(g.rng, g.mem)
	return g
}

func (g *guest) pages() int        { return len(g.mem) / page.PageBytes }
func (g *guest) page(i int) []byte { return g.mem[i*page.PageBytes:][:page.PageBytes] }

func noise(r *rand.Rand, p []byte) {
	for ; len(p) >= 8; p = p[8:] {
		binary.LittleEndian.PutUint64(p, r.Uint64())
	}
}

var words = []string{"guest ", "memory ", "of ", "the ", "virtual ", "machine\n", "page ", "\x00\x00\x00\x7f", "kernel "}

func text(r *rand.Rand, p []byte) {
	for len(p) > 0 {
		p = p[copy(p, words[r.IntN(len(words))]):]
	}
}

// dirty changes n pages: half of them a little, half of them wholly. It returns which.
func (g *guest) dirty(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = g.rng.IntN(g.pages())
		if p := g.page(list[i]); i%2 == 0 {
			binary.LittleEndian.PutUint64(p[g.rng.IntN(500)*8:], g.rng.Uint64())
		} else {
			noise(g.rng, p)
		}
	}
	return list
}

// stream is what QEMU writes for the guest: all of its memory, rounds of what
// was dirtied meanwhile, the last of them paused, and devices.
func (g *guest) stream(rounds, dirtied int) []byte {
	const name = "pc.ram"
	blocks := []page.Block{{Name: name, Bytes: uint64(len(g.mem))}}
	b := append([]byte("QEVM\x00\x00\x00\x03\x07\x00\x00\x00\x02pc"), 1, 0, 0, 0, 2, 3)
	b = append(b, "ram\x00\x00\x00\x00\x00\x00\x00\x04"...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(g.mem))|4)
	b = append(append(b, byte(len(name))), name...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(g.mem)))
	eos := append(binary.BigEndian.AppendUint64(nil, 0x10), 0x7e, 0, 0, 0, 2)
	b = append(b, eos...)
	all := make([]int, g.pages())
	for i := range all {
		all[i] = i
	}
	began := false
	for round := range rounds + 1 {
		kind, list := byte(2), all
		if round > 0 {
			list = g.dirty(dirtied)
		}
		if round == rounds {
			kind = 3
		}
		b = append(b, kind, 0, 0, 0, 2)
		for _, i := range list {
			rec := page.Record{Kind: page.Page, Addr: uint64(i) * page.PageBytes, Continue: began, Data: g.page(i)}
			if len(bytes.TrimLeft(rec.Data, "\x00")) == 0 {
				rec.Kind, rec.Data = page.Zero, nil
			}
			b = append(page.AppendHeader(b, rec, blocks), rec.Data...)
			began = true
		}
		b = append(b, eos...)
	}
	b = append(b, 4, 0, 0, 0, 9, 3)
	b = append(b, "cpu\x00\x00\x00\x00\x00\x00\x00\x01registers\x7e\x00\x00\x00\x09"...)
	return append(b, 0)
}

// arrival plays the QEMU that waits for a guest.
type arrival struct {
	path string
	got  chan arrived
	hold chan struct{} // it does not read before this is closed; nil: at once
}

type arrived struct {
	stream []byte
	err    error
}

// arrive listens. QEMU says the first half of words when it begins to read, and the rest when it
// has read all.
func arrive(t testing.TB, words []byte, hold chan struct{}) *arrival {
	t.Helper()
	a := &arrival{path: filepath.Join(socketDir(t), "m"), got: make(chan arrived, 1), hold: hold}
	l, err := net.Listen("unix", a.path)
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if hold != nil {
			<-hold
		}
		if _, err := conn.Write(words[:len(words)/2]); err != nil {
			a.got <- arrived{err: err}
			return
		}
		stream, err := io.ReadAll(conn)
		if err == nil {
			_, err = conn.Write(words[len(words)/2:])
		}
		a.got <- arrived{stream, err}
	}()
	t.Cleanup(func() { _ = l.Close(); within(t, "the arrival's end", ended) })
	return a
}

// departed is how a source's QEMU sees its migration.
type departed struct {
	answer []byte // what came by the return path
	err    error
}

// failed checks that a QEMU has seen that its migration failed: by an error, or, when the path had
// taken all of its stream already, by the end of a return path without its last words.
func (d departed) failed(t testing.TB) {
	t.Helper()
	if d.err == nil && bytes.HasSuffix(d.answer, returnPath[len(returnPath)/2:]) {
		t.Error("the source's QEMU believes that all is well")
	}
}

// depart plays the QEMU that sends its guest.
func depart(path string, stream []byte) <-chan departed {
	done := make(chan departed, 1)
	go func() {
		conn, err := net.Dial("unix", path)
		if err != nil {
			done <- departed{err: err}
			return
		}
		defer conn.Close()
		wrote := make(chan error, 1)
		go func() {
			_, err := conn.Write(stream)
			if err == nil {
				err = conn.(*net.UnixConn).CloseWrite()
			}
			wrote <- err
		}()
		answer, err := io.ReadAll(conn)
		if err == nil {
			_ = conn.Close() // a writer that nobody reads for ends
		}
		done <- departed{answer, errors.Join(<-wrote, err)}
	}()
	return done
}

// migrate carries a stream through a session that has the arrival, and
// compares.
func migrate(t testing.TB, s *session, there *arrival, stream, words []byte) {
	t.Helper()
	path := filepath.Join(s.dir, "m")
	must(t, s.out.ListenMemory(path, 16<<20))
	gone := depart(path, stream)
	d := within(t, "the guest has left", gone)
	a := within(t, "the guest has come", there.got)
	if d.err != nil || a.err != nil || s.out.Err() != nil || s.in.Err() != nil {
		t.Fatalf("source's QEMU: %v, destination's: %v, sender: %v, receiver: %v", d.err, a.err, s.out.Err(), s.in.Err())
	}
	same(t, a.stream, stream)
	same(t, d.answer, words)
}
