package wan

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/pki"
)

// BenchmarkRelay carries a memory stream from one unix socket to another over
// TLS on loopback.
func BenchmarkRelay(b *testing.B) {
	a := newAuthority(b)
	s := serve(b, a)
	dir := b.TempDir()
	there, err := net.Listen("unix", filepath.Join(dir, "there"))
	must(b, err)
	defer there.Close()
	drained := make(chan int64, 1)
	go func() {
		c, err := there.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
		drained <- n
	}()
	_, err = s.endpoint.Open(Offer{Token: token(1), Peer: "north", Sockets: map[Channel]string{Memory: filepath.Join(dir, "there")}})
	must(b, err)
	d := &Dialer{TLS: a.config(pki.Agent, "north")}
	r, err := NewRelay(filepath.Join(dir, "here"), func(ctx context.Context) (Stream, error) {
		return d.Open(ctx, s.address, "south", Header{Token: token(1), Channel: Memory}, NewSession(0))
	})
	must(b, err)
	defer r.Close()
	c, err := net.Dial("unix", filepath.Join(dir, "here"))
	must(b, err)
	defer c.Close()
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	b.ResetTimer()
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	must(b, c.(*net.UnixConn).CloseWrite())
	if n := <-drained; n == 0 {
		b.Fatal("nothing arrived")
	}
}

// BenchmarkCopy sends a full image over TLS on loopback, digest and read-back
// included.
func BenchmarkCopy(b *testing.B) {
	const size = 64 << 20
	a := newAuthority(b)
	s := serve(b, a)
	from, to := store(b, size), store(b, size)
	w, err := from.OpenWrite(b.Context(), imagePath)
	must(b, err)
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i*7 + i>>12)
	}
	_, err = w.WriteAt(content, 0)
	must(b, err)
	must(b, w.Flush(b.Context()))
	must(b, w.Close())
	ended := make(chan error, 1)
	_, err = s.endpoint.Open(Offer{Token: token(1), Peer: "north", Copy: func(ctx context.Context, _ string, st Stream) error {
		dst, err := to.OpenWrite(ctx, imagePath)
		if err == nil {
			_, err = ReceiveImage(ctx, st, dst, nil)
			_ = dst.Close()
		}
		ended <- err
		return err
	}})
	must(b, err)
	d := &Dialer{TLS: a.config(pki.Agent, "north")}
	src, err := from.OpenRead(b.Context(), imagePath, false)
	must(b, err)
	defer src.Close()
	var img driver.ImageReader = src
	b.SetBytes(size)
	b.ResetTimer()
	for b.Loop() {
		st, err := d.Open(b.Context(), s.address, "south", Header{Token: token(1), Channel: Copy, Name: "vda"}, NewSession(0))
		must(b, err)
		_, err = SendImage(b.Context(), st, img, nil)
		must(b, err)
		must(b, <-ended)
	}
}
