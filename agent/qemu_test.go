package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover/nbd"
)

// capturedStream is a migration stream that QEMU has really written.
var capturedStream = sync.OnceValues(func() ([]byte, error) {
	packed, err := os.ReadFile("../wan/page/testdata/10.0-plain.stream.zst")
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.DecodeAll(packed, nil)
})

// thanks is what the destination's QEMU says when it has everything.
const thanks = "all has come"

// carryBytes stands for the two QEMUs: a memory stream and a disk's mirror go
// over the sockets, and what arrives is compared.
func (w *world) carryBytes(ctx context.Context, _, from, to string) error {
	src, dst := w.hosts[from].current().agent.sockets, w.hosts[to].current().agent.sockets
	if err := carryDisk(ctx, src.disk(moveName), dst.disk(moveName)); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if err := carryMemory(ctx, src.memory(moveName), dst.memory(moveName)); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return nil
}

func carryMemory(ctx context.Context, from, to string) error {
	want, err := capturedStream()
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", to)
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := new(net.Dialer).DialContext(ctx, "unix", from)
	if err != nil {
		return err
	}
	defer c.Close()
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = c.Close(); _ = l.Close() })
	defer stop()
	group.Go(func() error {
		in, err := l.Accept()
		if err != nil {
			return err
		}
		defer in.Close()
		unhook := context.AfterFunc(ctx, func() { _ = in.Close() })
		defer unhook()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(in, got); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("other bytes arrived")
		}
		_, err = io.WriteString(in, thanks)
		return err
	})
	group.Go(func() error {
		if _, err := c.Write(want); err != nil {
			return err
		}
		answer := make([]byte, len(thanks))
		if _, err := io.ReadFull(c, answer); err != nil {
			return err
		}
		if string(answer) != thanks {
			return fmt.Errorf("answer %q", answer)
		}
		return c.Close()
	})
	return group.Wait()
}

// ramDisk is an export in memory.
type ramDisk struct {
	mu      sync.Mutex
	content []byte
}

func (d *ramDisk) Size() int64 { return int64(len(d.content)) }

func (d *ramDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.content[off:])
	return nil
}

func (d *ramDisk) Write(_ context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.content[off:], p)
	return nil
}

func (d *ramDisk) Zero(_ context.Context, off, length int64, _ nbd.ZeroOptions) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.content[off : off+length])
	return nil
}

func (d *ramDisk) Trim(context.Context, int64, int64) error { return nil }
func (d *ramDisk) Flush(context.Context) error              { return nil }

func carryDisk(ctx context.Context, from, to string) error {
	l, err := net.Listen("unix", to)
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	disk := &ramDisk{content: make([]byte, diskLen)}
	var servers sync.WaitGroup
	defer servers.Wait()
	defer cancel()
	servers.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			servers.Go(func() {
				_ = nbd.Serve(ctx, in, nbd.ServerOptions{Open: func(context.Context, string) (nbd.Backend, error) { return disk, nil }})
			})
		}
	})
	c, err := new(net.Dialer).DialContext(ctx, "unix", from)
	if err != nil {
		return err
	}
	mirror, err := nbd.New(ctx, c, nbd.Options{Export: "drive-virtio-disk0"})
	if err != nil {
		return err
	}
	defer mirror.Close()
	want := bytes.Repeat([]byte("guest bytes "), diskLen/12+1)[:diskLen]
	if _, err := mirror.WriteAt(want, 0); err != nil {
		return err
	}
	if err := mirror.Flush(ctx); err != nil {
		return err
	}
	disk.mu.Lock()
	defer disk.mu.Unlock()
	if !bytes.Equal(disk.content, want) {
		return errors.New("the mirror has other bytes")
	}
	return nil
}
