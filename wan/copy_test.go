package wan

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/memory"
	"github.com/drover-vm/drover/pki"
)

const imagePath = "/images/disk.qcow2"

func store(t interface{ Fatal(...any) }, size drover.Bytes) *memory.Volumes {
	v := memory.NewVolumes(memory.VolumesConfig{Dirs: []string{"/images"}})
	if err := v.Create(context.Background(), driver.VolumeSpec{Path: imagePath, Format: "qcow2", VirtualBytes: size}); err != nil {
		t.Fatal(err)
	}
	return v
}

// pair is two ends of a stream in memory.
func pair() (Stream, Stream) {
	ar, bw := io.Pipe()
	br, aw := io.Pipe()
	return &pipeStream{ar, aw}, &pipeStream{br, bw}
}

type pipeStream struct {
	r *io.PipeReader
	w *io.PipeWriter
}

func (p *pipeStream) Read(b []byte) (int, error)  { return p.r.Read(b) }
func (p *pipeStream) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p *pipeStream) CloseWrite() error           { return p.w.Close() }
func (p *pipeStream) Close() error {
	return errors.Join(p.r.CloseWithError(errors.New("closed")), p.w.CloseWithError(errors.New("closed")))
}

// carry copies one image to another over a pair of streams.
func carry(src driver.ImageReader, dst driver.ImageWriter, here, there Stream) (CopyReport, error, error) {
	received := make(chan error, 1)
	go func() {
		_, err := ReceiveImage(context.Background(), there, dst, nil)
		received <- err
	}()
	r, err := SendImage(context.Background(), here, src, nil)
	return r, err, <-received
}

// TestCopyAnything: whatever is in an image arrives, and nothing else does.
func TestCopyAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 6 << 20
		from, to := store(t, size), store(t, size)
		w, err := from.OpenWrite(context.Background(), imagePath)
		fatal(t, err)
		for range rapid.IntRange(0, 12).Draw(t, "writes") {
			off := rapid.Int64Range(0, size-1).Draw(t, "offset")
			n := rapid.Int64Range(1, min(size-off, 1<<21)).Draw(t, "length")
			if rapid.Bool().Draw(t, "zero") {
				fatal(t, w.Zero(context.Background(), off, n))
				continue
			}
			_, err := w.WriteAt(bytes.Repeat([]byte{rapid.Byte().Draw(t, "fill")}, int(n)), off)
			fatal(t, err)
		}
		fatal(t, w.Flush(context.Background()))
		fatal(t, w.Close())
		src, err := from.OpenRead(context.Background(), imagePath, false)
		fatal(t, err)
		defer src.Close()
		dst, err := to.OpenWrite(context.Background(), imagePath)
		fatal(t, err)
		defer dst.Close()
		here, there := pair()
		if _, serr, rerr := carry(src, dst, here, there); serr != nil || rerr != nil {
			t.Fatalf("send: %v, receive: %v", serr, rerr)
		}
		a, b := make([]byte, size), make([]byte, size)
		_, err = src.ReadAt(a, 0)
		fatal(t, ignoreEOF(err))
		_, err = dst.ReadAt(b, 0)
		fatal(t, ignoreEOF(err))
		if !bytes.Equal(a, b) {
			t.Fatal("the images differ")
		}
	})
}

func fatal(t *rapid.T, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// TestDigestIsOfRuns: the digest does not depend on how runs are cut into
// frames, and has the value that the package comment's definition gives.
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

// corrupt changes what is read back from one place, as a bad disk does.
type corrupt struct {
	driver.ImageWriter
	at int64
}

func (c corrupt) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ImageWriter.ReadAt(p, off)
	if c.at >= off && c.at < off+int64(n) {
		p[c.at-off] ^= 1
	}
	return n, err
}

// failing refuses writes beyond a place, as a full disk does.
type failing struct {
	driver.ImageWriter
	beyond int64
}

func (f failing) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.beyond {
		return 0, drover.Errorf(drover.Exhausted, "write", "no space left on device")
	}
	return f.ImageWriter.WriteAt(p, off)
}

// flipping changes one byte on the way.
type flipping struct {
	Stream
	at, seen int64
}

func (f *flipping) Write(p []byte) (int, error) {
	if i := f.at - f.seen; i >= 0 && i < int64(len(p)) {
		p = bytes.Clone(p)
		p[i] ^= 1
	}
	f.seen += int64(len(p))
	return f.Stream.Write(p)
}

// filled is an image of random content with a piece of written zeros.
func filled(t *testing.T) (*memory.Volumes, driver.ImageReader) {
	v := store(t, 4<<20)
	w, err := v.OpenWrite(t.Context(), imagePath)
	must(t, err)
	data := make([]byte, 3<<20)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(data)
	clear(data[1<<20 : 2<<20])
	_, err = w.WriteAt(data, 1<<20)
	must(t, err)
	must(t, w.Flush(t.Context()))
	must(t, w.Close())
	src, err := v.OpenRead(t.Context(), imagePath, false)
	must(t, err)
	t.Cleanup(func() { _ = src.Close() })
	return v, src
}

