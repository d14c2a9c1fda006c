package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/namespace"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

var _ driver.Tunnels = (*Tunnels)(nil)

const (
	// DefaultInterface and DefaultPort are what a configuration without them gets;
	// the port is the one that WireGuard's own examples have.
	DefaultInterface = "drover0"
	DefaultPort      = 51820
	// DefaultWANMTU is Ethernet's.
	DefaultWANMTU = 1500
	// MinMTU carries VXLAN over IPv6 of a frame with a packet of 1,500 bytes:
	// 1500 + 14 (Ethernet) + 8 (VXLAN) + 8 (UDP) + 40 (IPv6).
	MinMTU = 1570
	// overhead is WireGuard's of a packet: header and tag 32, UDP 8, IPv6 40.
	overhead = 80
	// minWANMTU leaves 1,280 bytes for what cannot be in fragments; maxMTU is
	// the largest frame that networks have.
	minWANMTU = 1280 + overhead
	maxMTU    = 9000
	alias     = "drover:mesh"
	// routeProtocol marks routes as Drover's.
	routeProtocol = 215
	maxInterface  = unix.IFNAMSIZ - 1
)

// MaxUnfragmented is the largest MTU of the tunnel with which every datagram
// fits into the WAN's.
func MaxUnfragmented(wanMTU int) int { return wanMTU - overhead }

// Config describes an edge's end of the mesh.
type Config struct {
	// Interface is its name; empty is DefaultInterface.
	Interface string
	// Addresses are this edge's in the mesh, each with the mesh's length.
	Addresses []netip.Prefix
	// Port is the UDP port; zero is DefaultPort.
	Port uint16
	// KeyDir is the folder of the private keys; it is made.
	KeyDir string
	// WANMTU is what the way to the peers carries, in bytes; zero is DefaultWANMTU.
	WANMTU int
	// MTU is the interface's; zero is what WANMTU gives without fragments, or MinMTU if that is more.
	MTU int
	// UserSpace does without the kernel's WireGuard where there is one.
	UserSpace bool
	// Log may be nil.
	Log *slog.Logger
}

// Validate reports what is wrong; the kind is drover.Invalid.
func (c Config) Validate() error {
	const op = "wireguard"
	if c.Interface != "" {
		if err := drover.CheckName("interface", c.Interface); err != nil {
			return err
		}
	}
	switch {
	case len(c.Interface) > maxInterface:
		return drover.Errorf(drover.Invalid, op, "interface %q: want at most %d characters", c.Interface, maxInterface)
	case len(c.Addresses) == 0:
		return drover.Errorf(drover.Invalid, op, "no mesh address")
	case !filepath.IsAbs(c.KeyDir):
		return drover.Errorf(drover.Invalid, op, "folder of keys %q: want an absolute path", c.KeyDir)
	case c.WANMTU != 0 && (c.WANMTU < minWANMTU || c.WANMTU > maxMTU):
		return drover.Errorf(drover.Invalid, op, "WAN MTU %d: want %d to %d", c.WANMTU, minWANMTU, maxMTU)
	case c.MTU != 0 && (c.MTU < 1280 || c.MTU > maxMTU):
		return drover.Errorf(drover.Invalid, op, "MTU %d: want 1280 to %d", c.MTU, maxMTU)
	}
	for _, a := range c.Addresses {
		if !a.IsValid() || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || a.Addr().Is4In6() {
			return drover.Errorf(drover.Invalid, op, "mesh address %v: want an address with the mesh's length", a)
		}
	}
	return nil
}

// Tunnels is the edge's end of the mesh.
type Tunnels struct {
	cfg    Config
	log    *slog.Logger
	ns     netns.NsHandle
	nl     *netlink.Handle
	index  int
	kernel bool
	eng    engine

	mu     sync.Mutex
	closed bool
	keys   *keys
	set    []driver.Peer
	active map[string]driver.TunnelKey // by peer's name: the key that the addresses are behind

	quiet map[driver.TunnelKey]waiting  // peers that may call first
	calls map[driver.TunnelKey]nextCall // peers that are called until they answer

	wake    chan struct{} // there is a peer to watch
	done    chan struct{}
	running sync.WaitGroup
}

