package wan

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/memory"
	"github.com/drover-vm/drover/wan/chunk"
)

// into opens one disk for copies.
func into(d *ramDisk) func(context.Context, string) (Image, error) {
	return func(_ context.Context, target string) (Image, error) {
		if target != "vda" {
			return nil, drover.Errorf(drover.NotFound, "open", "no disk %s", target)
		}
		return written{d}, nil
	}
}

// sparse is an image of which only parts are allocated.
type sparse struct {
	content
	extents []driver.Extent
}

func (s sparse) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	for _, e := range s.extents {
		if !yield(e) {
			break
		}
	}
	return ctx.Err()
}

// TestCopy copies images of odd sizes and compares.
func TestCopy(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	full := content(newGuest(1, 7).mem)
	holes := bytes.Clone(full)
	clear(holes[1<<20 : 4<<20])
	clear(holes[6<<20:])
	for name, c := range map[string]struct {
		img        driver.ImageReader
		data, zero drover.Bytes
	}{
		"full":      {img: full, data: 7 << 20},
		"odd size":  {img: full[:5<<20+4096+3*512], data: 5<<20 + 4096 + 3*512},
		"tiny":      {img: full[4096:][:512], data: 512},
		"nothing":   {img: sparse{content: make(content, 1<<20)}},
		"all zeros": {img: make(content, 3<<20+512), zero: 3<<20 + 512},
		"sparse": {img: sparse{holes, []driver.Extent{
			{Offset: 0, Length: 1 << 20}, {Offset: 2 << 20, Length: 1 << 20, Zero: true}, {Offset: 4 << 20, Length: 2 << 20},
		}}, data: 3 << 20, zero: 1 << 20},
		"zeros within": {img: content(holes), data: 3 << 20, zero: 4 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			want := make([]byte, c.img.Size())
			_, _ = c.img.ReadAt(want, 0)
			d := newDisk(len(want))
			s := start(t, trip{from: north, to: south, image: into(d), subject: Subject{Move: name, VM: name, Tenant: name}})
			var mu sync.Mutex
			last := map[string]drover.Bytes{}
			r, err := s.out.SendImage(t.Context(), "vda", c.img, func(phase string, done, total drover.Bytes) {
				mu.Lock()
				defer mu.Unlock()
				if done < last[phase] || done > total {
					t.Errorf("%s: %d of %d, was %d", phase, done, total, last[phase])
				}
				last[phase] = done
			})
			must(t, err)
			if len(d.seals) != 1 || d.seals[0] != r {
				t.Fatalf("sealed %+v, sent %+v", d.seals, r)
			}
			same(t, d.bytes(), want)
			// Zeros are folded in steps of 64 KiB: none is data here but whole guests' pages.
			if r.DataBytes != c.data || r.ZeroBytes != c.zero {
				t.Errorf("report %+v, want %d of data and %d of zeros", r, c.data, c.zero)
			}
			if r.Digest == [32]byte{} {
				t.Error("no digest")
			}
			must(t, s.out.Err())
			must(t, s.in.Err())
			checkFigures(t, s.out.Figures())
			s.end(t)
			s.in.Close()
			if d.closed != 1 {
				t.Errorf("the image was closed %d times", d.closed)
			}
		})
	}
}

// TestCopyAnything: whatever is in an image arrives, and nothing else does.
func TestCopyAnything(t *testing.T) {
	t.Parallel()
	const path = "/images/disk.qcow2"
	north, south := pair(t, Config{})
	// Many copies share a session, as a VM's disks do.
	const sessionDisks = 40
	var s *session
	var disks map[string]*ramDisk
	rapid.Check(t, func(rt *rapid.T) {
		const size = 1<<20 + 512
		from := memory.NewVolumes(memory.VolumesConfig{Dirs: []string{"/images"}})
		check := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		check(from.Create(t.Context(), driver.VolumeSpec{Path: path, Format: "qcow2", VirtualBytes: size}))
		w, err := from.OpenWrite(t.Context(), path)
		check(err)
		for range rapid.IntRange(0, 8).Draw(rt, "writes") {
			off := rapid.Int64Range(0, size-1).Draw(rt, "offset")
			n := rapid.Int64Range(1, min(size-off, 1<<19)).Draw(rt, "length")
			if rapid.Bool().Draw(rt, "zero") {
				check(w.Zero(t.Context(), off, n))
				continue
			}
			_, err := w.WriteAt(bytes.Repeat([]byte{rapid.Byte().Draw(rt, "fill")}, int(n)), off)
			check(err)
		}
		check(w.Flush(t.Context()))
		check(w.Close())
		img, err := from.OpenRead(t.Context(), path, false)
		check(err)
		defer img.Close()
		if s == nil || len(disks) == sessionDisks {
			if s != nil {
				s.end(t)
				s.in.Close()
			}
			disks = map[string]*ramDisk{}
			s = start(t, trip{from: north, to: south, image: func(_ context.Context, target string) (Image, error) {
				return written{disks[target]}, nil
			}})
		}
		d, target := newDisk(size), fmt.Sprintf("vd%d", len(disks))
		disks[target] = d
		_, err = s.out.SendImage(t.Context(), target, img, nil)
		check(err)
		want := make([]byte, size)
		_, _ = img.ReadAt(want, 0)
		if !bytes.Equal(d.bytes(), want) {
			rt.Fatal("the images differ")
		}
	})
}

