package wan

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/chunk"
)

var returnPath = []byte("\x00\x02\x00\x04\x00\x00\x00\x01 and at the end \x00\x01\x00\x04\x00\x00\x00\x00")

// TestCaptures carries what QEMU really wrote: a guest's memory, what has a
// return path, what is understood in part. Package reduce takes all of them.
func TestCaptures(t *testing.T) {
	t.Parallel()
	var files []string
	for _, kind := range []string{"plain", "return-path", "7.2-compress", "10.0-xbzrle"} {
		found, err := filepath.Glob("page/testdata/*" + kind + ".stream.zst")
		must(t, err)
		if len(found) == 0 {
			t.Fatalf("no captured stream %s", kind)
		}
		files = append(files, found...)
	}
	dec, err := zstd.NewReader(nil)
	must(t, err)
	defer dec.Close()
	north, south := pair(t, Config{})
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".stream.zst")
		t.Run(name, func(t *testing.T) {
			packed, err := os.ReadFile(file)
			must(t, err)
			stream, err := dec.DecodeAll(packed, nil)
			must(t, err)
			there := arrive(t, returnPath, nil)
			s := start(t, trip{from: north, to: south, memory: there.path, subject: Subject{Move: name, VM: name}})
			migrate(t, s, there, stream, returnPath)
			checkFigures(t, s.out.Figures())
		})
	}
}

// TestReturn moves a guest there and back: the second trip refers to what both
// ends kept of the first.
func TestReturn(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	g := newGuest(1, 6)
	move := func(from, to *site, name string) (drover.PathFigures, *session) {
		t.Helper()
		there := arrive(t, returnPath, nil)
		s := start(t, trip{from: from, to: to, memory: there.path, subject: Subject{Move: name, VM: "vm1", Tenant: "red"}})
		migrate(t, s, there, g.stream(3, 50), returnPath)
		must(t, s.out.Keep(t.Context()))
		must(t, s.in.Keep(t.Context()))
		f := s.out.Figures()
		checkFigures(t, f)
		s.end(t)
		s.in.Close()
		if again := s.out.Figures(); again != f {
			t.Errorf("after the end the figures became %+v, were %+v", again, f)
		}
		return f, s
	}
	first, _ := move(north, south, "there")
	if k := first.Total().Kinds; k.Same.Blocks == 0 && k.Delta.Blocks == 0 {
		t.Errorf("no page of the later rounds was told from what had been sent: %+v", first.Total().Kinds)
	}
	if f := first.Switchover; f.GuestBytes == 0 || f.WireBytes == 0 || f.Seconds == 0 {
		t.Errorf("nothing was counted for the pause: %+v", f)
	}
	if f := first.Disk; f.GuestBytes != 0 || f.WireBytes > first.Memory.WireBytes/4 {
		t.Errorf("disks were counted where there are none: %+v", f)
	}
	if pages := drover.Bytes(len(g.mem)); first.Total().GuestBytes < pages {
		t.Errorf("%d guest bytes, memory has %d", first.Total().GuestBytes, pages)
	}
	for _, n := range []*site{north, south} {
		if st := n.node.LibraryStats(); st.Memories != 1 || st.Unsealed != 0 {
			t.Errorf("%s keeps %+v", n.name, st)
		}
	}
	g.dirty(g.pages() / 50)
	back, _ := move(south, north, "back")
	k := back.Total().Kinds
	if known := k.Same.Blocks + k.Reference.Blocks; known < int64(g.pages())/2 {
		t.Errorf("%d of %d pages were known: %+v", known, g.pages(), k)
	}
	if 4*back.Total().WireBytes >= first.Total().WireBytes {
		t.Errorf("%d bytes back, %d there", back.Total().WireBytes, first.Total().WireBytes)
	}
	if back.Total().MissedReferences != 0 {
		t.Errorf("%d misses with equal content", back.Total().MissedReferences)
	}
}

// TestReturnWithoutMirror: what is left of the first trip at one end only is
// asked for and referred to.
func TestReturnElsewhere(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	g := newGuest(2, 4)
	there := arrive(t, nil, nil)
	s := start(t, trip{from: north, to: south, memory: there.path})
	migrate(t, s, there, g.stream(1, 10), nil)
	must(t, s.out.Keep(t.Context())) // north remembers, south does not
	first := s.out.Figures().Total()
	s.end(t)
	s.in.Close()
	if st := south.node.LibraryStats(); st.Memories != 0 || st.Unsealed != 0 {
		t.Errorf("what was not kept is left: %+v", st)
	}
	north.indexed(t, chunk.MemoryID("move1", "vm1"))
	there = arrive(t, nil, nil)
	s = start(t, trip{from: south, to: north, memory: there.path, subject: Subject{Move: "move2", VM: "vm1", Tenant: "red"}})
	s.learned(t, 1)
	eventually(t, "the catalogue has come", func() bool { return s.out.known.Index.Len() >= int64(g.pages()/2) })
	migrate(t, s, there, g.stream(1, 10), nil)
	back := s.out.Figures().Total()
	if k := back.Kinds.Reference.Blocks; k < int64(g.pages())/2 {
		t.Errorf("%d references: %+v", k, back.Kinds)
	}
	if 4*back.WireBytes >= first.WireBytes {
		t.Errorf("%d bytes back, %d there", back.WireBytes, first.WireBytes)
	}
}

// TestWithoutFolders: agents that keep nothing carry memory as well.
func TestWithoutFolders(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	for name, c := range map[string][2]Config{
		"neither":     {{}, {}},
		"source":      {{Dir: t.TempDir()}, {}},
		"destination": {{}, {Dir: t.TempDir()}},
	} {
		t.Run(name, func(t *testing.T) {
			north, south := newSite(t, a, "north", c[0]), newSite(t, a, "south", c[1])
			there := arrive(t, returnPath, nil)
			s := start(t, trip{from: north, to: south, memory: there.path})
			migrate(t, s, there, newGuest(3, 1).stream(2, 20), returnPath)
			must(t, s.out.Keep(t.Context()))
			must(t, s.in.Keep(t.Context()))
			checkFigures(t, s.out.Figures())
		})
	}
}
