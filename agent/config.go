package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/wan"
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
	// Checks is the folder of the programs that a move's health check may run
	// here; absent: none.
	Checks string `yaml:"checks,omitempty"`
	// Metrics is "ip:port", where Prometheus reads this agent's metrics over
	// plain HTTP; empty: nowhere.
	Metrics string `yaml:"metrics,omitempty"`
	// CutLimit is how long a cut of the WAN may last before a transfer is given
	// up; zero takes DefaultCutLimit.
	CutLimit Duration      `yaml:"cut_limit,omitempty"`
	Remains  RemainsConfig `yaml:"remains,omitempty"`
	// TenantLabel is the label of VMs that says whose they are; empty takes
	// DefaultTenantLabel. What one tenant's VMs left behind is of no use for
	// another's.
	TenantLabel string `yaml:"tenant_label,omitempty"`
	// Path is how the data path to other agents works.
	Path PathConfig `yaml:"path,omitempty"`
	// Signals is how guests are looked at.
	Signals SignalsConfig `yaml:"signals,omitempty"`
}

// PathConfig is the data path's part of an agent's file.
type PathConfig struct {
	// Connections per move; zero takes 4.
	Connections int `yaml:"connections,omitempty"`
	// Keep bounds the memories of VMs that have come or gone, and what is known
	// of images, in the state folder; nil takes 16 GiB.
	Keep *Size `yaml:"keep,omitempty"`
	// IndexRate is how much of images and remains is read a second, in the
	// background, to know their content; zero takes 64 MiB.
	IndexRate Size `yaml:"index_rate,omitempty"`
}

// mostConnections of one move; more cost memory and win nothing.
const mostConnections = 32

// wan is the configuration of the agent's end of the data path.
func (c Config) wan(d Deps, log *slog.Logger) wan.Config {
	w := wan.Config{
		TLS: d.TLS, Connections: c.Path.Connections, IndexRate: drover.Bytes(c.Path.IndexRate),
		CutLimit: c.cutLimit(), Log: log,
	}
	if d.Hypervisor != nil {
		w.Dir = filepath.Join(c.State, contentFolder)
	}
	if c.Path.Keep != nil {
		w.Keep = drover.Bytes(*c.Path.Keep)
	}
	return w
}

// DefaultCutLimit is how long a cut of the WAN may last where the file does not
// say: most are over by then, and libvirt has its own patience, too.
const DefaultCutLimit = 5 * time.Minute

// DefaultTenantLabel is the label that names a VM's tenant.
const DefaultTenantLabel = "tenant"

// cutLimit, tenantLabel are the settings with their defaults.
func (c Config) cutLimit() time.Duration {
	if c.CutLimit == 0 {
		return DefaultCutLimit
	}
	return time.Duration(c.CutLimit)
}

func (c Config) tenantLabel() string {
	if c.TenantLabel == "" {
		return DefaultTenantLabel
	}
	return c.TenantLabel
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
	if c.Checks != "" && !filepath.IsAbs(c.Checks) {
		fault("checks", "%q is not an absolute path", c.Checks)
	}
	if n := len(c.Run) + longestSocket; n > socketPathMax {
		fault("run", "%q is too long by %d bytes: sockets below it must have paths of at most %d", c.Run, n-socketPathMax, socketPathMax)
	}
	c.validateHypervisor(fault)
	c.validateEdge(fault)
	c.validatePath(fault)
	c.Signals.validate(fault)
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

// Bounds of what a file may say about the data path: beyond them a digit is
// wrong.
const (
	leastCutLimit = time.Second
	mostCutLimit  = 24 * time.Hour
	mostKeep      = 10 * 365 * 24 * time.Hour
	mostLabel     = 128
)

func (c Config) validatePath(fault func(field, format string, args ...any)) {
	if c.Metrics != "" {
		if host, port, err := net.SplitHostPort(c.Metrics); err != nil || net.ParseIP(host) == nil || port == "" {
			fault("metrics", "%q is not an address: want IP:PORT, such as 10.1.0.11:9443", c.Metrics)
		}
	}
	if d := c.cutLimit(); d < leastCutLimit || d > mostCutLimit {
		fault("cut_limit", "%s: want %s to %s", d, leastCutLimit, mostCutLimit)
	}
	if l := c.Remains.Limit; l != nil && *l < 0 {
		fault("remains.limit", "%d: want a size such as 20GiB, or 0 to keep nothing", int64(*l))
	}
	if d := c.Remains.keep(); d < 0 || d > mostKeep {
		fault("remains.keep", "%s: want a time of at most %s", d, mostKeep)
	}
	if n := c.Path.Connections; n < 0 || n > mostConnections {
		fault("path.connections", "%d: want 1 to %d", n, mostConnections)
	}
	if len(c.TenantLabel) > mostLabel || strings.ContainsFunc(c.TenantLabel, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		fault("tenant_label", "%q: want the key of a label, at most %d bytes without spaces", c.TenantLabel, mostLabel)
	}
}