// TestDigestIsOfRuns: the digest does not depend on how runs are cut into
// pieces, and has the value that the format's definition gives.
func TestDigestIsOfRuns(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	whole := newDigester()
	whole.add(4096, int64(len(content)), content)
	whole.add(1<<20, 8192, nil)
	whole.add(2<<20, 512, content[:512])
	cut := newDigester()
	cut.add(4096, 1024, content[:1024])
	cut.add(5120, int64(len(content))-1024, content[1024:])
	cut.add(1<<20, 4096, nil)
	cut.add(1<<20+4096, 4096, nil)
	cut.add(2<<20, 512, content[:512])
	a, b := whole.sum(), cut.sum()
	if a != b {
		t.Errorf("%x and %x", a, b)
	}
	moved := newDigester()
	moved.add(4096+512, int64(len(content)), content)
	moved.add(1<<20, 8192, nil)
	moved.add(2<<20, 512, content[:512])
	if moved.sum() == a {
		t.Error("the same content elsewhere has the same digest")
	}
	// BLAKE3 of no input: an image without extents.
	const none = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
	if got := newDigester().sum(); hex.EncodeToString(got[:]) != none {
		t.Errorf("of nothing: %x", got)
	}
}

// TestRuns: lists of runs that no source of ours sends are refused.
func TestRuns(t *testing.T) {
	const size = 1 << 20
	list := func(v ...byte) []byte { return v }
	for name, p := range map[string][]byte{
		"ends in a gap":     {0x80},
		"ends in a length":  {0, 0x80},
		"no length":         {0},
		"empty run":         list(0, 0),
		"empty zeros":       list(0, 1),
		"beyond the end":    append(list(0), 0x82, 0x80, 0x80, 0x01),
		"gap beyond":        append(list(0x81, 0x80, 0x40), 2),
		"overflow":          {0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
		"overflow of a gap": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 2},
	} {
		if runs, _, err := parseRuns(p, 0, size); err == nil || drover.KindOf(err) != drover.Corrupt {
			t.Errorf("%s: %+v, %v", name, runs, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		o := imageSender{}
		var want []run
		for end := int64(0); end < size; {
			r := run{off: end + rapid.Int64Range(0, 5000).Draw(t, "gap"), zero: rapid.Bool().Draw(t, "zero")}
			r.length = rapid.Int64Range(1, 200000).Draw(t, "length")
			if end = r.off + r.length; end <= size {
				o.note(r)
				want = append(want, r)
			}
		}
		got, _, err := parseRuns(o.runs, 0, size)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d runs of %d, %v", len(got), len(want), err)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("run %d: %+v, want %+v", i, got[i], want[i])
			}
		}
	})
}

// refusing is an image that cannot be sealed.
type refusing struct{ written }

func (refusing) Seal(CopyReport) error {
	return drover.Errorf(drover.Exhausted, "journal", "no room for a line")
}

