package lab

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
)

// Names of services inside nodes.
const (
	libvirtService = "libvirtd"
	agentService   = "agent"
	serverService  = "server"
)

// hostMounts are a host's own folders over the machine's.
var hostMounts = [][2]string{
	{"etc-libvirt", "/etc/libvirt"},
	{"lib-libvirt", "/var/lib/libvirt"},
	{"log-libvirt", "/var/log/libvirt"},
	{"cache-libvirt", "/var/cache/libvirt"},
}

// poolName is the storage pool of a host's disks.
const poolName = "default"

// qemuConf makes libvirt run guests as root in the host's own namespaces, with
// nothing that needs systemd: no device namespace of its own, no control groups,
// no security labels, no log daemon.
const qemuConf = `user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
remember_owner = 0
`

// nodeConfig makes a node's folder and what its holder is told.
func (l *Lab) nodeConfig(f *labfile.File, plan *topology.Plan, n *topology.Node, w world, images []image) (*node.Config, error) {
	dir := node.Dir(l.Dir, n.Name)
	c := &node.Config{Name: n.Name, Dir: dir, Sysctls: sysctls(n)}
	mount := func(folder, target string) error {
		source := filepath.Join(dir, folder)
		c.Binds = append(c.Binds, node.Bind{Source: source, Target: target})
		return os.MkdirAll(source, 0o755)
	}
	if err := mount("run", "/run"); err != nil {
		return nil, err
	}
	for _, d := range []string{"lock", filepath.Base(node.LabDir), "drover/conf/tls", "drover/state"} {
		if err := os.MkdirAll(filepath.Join(dir, "run", d), 0o755); err != nil {
			return nil, err
		}
	}
	c.Binds = append(c.Binds,
		node.Bind{Source: filepath.Join(l.Dir, sharedDir), Target: node.LabDir},
		node.Bind{Source: "/proc/self/exe", Target: node.Binary, ReadOnly: true})
	// Clients ask the lab's name servers. Where there is none nobody waits for one.
	resolv := ""
	if n.Role == topology.Client {
		resolv = resolvConf(f, plan)
	}
	for name, text := range map[string]string{"hosts": w.hosts, "resolv.conf": resolv} {
		source, target := filepath.Join(dir, name), filepath.Join("/etc", name)
		if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
			return nil, err
		}
		if _, err := os.Stat(target); err == nil {
			c.Binds = append(c.Binds, node.Bind{Source: source, Target: target})
		}
	}
	if n.Role == topology.Host {
		for _, m := range hostMounts {
			if err := mount(m[0], m[1]); err != nil {
				return nil, err
			}
		}
		if err := l.libvirtFiles(n.Name, dir); err != nil {
			return nil, err
		}
		if err := l.seedCapabilities(dir); err != nil {
			return nil, err
		}
		for _, img := range images {
			if img.placedAt(n.Site) {
				c.Binds = append(c.Binds, img.binds()...)
			}
		}
		c.Services = append(c.Services, node.Service{Name: libvirtService, Args: []string{"libvirtd"}})
	}
	switch n.Role {
	case topology.Edge:
		servers, err := edgeServers(f, plan, n, dir, w.dnsSecret)
		if err != nil {
			return nil, err
		}
		c.Services = append(c.Services, servers...)
	case topology.RouterRole:
		if err := mount(frrFolder, frrEtc); err != nil {
			return nil, err
		}
		servers, err := routerFiles(plan, n, dir)
		if err != nil {
			return nil, err
		}
		c.Services = append(c.Services, servers...)
	}
	switch {
	case l.opt.Bare || n.Role == topology.RouterRole:
	case n.Role == topology.Server:
		c.Services = append(c.Services, node.Service{
			Name: serverService,
			Args: []string{"drover", "server", "--config", confDir + "/server.yaml"},
		})
	default:
		c.Services = append(c.Services, node.Service{
			Name: agentService,
			Args: []string{"drover", "agent", "--config", confDir + "/agent.yaml"},
		})
	}
	if err := mount("tmp", "/tmp"); err != nil {
		return nil, err
	}
	return c, os.Chmod(filepath.Join(dir, "tmp"), 0o1777)
}