func TestCopyFaults(t *testing.T) {
	for name, c := range map[string]struct {
		dst  func(driver.ImageWriter) driver.ImageWriter
		here func(Stream) Stream
		want drover.Kind // at the destination
		text string      // at the source
	}{
		"disk reads back otherwise": {
			dst:  func(w driver.ImageWriter) driver.ImageWriter { return corrupt{w, 3 << 20} },
			want: drover.Corrupt, text: "read back",
		},
		"disk reads back otherwise in zeros": {
			dst:  func(w driver.ImageWriter) driver.ImageWriter { return corrupt{w, 2<<20 + 100} },
			want: drover.Corrupt, text: "not zero",
		},
		"disk is full": {
			dst:  func(w driver.ImageWriter) driver.ImageWriter { return failing{w, 2 << 20} },
			want: drover.Exhausted, text: "no space left",
		},
		"a byte changes on the way": {
			here: func(s Stream) Stream { return &flipping{Stream: s, at: 1 << 20} },
			want: drover.Corrupt, text: "checksum",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, src := filled(t)
			dst, err := store(t, 4<<20).OpenWrite(t.Context(), imagePath)
			must(t, err)
			defer dst.Close()
			here, there := pair()
			if c.here != nil {
				here = c.here(here)
			}
			if c.dst != nil {
				dst = c.dst(dst)
			}
			_, serr, rerr := carry(src, dst, here, there)
			if drover.KindOf(rerr) != c.want || rerr == nil {
				t.Errorf("destination: %v", rerr)
			}
			if serr == nil || !bytes.Contains([]byte(serr.Error()), []byte(c.text)) {
				t.Errorf("source: %v", serr)
			}
		})
	}
}

func TestCopyToSmallerDisk(t *testing.T) {
	_, src := filled(t)
	dst, err := store(t, 2<<20).OpenWrite(t.Context(), imagePath)
	must(t, err)
	defer dst.Close()
	here, there := pair()
	if _, serr, rerr := carry(src, dst, here, there); serr == nil || drover.KindOf(rerr) != drover.Invalid {
		t.Errorf("send: %v, receive: %v", serr, rerr)
	}
}

// TestHostileCopy: frames that no source of ours sends.
func TestHostileCopy(t *testing.T) {
	begin := copyFrame{kind: frameBegin, length: 4 << 20}.head()
	zero := func(off, n int64) []byte { return copyFrame{kind: frameZero, off: off, length: n}.head() }
	for name, raw := range map[string][]byte{
		"nothing":           {},
		"no begin":          zero(0, 512),
		"twice begin":       append(bytes.Clone(begin), begin...),
		"beyond the end":    append(bytes.Clone(begin), zero(4<<20-512, 1024)...),
		"backwards":         append(append(bytes.Clone(begin), zero(8192, 512)...), zero(0, 512)...),
		"overlap":           append(append(bytes.Clone(begin), zero(0, 1024)...), zero(512, 1024)...),
		"negative":          append(bytes.Clone(begin), zero(-512, 1024)...),
		"overflow":          append(bytes.Clone(begin), zero(1<<62, 1<<62)...),
		"destination's own": append(bytes.Clone(begin), copyFrame{kind: frameDone}.head()...),
		"unknown kind":      append(bytes.Clone(begin), 99),
		"ends in a frame":   append(bytes.Clone(begin), zero(0, 512)[:9]...),
		"wrong digest":      append(append(bytes.Clone(begin), zero(0, 512)...), copyFrame{kind: frameEnd}.head()...),
	} {
		t.Run(name, func(t *testing.T) {
			dst, err := store(t, 4<<20).OpenWrite(t.Context(), imagePath)
			must(t, err)
			defer dst.Close()
			here, there := pair()
			go func() {
				_, _ = here.Write(raw)
				_ = here.CloseWrite()
				_, _ = io.Copy(io.Discard, here)
			}()
			if r, err := ReceiveImage(t.Context(), there, dst, nil); err == nil {
				t.Errorf("accepted: %+v", r)
			}
		})
	}
}

// TestCopyOverTheWire goes through TLS, with a seal, a canceled copy, and one
// after it.
func TestCopyOverTheWire(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, a)
	_, src := filled(t)
	to := store(t, 4<<20)
	var sealed atomic.Pointer[CopyReport]
	_, err := s.endpoint.Open(Offer{Token: token(1), Peer: "north", Copy: func(ctx context.Context, disk string, st Stream) error {
		if disk != "vda" {
			return fmt.Errorf("disk %q", disk)
		}
		dst, err := to.OpenWrite(ctx, imagePath)
		if err != nil {
			_ = st.Close()
			return err
		}
		_, err = ReceiveImage(ctx, st, dst, func(r CopyReport) error { sealed.Store(&r); return nil })
		return errors.Join(err, dst.Close())
	}})
	must(t, err)
	d := &Dialer{TLS: a.config(pki.Agent, "north")}
	session := NewSession(0)
	open := func() Stream {
		st, err := d.Open(t.Context(), s.address, "south", Header{Token: token(1), Channel: Copy, Name: "vda"}, session)
		must(t, err)
		return st
	}
	canceled, cancel := context.WithCancel(t.Context())
	_, err = SendImage(canceled, open(), src, func(string, drover.Bytes, drover.Bytes) { cancel() })
	if drover.KindOf(err) != drover.Canceled || err == nil {
		t.Fatalf("canceled: %v", err)
	}
	if sealed.Load() != nil {
		t.Fatal("a canceled copy was sealed")
	}
	// The destination's handler may still be closing the image.
	var r CopyReport
	for range 100 {
		if r, err = SendImage(t.Context(), open(), src, nil); err == nil {
			break
		}
	}
	must(t, err)
	if got := sealed.Load(); got == nil || *got != r {
		t.Errorf("sealed %+v, sent %+v", got, r)
	}
	if r.DataBytes != 2<<20 || r.ZeroBytes != 1<<20 {
		t.Errorf("%+v", r)
	}
}