// Open makes the interface in the network namespace of the calling thread.
func Open(ctx context.Context, cfg Config) (*Tunnels, error) {
	const op = "open wireguard"
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, drover.E(drover.Canceled, op, err)
	}
	cfg.Interface = cmp.Or(cfg.Interface, DefaultInterface)
	cfg.Port = cmp.Or(cfg.Port, DefaultPort)
	cfg.WANMTU = cmp.Or(cfg.WANMTU, DefaultWANMTU)
	cfg.MTU = cmp.Or(cfg.MTU, max(MinMTU, MaxUnfragmented(cfg.WANMTU)))
	t := &Tunnels{
		cfg: cfg, log: cfg.Log, ns: netns.None(), active: map[string]driver.TunnelKey{}, quiet: map[driver.TunnelKey]waiting{}, calls: map[driver.TunnelKey]nextCall{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if err := t.open(); err != nil {
		return nil, fail(op, errors.Join(err, t.release()))
	}
	t.running.Go(t.watch)
	return t, nil
}

func (t *Tunnels) open() (err error) {
	if t.keys, err = openKeys(t.cfg.KeyDir); err != nil {
		return err
	}
	if t.ns, err = netns.Get(); err != nil {
		return err
	}
	if t.nl, err = netlink.NewHandleAt(t.ns, unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if err := t.free(); err != nil {
		return err
	}
	if err := t.start(); err != nil {
		return err
	}
	link, err := t.nl.LinkByName(t.cfg.Interface)
	if err != nil {
		return err
	}
	t.index = link.Attrs().Index
	if err := t.nl.LinkSetAlias(link, alias); err != nil {
		return fmt.Errorf("mark %s: %w", t.cfg.Interface, err)
	}
	if err := t.nl.LinkSetMTU(link, t.cfg.MTU); err != nil {
		return fmt.Errorf("MTU of %s: %w", t.cfg.Interface, err)
	}
	port := int(t.cfg.Port)
	if err := t.eng.configure(wgtypes.Config{PrivateKey: &t.keys.key, ListenPort: &port}); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return drover.Errorf(drover.Exists, fmt.Sprintf("UDP port %d", port), "somebody else has it: %w", err)
		}
		return fmt.Errorf("configure %s: %w", t.cfg.Interface, err)
	}
	for _, a := range t.cfg.Addresses {
		n := ipNet(a)
		addr := &netlink.Addr{IPNet: &n, Flags: unix.IFA_F_NODAD}
		if err := t.nl.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("address %v of %s: %w", a, t.cfg.Interface, err)
		}
	}
	return t.nl.LinkSetUp(link)
}

// free fails when somebody else has an interface of the name.
func (t *Tunnels) free() error {
	link, err := t.nl.LinkByName(t.cfg.Interface)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		return nil
	case err != nil:
		return err
	case link.Attrs().Alias != alias:
		return drover.Errorf(drover.Exists, "interface "+t.cfg.Interface, "somebody else has made it")
	}
	return nil
}

func (t *Tunnels) start() (err error) {
	if !t.cfg.UserSpace {
		t.eng, err = openKernel(t.nl, t.cfg.Interface, t.cfg.MTU)
		t.kernel = err == nil
		if !errors.Is(err, errNoKernel) {
			return err
		}
	}
	t.eng, err = openUser(t.cfg.Interface, t.cfg.MTU, t.cfg.WANMTU, t.within, t.log)
	return err
}

// release closes what was opened.
func (t *Tunnels) release() error {
	var err error
	if t.eng != nil {
		err = t.eng.close()
	}
	if t.nl != nil {
		t.nl.Close()
	}
	if t.ns.IsOpen() {
		err = errors.Join(err, t.ns.Close())
	}
	return err
}

// Close ends the tunnel and removes the interface.
func (t *Tunnels) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	close(t.done)
	t.mu.Unlock()
	t.running.Wait()
	return fail("close wireguard", t.release())
}

