package wan

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/frame"
)

// Protocol is the ALPN name of the data path, Control that of the agents'
// calls (HTTP/2), Disks that of VMs' ways to disks that were left behind. The data
// path's version is negotiated in its hello.
const (
	Protocol = "drover-wan"
	Control  = "h2"
	Disks    = "drover-disk"
)

// MinToken and MaxToken bound a session's token in bytes.
const (
	MinToken = frame.MinToken
	MaxToken = frame.MaxToken
)

const (
	// helloLimit bounds the wait for a hello after the handshake.
	helloLimit = 10 * time.Second
	// maxWaiting bounds connections whose hello has not come yet. Only agents
	// of this installation get so far.
	maxWaiting = 256
)

// Config is what a node works with.
type Config struct {
	// TLS is the process's configuration, from pki.Config.
	TLS *tls.Config
	// Dir is where content is kept and catalogued between moves. Empty: nothing
	// is, as on an edge; then nothing can be referred to.
	Dir string
	// Keep bounds what is kept in Dir; zero is chunk's default.
	Keep drover.Bytes
	// IndexRate is how many bytes a second are read in the background to
	// catalogue content; zero is chunk's default.
	IndexRate drover.Bytes
	// Connections per session; zero is bundle's default.
	Connections int
	// CutLimit is how long a session outlives its last connection; zero is
	// bundle's default, five minutes.
	CutLimit time.Duration
	Log      *slog.Logger
}

// Node is one agent's end of the data path: what it sends, what arrives, and
// what it knows of content.
type Node struct {
	config  Config
	log     *slog.Logger
	gate    *bundle.Gate
	library *chunk.Library // nil without a folder

	mu       sync.Mutex
	arriving map[string]*Receiver // by token
	imaged   map[chunk.SourceID]map[string]bool
}

// NewNode opens the folder. Close, after Run and Serve have returned, closes it.
func NewNode(c Config) (*Node, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Connections == 0 {
		c.Connections = bundle.DefaultConns // of which an Approach makes as many
	}
	n := &Node{
		config: c, log: c.Log, gate: bundle.NewGate(),
		arriving: make(map[string]*Receiver), imaged: make(map[chunk.SourceID]map[string]bool),
	}
	if c.Dir == "" {
		return n, nil
	}
	var err error
	n.library, err = chunk.OpenLibrary(c.Dir, chunk.Options{LimitBytes: int64(c.Keep), IndexRate: int64(c.IndexRate), Log: c.Log})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Run catalogues content in the background until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	if n.library == nil {
		<-ctx.Done()
		return nil
	}
	return n.library.Run(ctx)
}

// Close ends every session that is left and closes the folder.
func (n *Node) Close() error {
	n.mu.Lock()
	var left []*Receiver
	for _, r := range n.arriving {
		left = append(left, r)
	}
	n.mu.Unlock()
	for _, r := range left {
		r.Close()
	}
	if n.library == nil {
		return nil
	}
	return n.library.Close()
}

// AddImage makes an image, which has to stay what it is, known as content: VMs
// of the tenant that are moved here or away may refer to it. Repeating it is fine.
func (n *Node) AddImage(ctx context.Context, tenant string, id driver.ContentID, size drover.Bytes, open chunk.Opener) error {
	if n.library == nil {
		return nil
	}
	n.mu.Lock()
	known := n.imaged[chunk.SourceID(id)][tenant]
	n.mu.Unlock()
	if known {
		return nil
	}
	src := chunk.Source{ID: chunk.SourceID(id), Kind: chunk.KindImage, Blocks: blocksOf(int64(size)), Scope: tenant}
	if err := n.library.AddImage(ctx, src, open); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.imaged[src.ID] == nil {
		n.imaged[src.ID] = make(map[string]bool)
	}
	n.imaged[src.ID][tenant] = true
	return nil
}

// AddRemains makes what is left of a VM's disk, after the move that took it
// away, known as content. It is to be called again after each start, and to be
// undone by ForgetRemains before the image is removed or written to.
func (n *Node) AddRemains(ctx context.Context, s Subject, target string, size drover.Bytes, open chunk.Opener) error {
	if n.library == nil {
		return nil
	}
	return n.library.AddDisk(ctx, chunk.Source{
		ID: chunk.DiskID(s.Move, s.VM, target), Kind: chunk.KindDisk, Blocks: blocksOf(int64(size)), Scope: s.Tenant, VM: s.VM,
	}, open, chunk.Kept{})
}

// AwaitRemains waits until what AddRemains has made known can be referred to; the
// errors are those of the library's WaitIndexed.
func (n *Node) AwaitRemains(ctx context.Context, move, vm, target string) error {
	if n.library == nil {
		return nil
	}
	return n.library.WaitIndexed(ctx, chunk.DiskID(move, vm, target))
}

// ForgetRemains undoes AddRemains; unknown ones are fine.
func (n *Node) ForgetRemains(move, vm, target string) {
	if n.library != nil {
		n.library.Remove(chunk.DiskID(move, vm, target))
	}
}

// working says that a session begins (1) or ends (-1): the cataloguing rests
// meanwhile.
func (n *Node) working(delta int) {
	switch {
	case n.library == nil:
	case delta > 0:
		n.library.Pause()
	default:
		n.library.Resume()
	}
}

// LibraryStats say what content a node keeps and knows.
type LibraryStats = chunk.Stats

// LibraryStats returns what is kept and known now.
func (n *Node) LibraryStats() LibraryStats {
	if n.library == nil {
		return LibraryStats{}
	}
	return n.library.Stats()
}

// Serve takes the connections of l (a Mux's Data) until ctx ends or l is
// closed, and waits for those that have not found their session.
func (n *Node) Serve(ctx context.Context, l net.Listener) error {
	var group sync.WaitGroup
	defer group.Wait()
	unhook := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer unhook()
	waiting := make(chan struct{}, maxWaiting)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return drover.E(drover.Internal, "accept wan connection", err)
		}
		c, ok := conn.(*tls.Conn)
		if !ok {
			_ = conn.Close()
			return drover.Errorf(drover.Internal, "accept wan connection", "connection is a %T", conn)
		}
		select {
		case waiting <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		group.Go(func() {
			defer func() { <-waiting }()
			unhook := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer unhook()
			if err := n.take(c); err != nil {
				n.log.Warn("wan connection refused", "remote", c.RemoteAddr().String(), "err", err)
				_ = c.Close()
			}
		})
	}
}

// take reads the hello and hands the connection to its session.
func (n *Node) take(c *tls.Conn) error {
	state := c.ConnectionState()
	who, err := pki.Peer(&state)
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(helloLimit)); err != nil {
		return err
	}
	hello, err := frame.ReadHello(c)
	if err != nil {
		return fmt.Errorf("%s: %w", who, err)
	}
	n.mu.Lock()
	r := n.arriving[string(hello.Token)]
	n.mu.Unlock()
	if r == nil || who != (pki.Identity{Role: pki.Agent, Name: r.options.Peer}) {
		// Every reason to refuse looks the same to the peer.
		a := frame.Answer{Status: frame.Refused, Lowest: frame.Oldest, Highest: frame.Newest, Text: "no such session"}
		_, _ = c.Write(a.Append(nil))
		return fmt.Errorf("%s: no such session", who)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if err := r.bundle.Attach(c, hello); err != nil {
		return fmt.Errorf("%s: %w", who, err)
	}
	return nil
}

// blocksOf is the number of blocks that hold size bytes.
func blocksOf(size int64) int64 { return (size + chunk.BlockBytes - 1) / chunk.BlockBytes }
