package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
)

// dhcpPrefix begins the name of the service that gives out a segment's addresses.
const dhcpPrefix = "dhcp-"

// dhcpServices are the DHCP servers of an edge: one for each segment whose
// gateway it is and that has guests which ask. They give out nothing but the
// addresses that the lab file reserves.
func dhcpServices(f *labfile.File, n *topology.Node, dir string) ([]node.Service, error) {
	var list []node.Service
	for _, seg := range f.Segments {
		if n.Role != topology.Edge || seg.Sites[0] != n.Site {
			continue
		}
		hosts := ""
		for _, g := range f.Guests {
			if g.DHCP && g.Segment == seg.Name {
				hosts += fmt.Sprintf("dhcp-host=%s,%s,%s\n", g.MAC, g.Address, g.Name)
			}
		}
		if hosts == "" {
			continue
		}
		name := dhcpPrefix + seg.Name
		conf := fmt.Sprintf("port=0\nuser=root\ninterface=%s\nbind-interfaces\nexcept-interface=lo\n"+
			"dhcp-range=%s,static\ndhcp-option=option:router,%s\ndhcp-authoritative\nleasefile-ro\n%s",
			topology.SegmentBridge(seg.Name), seg.Subnet.Addr(), seg.Gateway, hosts)
		if err := os.WriteFile(filepath.Join(dir, confDir, name+".conf"), []byte(conf), 0o644); err != nil {
			return nil, err
		}
		list = append(list, node.Service{
			Name: name,
			Args: []string{dhcpServer, "--keep-in-foreground", "--log-facility=-", "--pid-file=", "--conf-file=" + confDir + "/" + name + ".conf"},
		})
	}
	return list, nil
}

// dhcpServer is the program that serves DHCP.
const dhcpServer = "dnsmasq"

// startDHCP starts the DHCP servers, whose bridges are there now.
func (l *Lab) startDHCP(ctx context.Context) error {
	for _, n := range l.Nodes {
		for _, s := range n.Services {
			if strings.HasPrefix(s, dhcpPrefix) {
				if err := l.startService(ctx, n.Name, s); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