// within runs f in the driver's network namespace.
func (t *Tunnels) within(f func() error) error {
	return namespace.In(t.ns, f)
}

// begin takes the lock unless the operation cannot begin. On success the
// caller unlocks.
func (t *Tunnels) begin(ctx context.Context, op string) error {
	t.mu.Lock()
	var err error
	switch {
	case t.closed:
		err = drover.Errorf(drover.Canceled, op, "the tunnel is closed")
	case ctx.Err() != nil:
		err = drover.E(drover.Canceled, op, ctx.Err())
	}
	if err != nil {
		t.mu.Unlock()
	}
	return err
}

// Self tells what the others have to know of this edge.
func (t *Tunnels) Self(ctx context.Context) (driver.Mesh, error) {
	if err := t.begin(ctx, "mesh"); err != nil {
		return driver.Mesh{}, err
	}
	defer t.mu.Unlock()
	return t.self(), nil
}

func (t *Tunnels) self() driver.Mesh {
	m := driver.Mesh{
		Interface: t.cfg.Interface, Addresses: slices.Clone(t.cfg.Addresses), Port: t.cfg.Port,
		Key: driver.TunnelKey(t.keys.key.PublicKey()), MTU: t.cfg.MTU, Kernel: t.kernel,
	}
	if t.keys.next != (wgtypes.Key{}) {
		m.Next = driver.TunnelKey(t.keys.next.PublicKey())
	}
	return m
}

// Rotate makes the key that is to come.
func (t *Tunnels) Rotate(ctx context.Context) (driver.Mesh, error) {
	const op = "rotate key"
	if err := t.begin(ctx, op); err != nil {
		return driver.Mesh{}, err
	}
	defer t.mu.Unlock()
	if err := t.keys.rotate(); err != nil {
		return driver.Mesh{}, fail(op, err)
	}
	return t.self(), nil
}

// Adopt takes the next key into use.
func (t *Tunnels) Adopt(ctx context.Context, key driver.TunnelKey) error {
	const op = "adopt key"
	if err := t.begin(ctx, op); err != nil {
		return err
	}
	defer t.mu.Unlock()
	self := t.self()
	switch {
	case key == self.Key:
		return nil
	case key.IsZero() || key != self.Next:
		return drover.Errorf(drover.Refused, op, "%v is not the next key", key)
	}
	if err := t.keys.adopt(); err != nil {
		return fail(op, err)
	}
	if err := t.eng.configure(wgtypes.Config{PrivateKey: &t.keys.key}); err != nil {
		return fail(op, err)
	}
	return fail(op, t.greet())
}

// greet makes a handshake with every peer that can be called, so that none has to
// wait for something to send.
func (t *Tunnels) greet() error {
	var off, on []wgtypes.PeerConfig
	for _, p := range t.set {
		if p.Keepalive == 0 {
			continue
		}
		for _, key := range []driver.TunnelKey{p.Key, p.Next} {
			if key.IsZero() {
				continue
			}
			// Something is sent at once when a keepalive is switched on.
			off = append(off, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), PersistentKeepaliveInterval: new(p.Keepalive * 0)})
			on = append(on, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), PersistentKeepaliveInterval: new(p.Keepalive)})
		}
	}
	if len(on) == 0 {
		return nil
	}
	if err := t.eng.configure(wgtypes.Config{Peers: off}); err != nil {
		return err
	}
	return t.eng.configure(wgtypes.Config{Peers: on})
}

// fail wraps what the system said, with the kind it stands for.
func fail(op string, err error) error {
	var e *drover.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return drover.E(e.Kind, op, err)
	case errors.Is(err, fs.ErrPermission):
		return drover.E(drover.Denied, op, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE):
		return drover.E(drover.Exhausted, op, err)
	}
	return drover.E(drover.Internal, op, err)
}

// udp is an endpoint as WireGuard's configuration has it.
func udp(a netip.AddrPort) *net.UDPAddr {
	if !a.IsValid() {
		return nil
	}
	return net.UDPAddrFromAddrPort(a)
}
