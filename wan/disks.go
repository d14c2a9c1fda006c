package wan

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/wan/remote"
)

// A connection to a disk that was left behind begins with the disk's name: its
// length in one byte, then the name. What follows is package remote's, NBD.
//
//	the VM's host                       the host that has the image
//	      ── TLS, ALPN drover-disk ──▶
//	      ── length, name ───────────▶
//	      ◀═ NBD ═══════════════════▶

// RemoteDisk is a disk that was left behind, as the VM's host serves it to QEMU;
// DiskFigures are what a guest has done there. SharedDisk is the other end.
type (
	RemoteDisk  = remote.Disk
	DiskFigures = remote.Figures
	SharedDisk  = remote.Share
)

// NewRemoteDisk returns the disk called name, of size bytes, at the agent called
// peer at address. It is to be opened before a guest may use it.
func (n *Node) NewRemoteDisk(address, peer, name string, size int64) *RemoteDisk {
	return remote.New(remote.Options{
		Size: size, Export: name, Log: n.log,
		Dial: func(ctx context.Context) (net.Conn, error) { return n.DialDisk(ctx, address, peer, name) },
	})
}

// NewSharedDisk returns the end of a disk of size bytes that has the image. open is
// called when it is needed, and again after it has failed.
func (n *Node) NewSharedDisk(size int64, open func(context.Context) (driver.ImageWriter, error)) *SharedDisk {
	return remote.NewShare(remote.ShareOptions{
		Size: size, Log: n.log, Open: func(ctx context.Context) (remote.Image, error) { return open(ctx) },
	})
}

// maxDisks bounds the connections to disks: some for each VM that was moved away
// without them.
const maxDisks = 1024

// diskDialLimit bounds connecting: three round trips of the longest WAN and a lost
// packet. A guest waits, so the next attempt should not.
const diskDialLimit = 4 * time.Second

// DialDisk connects to the disk called name at the agent called peer at address
// ("ip:port"). The errors are those of a session of the data path.
func (n *Node) DialDisk(ctx context.Context, address, peer, name string) (net.Conn, error) {
	if len(name) == 0 || len(name) > 255 {
		return nil, drover.Errorf(drover.Invalid, "connect to disk", "name of %d bytes: want 1 to 255", len(name))
	}
	ctx, cancel := context.WithTimeout(ctx, diskDialLimit)
	defer cancel()
	conn, err := dialFor(ctx, n.config.TLS, address, peer, Disks)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append([]byte{byte(len(name))}, name...)); err != nil {
		_ = conn.Close()
		return nil, drover.E(drover.Unavailable, "connect to disk "+name, err)
	}
	return conn, nil
}

// ServeDisks takes the connections of l (a Mux's Disks) until ctx ends or l is
// closed, and waits for all. serve has the connection, which it closes, from the
// agent called peer to the disk called name.
func ServeDisks(ctx context.Context, l net.Listener, log *slog.Logger, serve func(ctx context.Context, peer, name string, conn net.Conn)) error {
	var group sync.WaitGroup
	defer group.Wait()
	unhook := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer unhook()
	places := make(chan struct{}, maxDisks)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return drover.E(drover.Internal, "accept connection to disk", err)
		}
		select {
		case places <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		group.Go(func() {
			defer func() { <-places }()
			unhook := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer unhook()
			peer, name, err := admitDisk(conn)
			if err != nil {
				log.Warn("connection to a disk refused", "remote", conn.RemoteAddr().String(), "err", err)
				_ = conn.Close()
				return
			}
			serve(ctx, peer, name, conn)
		})
	}
}

// admitDisk reads who wants which disk.
func admitDisk(conn net.Conn) (peer, name string, err error) {
	c, ok := conn.(*tls.Conn)
	if !ok {
		return "", "", fmt.Errorf("connection is a %T", conn)
	}
	if tcp, ok := c.NetConn().(*net.TCPConn); ok {
		tuneDisk(tcp)
	}
	state := c.ConnectionState()
	who, err := pki.Peer(&state)
	if err != nil {
		return "", "", err
	}
	if who.Role != pki.Agent {
		return "", "", fmt.Errorf("%s: want an agent", who)
	}
	if err := c.SetReadDeadline(time.Now().Add(helloLimit)); err != nil {
		return "", "", err
	}
	var length [1]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return "", "", fmt.Errorf("%s: %w", who, err)
	}
	text := make([]byte, length[0])
	if _, err := io.ReadFull(c, text); err != nil {
		return "", "", fmt.Errorf("%s: %w", who, err)
	}
	return who.Name, string(text), c.SetReadDeadline(time.Time{})
}
