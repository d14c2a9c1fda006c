package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
)

// FRR's places; its shell, vtysh, looks there.
const (
	frrPrograms = "/usr/lib/frr/"
	frrRun      = "/run/frr"
	frrEtc      = "/etc/frr"
	frrUser     = "frr"
	zebraSocket = frrRun + "/zserv.api"
)

// Services of a router.
const (
	zebraService  = "zebra"
	staticService = "staticd"
	bgpService    = "bgpd"
)

// routerFiles writes a router's configuration and returns its services.
func routerFiles(plan *topology.Plan, n *topology.Node, dir string) ([]node.Service, error) {
	frr, err := user.Lookup(frrUser)
	if err != nil {
		return nil, fmt.Errorf("FRR is not installed, apt-get install frr: %w", err)
	}
	uid, errUID := strconv.Atoi(frr.Uid)
	gid, errGID := strconv.Atoi(frr.Gid)
	if errUID != nil || errGID != nil {
		return nil, fmt.Errorf("user %s has the numbers %q and %q", frrUser, frr.Uid, frr.Gid)
	}
	etc, run := filepath.Join(dir, frrFolder), filepath.Join(dir, frrRun)
	for _, d := range []string{etc, run} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	files := map[string]string{
		"vtysh.conf":            "no service integrated-vtysh-config\n",
		zebraService + ".conf":  frrHead(n.Name),
		staticService + ".conf": frrHead(n.Name) + staticConf(n.Router),
		bgpService + ".conf":    frrHead(n.Name) + bgpConf(n.Router, plan.Announced(), allHosts(plan)),
	}
	owned := []string{etc, run}
	for name, text := range files {
		path := filepath.Join(etc, name)
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			return nil, err
		}
		owned = append(owned, path)
	}
	for _, path := range owned {
		if err := os.Chown(path, uid, gid); err != nil {
			return nil, err
		}
	}
	var list []node.Service
	for _, s := range []string{zebraService, staticService, bgpService} {
		list = append(list, node.Service{Name: s, Args: []string{
			frrPrograms + s, "-f", frrEtc + "/" + s + ".conf", "-i", frrRun + "/" + s + ".pid",
			"-z", zebraSocket, "-A", "127.0.0.1", "-P", "0",
		}})
	}
	return list, nil
}

// frrFolder is a router's folder for frrEtc.
const frrFolder = "etc-frr"

func frrHead(name string) string {
	return "hostname " + name + "\nlog stdout notifications\n"
}

// staticConf leads what is behind the edge to it.
func staticConf(r *topology.Router) string {
	var b strings.Builder
	for _, p := range r.Behind {
		if p.Addr().Is4() {
			fmt.Fprintf(&b, "ip route %s %s\n", p, r.Edge.Address)
		} else {
			fmt.Fprintf(&b, "ipv6 route %s %s\n", p, r.Edge.Address6)
		}
	}
	return b.String()
}

// Names of the prefix lists.
const (
	labList  = "lab"  // what other routers may announce
	edgeList = "edge" // what the speaker in the edge may announce
)

// bgpConf is the configuration of a router's bgpd. Announcements are believed
// only where they can be right: of another router the subnets of the lab and
// single addresses within segments, of the edge the latter alone.
func bgpConf(r *topology.Router, subnets, hosts []netip.Prefix) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for _, v6 := range []bool{false, true} {
		family := map[bool]string{false: "ip", true: "ipv6"}[v6]
		lists := []struct {
			name         string
			exact, hosts []netip.Prefix
		}{{labList, subnets, hosts}, {edgeList, nil, r.Hosts}}
		for _, l := range lists {
			seq := 0
			add := func(rule string) {
				seq += 5
				say("%s prefix-list %s seq %d %s", family, l.name, seq, rule)
			}
			for _, p := range ofFamily(l.exact, v6) {
				add("permit " + p.String())
			}
			for _, p := range ofFamily(l.hosts, v6) {
				add(fmt.Sprintf("permit %s ge %d", p, p.Addr().BitLen()))
			}
			add("deny any")
		}
	}
	say("router bgp %d", r.AS)
	say(" bgp router-id %s", r.ID)
	say(" bgp log-neighbor-changes")
	say(" no bgp ebgp-requires-policy")
	say(" no bgp default ipv4-unicast")
	// Of ways with as many links, always the same one, and it alone.
	say(" bgp bestpath compare-routerid")
	say(" timers bgp 1 3")
	neighbour := func(p topology.Peer, passive bool) {
		for _, a := range p.Addresses() {
			say(" neighbor %s remote-as %d", a, p.AS)
			say(" neighbor %s description %s", a, p.Name)
			say(" neighbor %s timers connect 1", a)
			say(" neighbor %s advertisement-interval 0", a)
			if passive {
				say(" neighbor %s passive", a)
			}
		}
	}
	neighbour(r.Edge, true)
	for _, p := range r.Peers {
		neighbour(p, false)
	}
	for _, v6 := range []bool{false, true} {
		say(" address-family %s unicast", map[bool]string{false: "ipv4", true: "ipv6"}[v6])
		say("  maximum-paths 1")
		for _, p := range ofFamily(r.Networks, v6) {
			say("  network %s", p)
		}
		activate := func(a netip.Addr, list string) {
			say("  neighbor %s activate", a)
			say("  neighbor %s prefix-list %s in", a, list)
		}
		// The edge's speaker needs one session for both families.
		for _, a := range r.Edge.Addresses() {
			if v6 || a.Is4() {
				activate(a, edgeList)
			}
		}
		for _, p := range r.Peers {
			for _, a := range p.Addresses() {
				if a.Is6() == v6 {
					activate(a, labList)
				}
			}
		}
		say(" exit-address-family")
	}
	return b.String()
}

func ofFamily(list []netip.Prefix, v6 bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool { return p.Addr().Is6() != v6 })
}

// allHosts are the subnets within which any edge may announce single addresses.
func allHosts(plan *topology.Plan) []netip.Prefix {
	var all []netip.Prefix
	for _, n := range plan.Nodes {
		if n.Router == nil {
			continue
		}
		for _, p := range n.Router.Hosts {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

// startRouters starts the routers and returns when each knows the way to every
// subnet.
func (l *Lab) startRouters(ctx context.Context, plan *topology.Plan, pids map[string]int) error {
	g, gctx := errgroup.WithContext(ctx)
	found := false
	for i := range plan.Nodes {
		if plan.Nodes[i].Role != topology.RouterRole {
			continue
		}
		found = true
		name := plan.Nodes[i].Name
		g.Go(func() error {
			if err := l.startService(gctx, name, zebraService); err != nil {
				return err
			}
			// The others try again after ten seconds when zebra is not there yet.
			err := l.awaitService(gctx, name, zebraService, func(ctx context.Context) error {
				return dialSocket(ctx, filepath.Join(node.Dir(l.Dir, name), zebraSocket))
			})
			if err != nil {
				return err
			}
			for _, s := range []string{staticService, bgpService} {
				if err := l.startService(gctx, name, s); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil || !found {
		return err
	}
	if err := poll(ctx, readyPoll, readyLimit, func(context.Context) error { return plan.Routed(pids) }); err != nil {
		return fmt.Errorf("the routers do not find each other: %w", err)
	}
	return nil
}
