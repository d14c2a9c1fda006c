package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
)

// world is what all nodes of a lab are told.
type world struct {
	hosts     string // the text of /etc/hosts
	dnsSecret string // of the key for updates, in base64
}

// edgeServers writes the files of the servers on an edge and returns them.
func edgeServers(f *labfile.File, plan *topology.Plan, n *topology.Node, dir, dnsSecret string) ([]node.Service, error) {
	list, err := dnsServer(f, plan, n, dir, dnsSecret)
	if err != nil {
		return nil, err
	}
	services := Services(f, plan, n.Site)
	for _, write := range []func() ([]node.Service, error){
		func() ([]node.Service, error) { return keaServers(f, plan, n, dir) },
		func() ([]node.Service, error) { return dhcpServices(f, n, dir) },
		func() ([]node.Service, error) { return haproxyServer(services.Balancer, dir) },
	} {
		more, err := write()
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

// edgeSockets are the sockets at which servers of an edge answer, by service.
var edgeSockets = map[string]string{
	keaProgram4:    keaSocket4,
	keaProgram6:    keaSocket6,
	haproxyProgram: haproxyAdmin,
}

// startEdges starts the servers on the edges, whose networks are there now, and
// returns when they answer.
func (l *Lab) startEdges(ctx context.Context, f *labfile.File, plan *topology.Plan) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.startDNS(ctx, f, plan) })
	for _, n := range l.Nodes {
		if n.Role != topology.Edge {
			continue
		}
		for _, s := range n.Services {
			socket, waits := edgeSockets[s]
			if !waits && !isDnsmasq(s) {
				continue // it is started elsewhere
			}
			g.Go(func() error {
				if err := l.startService(ctx, n.Name, s); err != nil || !waits {
					return err
				}
				return l.awaitService(ctx, n.Name, s, func(ctx context.Context) error {
					return dialSocket(ctx, filepath.Join(n.Dir, socket))
				})
			})
		}
	}
	return g.Wait()
}

// resolvConf is a client's /etc/resolv.conf: the name servers of the lab's zones.
func resolvConf(f *labfile.File, plan *topology.Plan) string {
	text, zones := "", "search"
	var asked []string
	for i := range f.DNS {
		zones += " " + f.DNS[i].Zone
		for _, s := range f.DNS[i].Sites() {
			if a := plan.Node(labfile.EdgeName(s)).Address.String(); !slices.Contains(asked, a) && len(asked) < maxResolvers {
				asked = append(asked, a)
				text += fmt.Sprintf("nameserver %s\n", a)
			}
		}
	}
	if text == "" {
		return ""
	}
	return zones + "\n" + text
}

// maxResolvers is how many name servers the resolver asks (MAXNS in resolver(3)).
const maxResolvers = 3
