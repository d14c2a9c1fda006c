package server

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/network"
)

// asked is what a caller wants of a move's network, beside where it goes.
type asked struct {
	method drover.Method
	// why the method was chosen; nil: it was asked for.
	why         []string
	localEgress bool
	// renumber is for the method renumber.
	renumber drover.RenumberWish
	// addresses that the VM has in its segments, besides those observed.
	addresses []netip.Addr
	// stay leaves the disks where they are; disksOnly brings those that were left.
	stay, disksOnly bool
	// makes is nil for methods that make no other VM.
	makes *makes
}

// maxAddresses bounds the addresses that a caller may name.
const maxAddresses = 64

func newAsked(method drover.Method, r interface {
	GetLocalEgress() bool
	GetAddresses() []string
	GetRenumber() *droverv1.RenumberWish
	GetClone() *droverv1.CloneWish
	GetStorage() string
	GetDisksOnly() bool
},
) (asked, error) {
	if err := checkStorage(method, r.GetStorage(), r.GetDisksOnly()); err != nil {
		return asked{}, err
	}
	clone, err := newMakes(method, r)
	if err != nil {
		return asked{}, err
	}
	addresses, err := api.ParseAddresses("addresses", r.GetAddresses())
	if err == nil && len(addresses) > maxAddresses {
		err = drover.Errorf(drover.Invalid, "addresses", "%d: want at most %d", len(addresses), maxAddresses)
	}
	if err == nil && len(addresses) > 0 {
		err = drover.E(drover.Invalid, "addresses", driver.CheckHostAddresses(addresses))
	}
	if err != nil {
		return asked{}, err
	}
	wish, err := api.RenumberWishFromProto(r.GetRenumber())
	if err == nil && method != drover.Renumber && !wish.IsZero() {
		err = drover.Errorf(drover.Invalid, "renumber", "it is for the method %s: new addresses, their segment and name, and a limit for old sessions", drover.Renumber)
	}
	return asked{stay: r.GetStorage() != "", disksOnly: r.GetDisksOnly(), method: method, localEgress: r.GetLocalEgress(), renumber: wish, addresses: addresses, makes: clone}, err
}

// keepsRunning reports whether the guest's memory comes along.
func keepsRunning(m drover.Method) bool {
	return m == drover.Live || m == drover.Stretch || m == drover.Route || m == drover.Renumber
}

// apart returns the VM's segments that are not one layer 2 network with the
// site. A segment that no edge knows is not among them.
func (s *Server) apart(vm drover.VM, site string) []drover.Segment {
	if vm.Site == site {
		return nil
	}
	var found []drover.Segment
	segments := s.fleet.viewSegments()
	for _, n := range vm.NICs {
		seg, known := network.SegmentOf(segments, n)
		if known && !seg.Joined && !slices.ContainsFunc(found, func(o drover.Segment) bool { return o.Name == seg.Name }) {
			found = append(found, seg)
		}
	}
	return found
}

func segmentNames(segments []drover.Segment) string {
	names := make([]string, len(segments))
	for i, s := range segments {
		names[i] = s.Name
	}
	if len(names) == 1 {
		return "segment " + names[0]
	}
	return "segments " + strings.Join(names, ", ")
}

// siteEdges returns the edges of sites, one for each, by site.
func (f *fleet) siteEdges() []*agent {
	all := f.edges()
	slices.SortFunc(all, func(a, b *agent) int { return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Name, b.Name)) })
	return slices.CompactFunc(all, func(a, b *agent) bool { return a.Site == b.Site })
}

// edgeView is what one edge says of itself, and of an owner.
type edgeView struct {
	agent    *agent
	state    drover.EdgeState
	standing network.Standing
	err      error
}

func (a *agent) view(ctx context.Context, owner string) edgeView {
	ctx, cancel := context.WithTimeout(ctx, edgeLimit)
	defer cancel()
	v := edgeView{agent: a, standing: network.Standing{Site: a.Site}}
	r, err := a.client.EdgeStatus(ctx, &droverv1.EdgeStatusRequest{})
	if err != nil {
		v.err = err
		return v
	}
	v.state = api.EdgeStateFromProto(r.GetState())
	owned, err := a.client.Owned(ctx, &droverv1.OwnedRequest{})
	if err != nil {
		v.err = err
		return v
	}
	for _, t := range owned.GetThings() {
		if t.GetOwner() != owner {
			continue
		}
		switch k := t.GetKind(); {
		case k == "route":
			v.standing.Routes = true
		case k == string(driver.RoleMeter) || k == string(driver.RoleWatch):
			// It leads nothing anywhere.
		case slices.Contains(driver.AddressRoles, driver.AddressRole(k)):
			v.standing.Addresses = true
		}
	}
	return v
}