// libvirtFiles writes a host's libvirt configuration, its storage pool included.
func (l *Lab) libvirtFiles(name, dir string) error {
	etc := filepath.Join(dir, "etc-libvirt")
	for _, d := range []string{
		filepath.Join(etc, "qemu"), filepath.Join(etc, "storage/autostart"),
		filepath.Join(dir, "lib-libvirt/images/golden"), filepath.Join(dir, "log-libvirt/qemu"),
	} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	// A host identity of its own: libvirt refuses to migrate to itself.
	conf := fmt.Sprintf("host_uuid = %q\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n"+
		"unix_sock_rw_perms = \"0700\"\nlog_outputs = \"3:stderr\"\n", uuid(l.Dir, "host", name))
	pool := fmt.Sprintf("<pool type='dir'>\n  <name>%s</name>\n  <uuid>%s</uuid>\n  <target><path>%s</path></target>\n</pool>\n",
		poolName, uuid(l.Dir, "pool", name), volumesDir)
	for path, text := range map[string]string{"qemu.conf": qemuConf, "libvirtd.conf": conf, "storage/" + poolName + ".xml": pool} {
		if err := os.WriteFile(filepath.Join(etc, path), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.Symlink("../"+poolName+".xml", filepath.Join(etc, "storage/autostart", poolName+".xml"))
}

// hostsFile is every node's /etc/hosts: the nodes by name. libvirt looks up its
// own, and waits for a name server when it is not there.
func hostsFile(plan *topology.Plan) string {
	text := "127.0.0.1 localhost\n"
	for _, n := range plan.Nodes {
		text += n.Address.String() + " " + n.Name + "\n"
	}
	return text
}

// sysctls are a node's kernel settings. IPv6 is off where it is not used because
// neighbour discovery would be noise on the counters; reverse path
// filters are off because a guest's traffic may take one way and come back another.
func sysctls(n *topology.Node) []node.Sysctl {
	forward := "0"
	if n.Forward {
		forward = "1"
	}
	return append(sysctls6(n.IPv6, forward), []node.Sysctl{
		{Key: "net/ipv4/conf/all/rp_filter", Value: "0"},
		{Key: "net/ipv4/conf/default/rp_filter", Value: "0"},
		{Key: "net/ipv4/ip_forward", Value: forward},
		// A guest that moved must be believed when it says so.
		{Key: "net/ipv4/conf/default/arp_accept", Value: "1"},
		{Key: "net/bridge/bridge-nf-call-iptables", Value: "0", Optional: true},
		// Room for one TCP stream over a long fat link: 1 Gbit/s at 100 ms keeps
		// 12.5 MB on the way, of which Linux lets about half of the limit be
		// sent. Unless told it stops at 4 MiB.
		{Key: "net/ipv4/tcp_wmem", Value: "4096 16384 67108864"},
		{Key: "net/ipv4/tcp_rmem", Value: "4096 131072 67108864"},
	}...)
}

// sysctls6 are the settings of IPv6. Addresses and routes are the lab's: nothing
// is learnt from routers, and no address is looked for before it is used, which
// would cost a node that starts a second.
func sysctls6(on bool, forward string) []node.Sysctl {
	if !on {
		return []node.Sysctl{
			{Key: "net/ipv6/conf/all/disable_ipv6", Value: "1", Optional: true},
			{Key: "net/ipv6/conf/default/disable_ipv6", Value: "1", Optional: true},
		}
	}
	return []node.Sysctl{
		{Key: "net/ipv6/conf/default/accept_dad", Value: "0"},
		{Key: "net/ipv6/conf/default/dad_transmits", Value: "0"},
		{Key: "net/ipv6/conf/default/accept_ra", Value: "0"},
		{Key: "net/ipv6/conf/default/router_solicitations", Value: "0"},
		{Key: "net/ipv6/conf/all/forwarding", Value: forward},
		{Key: "net/ipv6/conf/default/forwarding", Value: forward},
	}
}

// uuid derives an identity that stays the same as long as the parts do.
func uuid(parts ...string) string {
	h := sha256.Sum256(fmt.Append(nil, parts))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // version 8, RFC 9562
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// capabilitiesDir is where libvirt keeps what it learnt of QEMU, below its cache.
const capabilitiesDir = "qemu/capabilities"

// seedCapabilities gives a host what an earlier one learnt of QEMU, which costs
// each libvirtd seconds of processor time to find out. libvirt itself checks
// that it still holds (versions, kernel, processor), so a stale copy only costs
// the time that it would have saved.
func (l *Lab) seedCapabilities(dir string) error {
	to := filepath.Join(dir, "cache-libvirt", capabilitiesDir)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return copyFiles(filepath.Join(l.opt.CacheDir, "libvirt-capabilities"), to)
}

// keepCapabilities keeps what a host's libvirtd learnt of QEMU for later labs.
func (l *Lab) keepCapabilities(host string) error {
	to := filepath.Join(l.opt.CacheDir, "libvirt-capabilities")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return copyFiles(filepath.Join(node.Dir(l.Dir, host), "cache-libvirt", capabilitiesDir), to)
}

// copyFiles copies the files of a folder that the other does not have with the
// same content; a missing source has none. A reader never sees half a file.
func copyFiles(from, to string) error {
	entries, err := os.ReadDir(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || filepath.Ext(e.Name()) != ".xml" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		target := filepath.Join(to, e.Name())
		if old, err := os.ReadFile(target); err == nil && bytes.Equal(old, b) {
			continue
		}
		f, err := os.CreateTemp(to, ".new-")
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(f.Name(), target)
		}
		if err != nil {
			return errors.Join(err, os.Remove(f.Name()))
		}
	}
	return nil
}
