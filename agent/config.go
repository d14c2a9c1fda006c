package agent

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
)

// Config is an agent's file.
type Config struct {
	// Name of the host; it is also the certificate's.
	Name string `yaml:"name"`
	Site string `yaml:"site"`
	// Listen is "ip:port", where servers and other agents reach it.
	Listen string `yaml:"listen"`
	// Run holds sockets, made anew at each start; State what must outlive one.
	Run   string    `yaml:"run"`
	State string    `yaml:"state"`
	TLS   pki.Files `yaml:"tls"`
	// Libvirt is the path of libvirtd's unix socket; absent where no VMs run.
	Libvirt string `yaml:"libvirt,omitempty"`
	// Volumes are the folders in which disk images lie.
	Volumes []string `yaml:"volumes,omitempty"`
	Edge    *Edge    `yaml:"edge,omitempty"`
	// Probe lets a server run the client-side probe here.
	Probe bool `yaml:"probe,omitempty"`
}

// Edge makes the agent its site's edge.
type Edge struct {
	Links []EdgeLink `yaml:"links,omitempty"`
}

// EdgeLink is a WAN link that this edge counts.
type EdgeLink struct {
	Name string `yaml:"name"`
	A    string `yaml:"a"`
	B    string `yaml:"b"`
	// Counters say where its bytes are counted: "unix:///PATH" is a WAN
	// emulator's control socket, "interface:NAME" a network interface of this
	// edge, which sends towards B.
	Counters string `yaml:"counters"`
}

// longestSocket is the longest path below Run: a move's name of 63 bytes and
// a socket's; socketPathMax what sockaddr_un holds.
const (
	longestSocket = len("/s/") + 63 + len("/m")
	socketPathMax = 107
)

// Validate returns one line for each fault, or nil.
func (c Config) Validate() error {
	var faults []string
	fault := func(field, format string, args ...any) {
		faults = append(faults, field+": "+fmt.Sprintf(format, args...))
	}
	for _, e := range []struct{ field, value string }{{"name", c.Name}, {"site", c.Site}} {
		if err := drover.CheckName(e.field, e.value); err != nil {
			faults = append(faults, err.Error())
		}
	}
	if host, port, err := net.SplitHostPort(c.Listen); err != nil || net.ParseIP(host) == nil || port == "" {
		fault("listen", "%q is not an address: want IP:PORT, such as 10.1.0.11:7443", c.Listen)
	}
	for _, e := range []struct{ field, value string }{
		{"run", c.Run}, {"state", c.State}, {"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key},
	} {
		if !filepath.IsAbs(e.value) {
			fault(e.field, "%q is not an absolute path", e.value)
		}
	}
	if n := len(c.Run) + longestSocket; n > socketPathMax {
		fault("run", "%q is too long by %d bytes: sockets below it must have paths of at most %d", c.Run, n-socketPathMax, socketPathMax)
	}
	c.validateHypervisor(fault)
	c.validateEdge(fault)
	if len(faults) == 0 {
		return nil
	}
	return drover.E(drover.Invalid, "", errors.New(strings.Join(faults, "\n")))
}

func (c Config) validateHypervisor(fault func(field, format string, args ...any)) {
	switch {
	case c.Libvirt == "" && c.Edge == nil && !c.Probe:
		fault("libvirt", "missing: want libvirtd's socket, such as /run/libvirt/libvirt-sock, or an edge or probe: true")
	case c.Libvirt == "":
	case !filepath.IsAbs(c.Libvirt):
		fault("libvirt", "%q is not an absolute path", c.Libvirt)
	case len(c.Volumes) == 0:
		fault("volumes", "missing: want the folders of the disk images, such as /var/lib/libvirt/images")
	}
	for i, dir := range c.Volumes {
		if !filepath.IsAbs(dir) {
			fault(fmt.Sprintf("volumes[%d]", i), "%q is not an absolute path", dir)
		}
	}
}

func (c Config) validateEdge(fault func(field, format string, args ...any)) {
	if c.Edge == nil {
		return
	}
	seen := make(map[string]bool)
	for i, l := range c.Edge.Links {
		field := fmt.Sprintf("edge.links[%d]", i)
		for _, e := range []struct{ field, value string }{{".name", l.Name}, {".a", l.A}, {".b", l.B}} {
			if err := drover.CheckName(field+e.field, e.value); err != nil {
				fault(field+e.field, "%q is not a name", e.value)
			}
		}
		if seen[l.Name] {
			fault(field+".name", "%q is there twice", l.Name)
		}
		seen[l.Name] = true
		if l.A == l.B {
			fault(field, "a and b are both %q: want two sites", l.A)
		}
		unix, isUnix := strings.CutPrefix(l.Counters, "unix://")
		device, isDevice := strings.CutPrefix(l.Counters, "interface:")
		if !(isUnix && filepath.IsAbs(unix)) && !(isDevice && device != "" && !strings.ContainsAny(device, "/ ")) {
			fault(field+".counters", "%q: want unix:///PATH or interface:NAME", l.Counters)
		}
	}
}
