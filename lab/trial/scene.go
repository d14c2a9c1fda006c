package trial

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/topology"
)

// Scene is a lab that has what every method needs: edges behind routers, a DNS
// zone, DHCP servers, a load balancer, and clients outside.
type Scene struct {
	*Lab
	// Outside is the client from which guests are used.
	Outside string
	// Zone is the DNS zone that the guests are named in.
	Zone string
	// Backend is that of the load balancer, Service where clients reach it.
	Backend string
	Service netip.AddrPort

	node *lab.Lab
	file *labfile.File
	// dns is the zone's primary server.
	dns netip.AddrPort
	// at are the guests' addresses as they are now.
	at map[string]netip.Addr
}

// OpenScene looks at a lab that was started from the lab file. Outside is a
// client of it; empty: the first.
func OpenScene(l *Lab, file, outside string) (*Scene, error) {
	f, err := labfile.Load(file)
	if err != nil {
		return nil, err
	}
	plan, err := topology.New(f)
	if err != nil {
		return nil, err
	}
	s := &Scene{Lab: l, file: f, Outside: outside, at: map[string]netip.Addr{}}
	if s.node, err = lab.Open(lab.Options{Exe: l.Bin}, l.Name); err != nil {
		return nil, err
	}
	if outside == "" {
		if len(f.Clients) == 0 {
			return nil, fmt.Errorf("the lab %s has no client", l.Name)
		}
		s.Outside = f.Clients[0].Name
	}
	for _, g := range f.Guests {
		s.at[g.Name] = g.Address.Addr
	}
	if len(f.DNS) > 0 {
		s.Zone = f.DNS[0].Zone
		s.dns = lab.Services(f, plan, f.DNS[0].Primary).Zones[0].Servers[0]
	}
	if len(f.Balancers) > 0 {
		b := &f.Balancers[0]
		s.Backend, s.Service = b.Name, b.Listens()[0]
	}
	return s, nil
}

// Guest returns the control client of a guest at the address that it has now. No
// connection outlives its request, but for a stream: each would be a session that
// moves along.
func (s *Scene) Guest(name string) (*control.Client, error) {
	a, ok := s.at[name]
	if !ok {
		return nil, fmt.Errorf("the lab %s has no guest %s", s.Name, name)
	}
	return s.guestAt(a), nil
}

func (s *Scene) guestAt(a netip.Addr) *control.Client {
	transport := s.node.Transport(s.Outside)
	transport.DisableKeepAlives = true
	// Longer than a cold move: the stream of acknowledgements stalls.
	transport.ResponseHeaderTimeout = 2 * time.Minute
	return &control.Client{
		Base: "http://" + netip.AddrPortFrom(a, control.HTTPPort).String(),
		HTTP: &http.Client{Transport: transport},
	}
}

// Address is the guest's now.
func (s *Scene) Address(name string) netip.Addr { return s.at[name] }

// VM asks the server for a VM.
func (s *Scene) VM(ctx context.Context, name string) (drover.VM, error) {
	var v drover.VM
	err := s.Drover(ctx, &v, "vms", "get", name)
	return v, err
}

// SegmentAt is the segment in which a VM that comes to a site gets a new address:
// the one of those at home there that is no layer 2 network with another site.
func (s *Scene) SegmentAt(site string) (string, error) {
	i := slices.IndexFunc(s.file.Segments, func(g labfile.Segment) bool {
		return g.Home() == site && (len(g.Sites) == 1 || !g.IsJoined()) && slices.ContainsFunc(s.file.DHCP, func(d labfile.DHCP) bool {
			return d.Site == site && d.Segment == g.Name
		})
	})
	if i < 0 {
		return "", fmt.Errorf("no segment with a DHCP server is at home at %s", site)
	}
	return s.file.Segments[i].Name, nil
}

// EdgeOf is the site's node that is its edge.
func EdgeOf(site string) string { return labfile.EdgeName(site) }

// BalancerEdge is the edge that has the load balancer.
func (s *Scene) BalancerEdge() string {
	if len(s.file.Balancers) == 0 {
		return ""
	}
	return labfile.EdgeName(s.file.Balancers[0].Site)
}
