package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
)

// Kea's programs, which its services are named after, and its places.
const (
	keaProgram4 = "kea-dhcp4"
	keaProgram6 = "kea-dhcp6"
	keaRun      = "/run/kea"
	keaSocket4  = keaRun + "/dhcp4.sock"
	keaSocket6  = keaRun + "/dhcp6.sock"
	// keaLeaseCommands is the hook that lets leases be read, added and deleted
	// over the control socket, where Debian puts it.
	keaLeaseCommands = "/usr/lib/x86_64-linux-gnu/kea/hooks/libdhcp_lease_cmds.so"
)

// leaseSeconds is how long a lease of a lab holds.
const leaseSeconds = 3600

// Kea's configuration, as far as a lab needs it; the names are Kea's. Fields
// that one family alone has are empty in the other's.
type (
	keaConfig struct {
		Interfaces keaInterfaces `json:"interfaces-config"`
		Control    keaSocket     `json:"control-socket"`
		Leases     keaLeases     `json:"lease-database"`
		// DataDir is where DHCPv6 keeps its identity.
		DataDir       string      `json:"data-directory,omitempty"`
		ValidLifetime int         `json:"valid-lifetime"`
		Hooks         []keaHook   `json:"hooks-libraries"`
		Subnets4      []keaSubnet `json:"subnet4,omitempty"`
		Subnets6      []keaSubnet `json:"subnet6,omitempty"`
		Options       []keaOption `json:"option-data,omitempty"`
		Loggers       []keaLogger `json:"loggers"`
	}
	keaInterfaces struct {
		Interfaces []string `json:"interfaces"`
		// A bridge that has just been made may not be ready for the first try.
		Retries   int `json:"service-sockets-max-retries"`
		RetryWait int `json:"service-sockets-retry-wait-time"`
	}
	keaSocket struct {
		Type string `json:"socket-type"`
		Name string `json:"socket-name"`
	}
	keaLeases struct {
		Type        string `json:"type"`
		Persist     bool   `json:"persist"`
		Name        string `json:"name"`
		LFCInterval int    `json:"lfc-interval"`
	}
	keaHook struct {
		Library string `json:"library"`
	}
	keaSubnet struct {
		ID           int              `json:"id"`
		Subnet       string           `json:"subnet"`
		Interface    string           `json:"interface"`
		Pools        []keaPool        `json:"pools"`
		RapidCommit  bool             `json:"rapid-commit,omitempty"`
		Options      []keaOption      `json:"option-data,omitempty"`
		Reservations []keaReservation `json:"reservations,omitempty"`
	}
	keaPool struct {
		Pool string `json:"pool"`
	}
	keaOption struct {
		Name string `json:"name"`
		Data string `json:"data"`
	}
	keaReservation struct {
		MAC       string   `json:"hw-address,omitempty"`
		DUID      string   `json:"duid,omitempty"`
		Address   string   `json:"ip-address,omitempty"`
		Addresses []string `json:"ip-addresses,omitempty"`
		Hostname  string   `json:"hostname"`
	}
	keaLogger struct {
		Name     string      `json:"name"`
		Severity string      `json:"severity"`
		Outputs  []keaOutput `json:"output_options"`
	}
	keaOutput struct {
		Output string `json:"output"`
	}
)

// keaServers writes the files of an edge's DHCP servers and returns their
// services: one for each family.
func keaServers(f *labfile.File, plan *topology.Plan, n *topology.Node, dir string) ([]node.Service, error) {
	var list []node.Service
	for _, v6 := range []bool{false, true} {
		c, program, key := newKeaConfig(f, plan, n.Site, v6), keaProgram4, "Dhcp4"
		if v6 {
			program, key = keaProgram6, "Dhcp6"
		}
		if len(c.Subnets4)+len(c.Subnets6) == 0 {
			continue
		}
		b, err := json.MarshalIndent(map[string]keaConfig{key: c}, "", "  ")
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Join(dir, keaRun), 0o755); err != nil {
			return nil, err
		}
		conf := filepath.Join(keaRun, program+".json")
		if err := os.WriteFile(filepath.Join(dir, conf), append(b, '\n'), 0o644); err != nil {
			return nil, err
		}
		list = append(list, node.Service{
			Name: program, Args: []string{program, "-c", conf},
			Env: []string{"KEA_PIDFILE_DIR=" + keaRun, "KEA_LOCKFILE_DIR=" + keaRun},
		})
	}
	return list, nil
}