// TestCopyFaults: what goes wrong at the destination is told as what it is.
func TestCopyFaults(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	img := make(content, 4<<20)
	noise(rand.New(rand.NewPCG(1, 3)), img[1<<20:2<<20])
	noise(rand.New(rand.NewPCG(2, 3)), img[3<<20:])
	for name, c := range map[string]struct {
		disk func(*ramDisk)
		open func(*ramDisk) func(context.Context, string) (Image, error)
		size int
		want drover.Kind
		text string
	}{
		"disk is full":                  {disk: func(d *ramDisk) { d.fail = syscall.ENOSPC }, want: drover.Exhausted, text: "no space left"},
		"full, as the store says it":    {disk: func(d *ramDisk) { d.fail = drover.Errorf(drover.Exhausted, "write", "the quota of 5 GB is used up") }, want: drover.Exhausted, text: "quota of 5 GB"},
		"reads back otherwise":          {disk: func(d *ramDisk) { d.rot = 3<<20 + 7 }, want: drover.Corrupt, text: "read back"},
		"reads back otherwise in zeros": {disk: func(d *ramDisk) { d.rot = 2<<20 + 100 }, want: drover.Corrupt, text: "not zero"},
		"cannot be sealed": {open: func(d *ramDisk) func(context.Context, string) (Image, error) {
			return func(context.Context, string) (Image, error) { return refusing{written{d}}, nil }
		}, want: drover.Exhausted, text: "no room for a line"},
		"cannot be opened": {open: func(d *ramDisk) func(context.Context, string) (Image, error) {
			return func(context.Context, string) (Image, error) {
				return nil, drover.Errorf(drover.Refused, "open", "it is in use")
			}
		}, text: "it is in use"},
		"copies are not what this is for":   {open: func(*ramDisk) func(context.Context, string) (Image, error) { return nil }},
		"the destination's disk is smaller": {size: 3 << 20, want: drover.Invalid, text: "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(max(c.size, 0))
			if c.size == 0 {
				d = newDisk(len(img))
			}
			if c.disk != nil {
				c.disk(d)
			}
			open := into(d)
			if c.open != nil {
				open = c.open(d)
			}
			s := start(t, trip{from: north, to: south, image: open, subject: Subject{Move: name, VM: name, Tenant: name}})
			var err error
			ends(t, "the copy", func() { _, err = s.out.SendImage(t.Context(), "vda", img, nil) })
			if err == nil || c.want != 0 && drover.KindOf(err) != c.want || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v (%v), want %v with %q", err, drover.KindOf(err), c.want, c.text)
			}
			if len(d.seals) != 0 {
				t.Errorf("sealed: %+v", d.seals)
			}
		})
	}
}

// TestCopyCanceled: a copy that is given up is not sealed, and its session
// carries no other; a new session does.
func TestCopyCanceled(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	img := content(newNoise(3, 4).mem)
	d := newDisk(len(img))
	s := start(t, trip{from: north, to: south, image: into(d)})
	ctx, cancel := context.WithCancel(t.Context())
	var err error
	ends(t, "the canceled copy", func() {
		_, err = s.out.SendImage(ctx, "vda", img, func(string, drover.Bytes, drover.Bytes) { cancel() })
	})
	if drover.KindOf(err) != drover.Canceled || !errors.Is(err, context.Canceled) {
		t.Fatalf("canceled: %v", err)
	}
	s.end(t)
	s.in.Close()
	if len(d.seals) != 0 {
		t.Fatal("a canceled copy was sealed")
	}
	s = start(t, trip{from: north, to: south, image: into(d)})
	_, err = s.out.SendImage(t.Context(), "vda", img, nil)
	must(t, err)
	same(t, d.bytes(), img)
}

// TestCopyOfRemains copies a disk back of which the destination has what was
// left behind; the source knows nothing of that, it asks.
func TestCopyOfRemains(t *testing.T) {
	t.Parallel()
	north, south := pair(t, Config{})
	old := content(newGuest(11, 6).mem)
	now := bytes.Clone(old)
	r := rand.New(rand.NewPCG(3, 3))
	pages := len(now) / chunk.BlockBytes
	for range pages / 20 {
		noise(r, now[r.IntN(pages)*chunk.BlockBytes:][:chunk.BlockBytes])
	}
	left := Subject{Move: "there", VM: "vm1", Tenant: "red"}
	id := chunk.DiskID(left.Move, left.VM, "vda")
	must(t, north.node.AddRemains(t.Context(), left, "vda", drover.Bytes(len(old)), old.open))
	north.indexed(t, id)
	copyTo := func(move string) drover.PathPhase {
		t.Helper()
		d := newDisk(len(now))
		s := start(t, trip{from: south, to: north, image: into(d), subject: Subject{Move: move, VM: "vm1", Tenant: "red"}})
		if len(north.node.Offer(left)) > 0 {
			s.learned(t, int64(pages/2))
		}
		_, err := s.out.SendImage(t.Context(), "vda", content(now), nil)
		must(t, err)
		same(t, d.bytes(), now)
		f := s.out.Figures()
		checkFigures(t, f)
		s.end(t)
		s.in.Close()
		return f.Total()
	}
	known := copyTo("back")
	north.node.ForgetRemains(left.Move, left.VM, "vda")
	unknown := copyTo("again")
	if 3*known.WireBytes > unknown.WireBytes {
		t.Errorf("%d bytes with the remains, %d without", known.WireBytes, unknown.WireBytes)
	}
	if unknown.Kinds.Reference.Blocks > int64(pages/2) {
		t.Errorf("referred to what was forgotten: %+v", unknown.Kinds)
	}
}
