package topology

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// vxlanPort is the port of RFC 7348.
const vxlanPort = 4789

// buildParallel bounds how many nodes are worked on at once: the kernel holds
// one lock for all changes of interfaces.
const buildParallel = 4

// Build makes the bridges, cables and tunnels. pids are the process ids of the
// nodes' holders. It leaves half of the work behind when it fails; the caller
// ends the holders.
func (p *Plan) Build(ctx context.Context, pids map[string]int) error {
	return p.each(ctx, pids, func(n *Node, hs handles) error {
		h := hs[n.Name]
		for _, b := range n.Bridges {
			if err := addBridge(h, b); err != nil {
				return fmt.Errorf("node %s: bridge %s: %w", n.Name, b.Name, err)
			}
		}
		return nil
	}, func(hs handles) error {
		for _, c := range p.Cables {
			if err := addCable(hs, c, pids); err != nil {
				return fmt.Errorf("cable from %s to %s: %w", c.A.Node, c.B.Node, err)
			}
		}
		return nil
	})
}

// Connect gives the WAN links their addresses, once the emulator has made them,
// and sets the tunnels and routes that lead over them.
func (p *Plan) Connect(ctx context.Context, pids map[string]int) error {
	return p.each(ctx, pids, func(n *Node, hs handles) error {
		h := hs[n.Name]
		for _, l := range p.Links {
			for _, end := range l.Ends {
				if end.Node != n.Name {
					continue
				}
				if err := plug(h, end); err != nil {
					return fmt.Errorf("node %s: link %s: %w", n.Name, l.Name, err)
				}
			}
		}
		for _, v := range n.VXLANs {
			if err := addVXLAN(h, v); err != nil {
				return fmt.Errorf("node %s: tunnel %s: %w", n.Name, v.Name, err)
			}
		}
		for _, r := range n.Routes {
			route := &netlink.Route{Dst: ipNet(r.To), Gw: r.Via.AsSlice()}
			if r.Source.IsValid() {
				route.Src = r.Source.AsSlice()
			}
			if err := h.RouteReplace(route); err != nil {
				return fmt.Errorf("node %s: route to %s via %s: %w", n.Name, r.To, r.Via, err)
			}
		}
		return nil
	}, nil)
}

// handles are netlink connections into the nodes' network namespaces.
type handles map[string]*netlink.Handle

// each opens a handle for every node, runs perNode for the nodes in parallel, and
// then whole.
func (p *Plan) each(ctx context.Context, pids map[string]int, perNode func(*Node, handles) error, whole func(handles) error) error {
	hs := handles{}
	defer func() {
		for _, h := range hs {
			h.Close()
		}
	}()
	for _, n := range p.Nodes {
		h, err := open(pids[n.Name])
		if err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		hs[n.Name] = h
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(buildParallel)
	for i := range p.Nodes {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return perNode(&p.Nodes[i], hs)
		})
	}
	if err := g.Wait(); err != nil || whole == nil {
		return err
	}
	return whole(hs)
}

func open(pid int) (*netlink.Handle, error) {
	if pid == 0 {
		return nil, errors.New("no holder")
	}
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("enter network namespace: %w", err)
	}
	return h, nil
}

func addBridge(h *netlink.Handle, b Bridge) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = b.Name, b.MAC
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	for _, a := range b.Services {
		if err := addAddress(h, b.Name, netip.PrefixFrom(a, a.BitLen()), 0); err != nil {
			return err
		}
	}
	if !b.Elsewhere {
		return plug(h, Port{Interface: b.Name, Address: b.Address, Address6: b.Address6})
	}
	for _, p := range []netip.Prefix{b.Address, b.Address6} {
		if err := addAddress(h, b.Name, p, unix.IFA_F_NOPREFIXROUTE); err != nil {
			return err
		}
	}
	return plug(h, Port{Interface: b.Name})
}

// addAddress gives an interface an address, unless that is invalid. Nothing in a
// lab has another's address, so IPv6 need not look before it uses one.
func addAddress(h *netlink.Handle, name string, p netip.Prefix, flags int) error {
	if !p.IsValid() {
		return nil
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if p.Addr().Is6() {
		flags |= unix.IFA_F_NODAD
	}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(p), Flags: flags}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, p, err)
	}
	return nil
}

// addCable makes a veth pair between two namespaces; it never exists anywhere else.
func addCable(hs handles, c Cable, pids map[string]int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = c.A.Interface, c.MTU
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: c.B.Interface, PeerNamespace: netlink.NsPid(pids[c.B.Node])}
	if c.MTU > 0 {
		pair.PeerMTU = uint32(c.MTU)
	}
	if err := hs[c.A.Node].LinkAdd(pair); err != nil {
		return err
	}
	return errors.Join(plug(hs[c.A.Node], c.A), plug(hs[c.B.Node], c.B))
}

func addVXLAN(h *netlink.Handle, v VXLAN) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = v.Name, guestMTU
	link := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: v.VNI, SrcAddr: v.Local.AsSlice(), Port: vxlanPort, Learning: true}
	if err := h.LinkAdd(link); err != nil {
		return err
	}
	made, err := h.LinkByName(v.Name)
	if err != nil {
		return err
	}
	for _, r := range v.Remotes {
		// The entry of the zero address is where frames go that are for everyone
		// or whose owner has not been learnt.
		err := h.NeighAppend(&netlink.Neigh{
			LinkIndex: made.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
			State: netlink.NUD_PERMANENT | netlink.NUD_NOARP,
			IP:    r.AsSlice(), HardwareAddr: make(net.HardwareAddr, 6),
		})
		if err != nil {
			return fmt.Errorf("flood to %s: %w", r, err)
		}
	}
	return plug(h, Port{Interface: v.Name, Bridge: v.Bridge})
}

// plug puts an interface into its bridge or gives it its address, and sets it up.
func plug(h *netlink.Handle, p Port) error {
	link, err := h.LinkByName(p.Interface)
	if err != nil {
		return fmt.Errorf("interface %s: %w", p.Interface, err)
	}
	if p.Bridge != "" {
		bridge, err := h.LinkByName(p.Bridge)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", p.Bridge, err)
		}
		if err := h.LinkSetMasterByIndex(link, bridge.Attrs().Index); err != nil {
			return fmt.Errorf("put %s into %s: %w", p.Interface, p.Bridge, err)
		}
	}
	for _, a := range []netip.Prefix{p.Address, p.Address6} {
		if err := addAddress(h, p.Interface, a, 0); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", p.Interface, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
