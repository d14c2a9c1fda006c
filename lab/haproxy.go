package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/drover-vm/drover/lab/node"
)

// HAProxy's program, which its service is named after, and its places.
const (
	haproxyProgram = "haproxy"
	haproxyRun     = "/run/haproxy"
	haproxyConf    = haproxyRun + "/haproxy.cfg"
	haproxyAdmin   = haproxyRun + "/admin.sock"
	haproxyMaster  = haproxyRun + "/master.sock"
	haproxyState   = haproxyRun + "/state"
)

// haproxyServer writes the files of an edge's load balancer and returns its
// service; none where b is nil.
func haproxyServer(b *EdgeBalancer, dir string) ([]node.Service, error) {
	if b == nil {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Join(dir, haproxyRun), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, b.Config), []byte(haproxyConfig(b)), 0o644); err != nil {
		return nil, err
	}
	// A master that stays in the foreground: it loads a new configuration into a
	// new worker while the old one serves its sessions to their end.
	return []node.Service{{Name: haproxyProgram, Args: []string{
		haproxyProgram, "-W", "-S", b.MasterSocket + ",mode,600", "-f", b.Config,
	}}}, nil
}

// haproxyConfig is an edge's haproxy.cfg. Sessions are TCP, whatever is in them,
// and go to the server with the fewest, an algorithm that takes servers which
// are added, weighted and drained at run time. A guest without KVM on a machine
// that has other work answers a check late, and is not dead for that.
func haproxyConfig(b *EdgeBalancer) string {
	var t strings.Builder
	fmt.Fprintf(&t, `global
	log stdout format raw daemon notice
	maxconn 2000
	nbthread 1
	stats socket %s mode 600 level admin expose-fd listeners
	server-state-file %s
defaults
	log global
	mode tcp
	load-server-state-from-file global
	timeout connect 5s
	timeout check 3s
	timeout client 1h
	timeout server 1h
`, b.AdminSocket, b.StateFile)
	for _, s := range b.Services {
		fmt.Fprintf(&t, "frontend %s\n", s.Name)
		for _, a := range s.Listens {
			fmt.Fprintf(&t, "\tbind %s\n", a)
		}
		fmt.Fprintf(&t, "\tdefault_backend %[1]s\nbackend %[1]s\n\tbalance leastconn\n", s.Name)
		if s.CheckHTTP != "" {
			fmt.Fprintf(&t, "\toption httpchk GET %s\n", s.CheckHTTP)
		}
		fmt.Fprintf(&t, "\tdefault-server inter 1s fastinter 500ms rise 2 fall 6\n")
		for _, b := range s.Servers {
			fmt.Fprintf(&t, "\tserver %s %s check\n", b.Name, b.Address)
		}
	}
	return t.String()
}
