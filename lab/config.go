package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/drover-vm/drover/agent"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/server"
)

// Ports of Drover's processes in a lab.
const (
	agentPort, serverPort = "7443", "7444"
	// MetricsPort is where each agent and the server tell their metrics, at their
	// node's address.
	MetricsPort = "7445"
)

// Places inside a node where Drover's processes find their things.
const (
	runDir     = "/run/drover"
	confDir    = runDir + "/conf"
	tlsDir     = confDir + "/tls"
	stateDir   = runDir + "/state"
	serverSock = runDir + "/server.sock"

	libvirtSock = "/run/libvirt/libvirt-sock"
	volumesDir  = "/var/lib/libvirt/images"
)

// clientConfig is the command line's file.
type clientConfig struct {
	Server string    `yaml:"server"`
	TLS    pki.Files `yaml:"tls"`
}

// drovers writes the files and certificates of the lab's agents, its server and
// its operator, all under one certificate authority.
func (l *Lab) drovers(f *labfile.File, plan *topology.Plan) error {
	ca, err := pki.NewCA(filepath.Join(l.Dir, pkiDir), time.Now())
	if err != nil {
		return err
	}
	for i := range plan.Nodes {
		n := &plan.Nodes[i]
		if n.Role == topology.RouterRole {
			continue // it runs nothing of Drover's
		}
		conf := filepath.Join(node.Dir(l.Dir, n.Name), "run", confDir[len("/run/"):])
		role := pki.Agent
		if n.Role == topology.Server {
			role = pki.Server
		}
		own := filepath.Join(conf, "tls")
		files, err := ca.Issue(pki.Identity{Role: role, Name: n.Name}, []string{n.Address.String(), n.Name}, own, time.Now())
		if err != nil {
			return err
		}
		files = insideNode(files)
		if role == pki.Server {
			err = writeYAML(filepath.Join(conf, "server.yaml"), newServerConfig(f, plan, n, files))
		} else {
			err = writeYAML(filepath.Join(conf, "agent.yaml"), newAgentConfig(f, plan, n, files))
		}
		if err != nil {
			return err
		}
	}
	files, err := ca.Issue(pki.Identity{Role: pki.Operator, Name: "lab"}, nil, filepath.Join(l.Dir, pkiDir, "operator"), time.Now())
	if err != nil {
		return err
	}
	l.Client = filepath.Join(l.Dir, clientFile)
	return writeYAML(l.Client, clientConfig{Server: "unix://" + l.serverSocket(), TLS: files})
}

// serverSocket is the server's socket as the lab machine sees it.
func (l *Lab) serverSocket() string {
	return filepath.Join(node.Dir(l.Dir, labfile.ServerName), serverSock)
}

func newAgentConfig(f *labfile.File, plan *topology.Plan, n *topology.Node, files pki.Files) agent.Config {
	c := agent.Config{Name: n.Name, Site: n.Site, Listen: agentAddress(n.Address), State: stateDir, Run: runDir, TLS: files, Metrics: metricsAddress(n.Address)}
	switch n.Role {
	case topology.Host:
		c.Libvirt, c.Volumes = libvirtSock, []string{volumesDir}
	case topology.Client:
		c.Probe = true
	case topology.Edge:
		c.Edge = newEdgeConfig(f, plan, n.Site)
		for _, k := range plan.Links {
			if slices.Contains(k.Sites[:], n.Site) {
				c.Edge.Links = append(c.Edge.Links, agent.EdgeLink{
					Name: k.Name, A: k.Sites[0], B: k.Sites[1],
					Counters: "unix://" + filepath.Join(node.LabDir, wanSocket),
				})
			}
		}
	}
	return c
}

func newServerConfig(f *labfile.File, plan *topology.Plan, n *topology.Node, files pki.Files) server.Config {
	c := server.Config{
		Name: n.Name, Listen: net.JoinHostPort(n.Address.String(), serverPort),
		Socket: serverSock, State: stateDir, TLS: files, Metrics: metricsAddress(n.Address),
	}
	for _, s := range f.Sites {
		site := server.SiteConfig{Name: s.Name, Country: s.Country}
		if s.Location != nil {
			site.Latitude, site.Longitude = s.Location.Lat, s.Location.Lon
		}
		c.Sites = append(c.Sites, site)
	}
	for _, a := range plan.Nodes {
		if a.Role != topology.Server && a.Role != topology.RouterRole {
			c.Agents = append(c.Agents, server.AgentConfig{Name: a.Name, Site: a.Site, Address: agentAddress(a.Address)})
		}
	}
	for _, k := range f.Links {
		c.Links = append(c.Links, server.LinkConfig{
			Name: k.Name, A: k.A, B: k.B, Rate: server.Rate(k.Rate), RTT: server.Duration(2 * k.OneWay()),
		})
	}
	return c
}

func metricsAddress(a netip.Addr) string { return net.JoinHostPort(a.String(), MetricsPort) }

func agentAddress(a netip.Addr) string { return net.JoinHostPort(a.String(), agentPort) }

// insideNode turns certificate files of a node's folder into what the node sees.
func insideNode(f pki.Files) pki.Files {
	at := func(p string) string { return filepath.Join(tlsDir, filepath.Base(p)) }
	return pki.Files{CA: at(f.CA), Cert: at(f.Cert), Key: at(f.Key)}
}

func writeYAML(path string, v any) error {
	b, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return os.WriteFile(path, b, 0o600)
}
