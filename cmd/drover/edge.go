package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/agent"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/bgp"
	"github.com/drover-vm/drover/driver/dhcp"
	"github.com/drover-vm/drover/driver/dns"
	"github.com/drover-vm/drover/driver/haproxy"
	"github.com/drover-vm/drover/driver/kernel"
	"github.com/drover-vm/drover/driver/vxlan"
	"github.com/drover-vm/drover/driver/wireguard"
)

// Folders of an edge's drivers in the agent's state folder.
const (
	meshKeys       = "mesh"
	routeRecord    = "routes"
	balancerRecord = "balancers"
)

// edgeDrivers are an edge's drivers and how to close them, last first.
type edgeDrivers struct {
	agent.EdgeDrivers
	log     *slog.Logger
	closers []io.Closer
}

// openEdge opens the drivers that an edge's file names. On an error nothing
// stays open.
func openEdge(ctx context.Context, log *slog.Logger, cfg agent.Config) (*edgeDrivers, error) {
	d := &edgeDrivers{log: log}
	d.Names, d.Leases, d.Balancers = map[string]driver.Names{}, map[string]driver.Leases{}, map[string]driver.Balancer{}
	for _, open := range []func(context.Context, agent.Config) error{
		d.openMesh, d.openSegments, d.openRoutes, d.openZones, d.openDHCP, d.openBalancers,
	} {
		if err := open(ctx, cfg); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}

// Close closes all drivers.
func (d *edgeDrivers) Close() error {
	var err error
	for i := len(d.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, d.closers[i].Close())
	}
	d.closers = nil
	return err
}

func (d *edgeDrivers) openMesh(ctx context.Context, cfg agent.Config) error {
	m := cfg.Edge.Mesh
	if m == nil {
		return nil
	}
	t, err := wireguard.Open(ctx, wireguard.Config{
		Interface: m.Interface, Addresses: m.Addresses, Port: m.Port, KeyDir: filepath.Join(cfg.State, meshKeys),
		WANMTU: m.WANMTU, UserSpace: m.UserSpace, Log: d.log,
	})
	if err != nil {
		return err
	}
	d.Tunnels, d.closers = t, append(d.closers, t)
	return nil
}

func (d *edgeDrivers) openSegments(ctx context.Context, cfg agent.Config) error {
	if len(cfg.Edge.Segments) == 0 {
		return nil
	}
	s, err := vxlan.Open(ctx, vxlan.Config{Log: d.log})
	if err != nil {
		return err
	}
	d.Segments, d.closers = s, append(d.closers, s)
	a, err := kernel.New(kernel.Config{Log: d.log})
	if err != nil {
		return err
	}
	d.Addresses, d.closers = a, append(d.closers, a)
	return nil
}

func (d *edgeDrivers) openRoutes(_ context.Context, cfg agent.Config) error {
	b := cfg.Edge.BGP
	if b == nil {
		return nil
	}
	c := bgp.Config{
		Dir: filepath.Join(cfg.State, routeRecord), AS: b.AS, Hold: time.Duration(b.Hold), Restart: time.Duration(b.Restart),
	}
	for _, a := range b.Addresses {
		if a.Is4() {
			c.NextHop4 = a
		} else {
			c.NextHop6 = a
		}
	}
	if !c.NextHop4.IsValid() {
		c.RouterID = routerID(b.AS)
	}
	for _, n := range b.Neighbors {
		c.Neighbors = append(c.Neighbors, bgp.Neighbor{Address: n.Address, AS: n.AS})
	}
	s, err := bgp.Open(d.log, c)
	if err != nil {
		return err
	}
	d.Routes, d.closers = s, append(d.closers, s)
	return nil
}

// routerID names an edge without an IPv4 address in BGP: its AS in four bytes.
func routerID(as uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(as >> 24), byte(as >> 16), byte(as >> 8), byte(as)})
}

func (d *edgeDrivers) openZones(_ context.Context, cfg agent.Config) error {
	for _, z := range cfg.Edge.Zones {
		key, err := dns.ReadKeyFile(z.KeyFile)
		if err != nil {
			return drover.E(drover.Invalid, "zone "+z.Name, err)
		}
		s, err := dns.New(d.log, dns.Config{Zone: z.Name, Primary: z.Primary, Servers: z.Servers, Key: key})
		if err != nil {
			return drover.E(drover.KindOf(err), "zone "+z.Name, err)
		}
		d.Names[z.Name], d.closers = s, append(d.closers, s)
	}
	return nil
}

func (d *edgeDrivers) openDHCP(_ context.Context, cfg agent.Config) error {
	for _, s := range cfg.Edge.DHCP {
		var l driver.Leases
		var err error
		if s.Libvirt != "" {
			l, err = dhcp.NewNetworks(d.log, dhcp.NetworksConfig{Socket: s.Libvirt, Segments: s.Networks})
		} else {
			l, err = dhcp.NewKea(d.log, dhcp.KeaConfig{Socket4: s.Kea4, Socket6: s.Kea6, Segments: keaSegments(cfg.Edge, s)})
		}
		if err != nil {
			return err
		}
		d.closers = append(d.closers, l)
		for _, name := range s.Segments {
			d.Leases[name] = l
		}
		for name := range s.Networks {
			d.Leases[name] = l
		}
	}
	return nil
}

// keaSegments are the subnets that Kea serves, as far as it has a server for
// their family.
func keaSegments(e *agent.Edge, s agent.EdgeDHCP) map[string]dhcp.KeaSegment {
	served := map[string]dhcp.KeaSegment{}
	for _, name := range s.Segments {
		var k dhcp.KeaSegment
		for _, seg := range e.Segments {
			if seg.Name != name {
				continue
			}
			for _, p := range seg.Subnets {
				switch {
				case p.Addr().Is4() && s.Kea4 != "" && !k.Subnet4.IsValid():
					k.Subnet4 = p
				case !p.Addr().Is4() && s.Kea6 != "" && !k.Subnet6.IsValid():
					k.Subnet6 = p
				}
			}
		}
		served[name] = k
	}
	return served
}

func (d *edgeDrivers) openBalancers(_ context.Context, cfg agent.Config) error {
	for _, b := range cfg.Edge.Balancers {
		lb, err := haproxy.New(haproxy.Config{
			Socket: b.Socket, StateDir: filepath.Join(cfg.State, balancerRecord, b.Backends[0]), ServerStateFile: b.StateFile, Log: d.log,
		})
		if err != nil {
			return err
		}
		d.closers = append(d.closers, lb)
		for _, k := range b.Backends {
			d.Balancers[k] = lb
		}
	}
	return nil
}