// networkWorld asks the edges that have one of the VM's segments.
func (s *Server) networkWorld(ctx context.Context, vm drover.VM, to string) (network.World, []edgeView, error) {
	moves, err := s.moving(ctx)
	if err != nil {
		return network.World{}, nil, err
	}
	w := network.World{Segments: s.fleet.viewSegments(), VMs: s.fleet.viewVMs(moves)}
	need := []string{vm.Site, to}
	for _, n := range vm.NICs {
		if seg, known := network.SegmentOf(w.Segments, n); known && !seg.Joined {
			need = append(append(need, seg.Home), seg.Sites...)
		}
	}
	var ask []*agent
	for _, a := range s.fleet.siteEdges() {
		if slices.Contains(need, a.Site) {
			ask = append(ask, a)
			w.Edges = append(w.Edges, network.Edge{Site: a.Site, Host: a.Name, Address: a.Address})
		}
	}
	views := askAll(ask, func(a *agent) edgeView { return a.view(ctx, network.Owner(vm.UUID)) })
	for _, v := range views {
		w.Standing = append(w.Standing, v.standing)
		for _, x := range v.state.Extended {
			w.Extended = append(w.Extended, network.Extent{Site: v.agent.Site, Segment: x.Segment, Owners: x.Owners})
		}
	}
	return w, views, nil
}

func wishOf(r executor.Request) network.Wish {
	return network.Wish{VM: r.VM, From: r.From.Site, To: r.To.Site, Method: r.Method, LocalEgress: r.LocalEgress}
}

// planner makes plans of networks for the executor.
type planner struct{ *Server }

var _ executor.Planner = planner{}

// PlanNetwork implements executor.Planner. An edge that does not answer is
// waited for: what it has extended is not known.
func (p planner) PlanNetwork(ctx context.Context, r executor.Request) (network.Plan, error) {
	world, views, err := p.networkWorld(ctx, r.VM, r.To.Site)
	if err != nil {
		return network.Plan{}, err
	}
	for _, v := range views {
		if v.err != nil {
			return network.Plan{}, drover.E(drover.KindOf(v.err), "edge "+v.agent.Name, v.err)
		}
	}
	return network.Make(wishOf(r), world)
}

// withAddresses completes a VM's NICs with addresses that were observed before
// or given by the caller, and returns those of the latter that belong nowhere.
func withAddresses(vm, seen drover.VM, given []netip.Addr, segments []drover.Segment) (drover.VM, []netip.Addr) {
	vm.NICs = slices.Clone(vm.NICs)
	for i, n := range vm.NICs {
		j := slices.IndexFunc(seen.NICs, func(o drover.NIC) bool { return strings.EqualFold(o.MAC, n.MAC) })
		if len(n.Addresses) == 0 && j >= 0 {
			vm.NICs[i].Addresses = slices.Clone(seen.NICs[j].Addresses)
		}
	}
	var lost []netip.Addr
	for _, a := range given {
		at := slices.IndexFunc(vm.NICs, func(n drover.NIC) bool {
			seg, known := network.SegmentOf(segments, n)
			return known && seg.Contains(a)
		})
		switch {
		case at < 0:
			lost = append(lost, a)
		case !slices.Contains(vm.NICs[at].Addresses, a):
			vm.NICs[at].Addresses = append(slices.Clone(vm.NICs[at].Addresses), a)
		}
	}
	return vm, lost
}

// checks reads the findings of an edge, which knows other VMs by their owners only:
// those that the server knows get their names.
func (f *fleet) checks(in []*droverv1.Check) []drover.Check {
	checks := api.ChecksFromProto(in)
	for i := range checks {
		if c := &checks[i]; !c.OK && strings.Contains(c.Detail, network.Owner("")) {
			for _, v := range f.viewVMs(nil) {
				c.Detail = strings.ReplaceAll(c.Detail, network.Owner(v.UUID), "vm "+v.Name)
			}
		}
	}
	return checks
}

func listed[T fmt.Stringer](items []T) string {
	words := make([]string, len(items))
	for i, x := range items {
		words[i] = x.String()
	}
	return strings.Join(words, ", ")
}