// newKeaConfig is the configuration of a site's DHCP server of one family.
func newKeaConfig(f *labfile.File, plan *topology.Plan, site string, v6 bool) keaConfig {
	program, socket := keaProgram4, keaSocket4
	if v6 {
		program, socket = keaProgram6, keaSocket6
	}
	c := keaConfig{
		Interfaces:    keaInterfaces{Interfaces: []string{}, Retries: 20, RetryWait: 250},
		Control:       keaSocket{Type: "unix", Name: socket},
		Leases:        keaLeases{Type: "memfile", Persist: true, Name: filepath.Join(keaRun, program+".leases")},
		ValidLifetime: leaseSeconds,
		Hooks:         []keaHook{{keaLeaseCommands}},
		Loggers:       []keaLogger{{Name: program, Severity: "INFO", Outputs: []keaOutput{{"stdout"}}}},
	}
	if v6 {
		c.DataDir = keaRun
	} else {
		c.Options = keaNames(f, plan)
	}
	for i := range f.DHCP {
		d := &f.DHCP[i]
		if d.Site != site || d.Software != labfile.DHCPKea {
			continue
		}
		for _, e := range newEdgeDHCP(f, d) {
			if e.Subnet.Addr().Is6() != v6 {
				continue
			}
			c.Interfaces.Interfaces = append(c.Interfaces.Interfaces, e.Interface)
			s := keaSubnet{
				ID: e.SubnetID, Subnet: e.Subnet.String(), Interface: e.Interface,
				Pools: []keaPool{{fmt.Sprintf("%s - %s", e.Pool.From, e.Pool.To)}},
			}
			s.Reservations = keaReservations(f, d.Segment, v6)
			if v6 {
				s.RapidCommit = true
				c.Subnets6 = append(c.Subnets6, s)
				continue
			}
			s.Options = []keaOption{{"routers", f.Segment(d.Segment).Gateway.String()}}
			c.Subnets4 = append(c.Subnets4, s)
		}
	}
	return c
}

// duidLL begins the DUID of a client that says who it is by its Ethernet address
// (DUID-LL, RFC 8415, 11.4), as the lab's guests do.
const duidLL = "00:03:00:01:"

// keaReservations hold the addresses of the guests that ask for them.
func keaReservations(f *labfile.File, segment string, v6 bool) []keaReservation {
	var list []keaReservation
	for _, g := range askingGuests(f, segment) {
		switch {
		case !v6:
			list = append(list, keaReservation{MAC: string(g.MAC), Address: g.Address.String(), Hostname: g.Name})
		case g.Address6.IsValid():
			list = append(list, keaReservation{DUID: duidLL + string(g.MAC), Addresses: []string{g.Address6.String()}, Hostname: g.Name})
		}
	}
	return list
}

// keaNames are the options about DNS that every client gets.
func keaNames(f *labfile.File, plan *topology.Plan) []keaOption {
	if len(f.DNS) == 0 {
		return nil
	}
	var servers []netip.Addr
	for i := range f.DNS {
		for _, s := range f.DNS[i].Sites() {
			if a := plan.Node(labfile.EdgeName(s)).Address; !slices.Contains(servers, a) {
				servers = append(servers, a)
			}
		}
	}
	data := ""
	for i, a := range servers {
		if i > 0 {
			data += ", "
		}
		data += a.String()
	}
	return []keaOption{{"domain-name-servers", data}, {"domain-name", f.DNS[0].Zone}}
}
