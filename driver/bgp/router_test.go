package bgp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what has to come; nothing is expected
// to take nearly as long.
const patience = 30 * time.Second

// eventually waits until f returns "", which says what is missing otherwise.
func eventually(t testing.TB, f func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		missing := f()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", patience, missing)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// nodeScript is process 1 of a node's namespaces: it evaluates each line it
// reads, and ends each answer with the status. With it all others end.
const nodeScript = `
mount --make-rprivate /
mount -t proc proc /proc
if [ -n "$1" ]; then mkdir -p /run/frr; mount --bind "$1" /run/frr; fi
ip link set lo up
while IFS= read -r line; do
	eval "$line" </dev/null 2>&1
	status=$?
	echo
	echo "status $status"
done
`

// node is a network namespace with a shell in it.
type node struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newNode(t testing.TB, run string) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	n := &node{t: t, cmd: exec.Command("/bin/bash", "-c", nodeScript, "node", run)}
	n.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	n.cmd.Stderr = os.Stderr
	var err error
	n.in, err = n.cmd.StdinPipe()
	must(t, err)
	out, err := n.cmd.StdoutPipe()
	must(t, err)
	n.out = bufio.NewReader(out)
	must(t, n.cmd.Start())
	t.Cleanup(func() {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
	})
	return n
}

// try runs a line of shell in the node.
func (n *node) try(line string) (string, bool) {
	n.t.Helper()
	_, err := fmt.Fprintln(n.in, line)
	must(n.t, err)
	var said strings.Builder
	for {
		l, err := n.out.ReadString('\n')
		must(n.t, err)
		if status, ok := strings.CutPrefix(l, "status "); ok {
			return strings.TrimSpace(said.String()), status == "0\n"
		}
		said.WriteString(l)
	}
}

func (n *node) run(line string) string {
	n.t.Helper()
	said, ok := n.try(line)
	if !ok {
		n.t.Fatalf("%s: %s", line, said)
	}
	return said
}

// namespace is the path of the network namespace.
func (n *node) namespace() string { return fmt.Sprintf("/proc/%d/ns/net", n.cmd.Process.Pid) }

const (
	routerAS = 65000
	otherAS  = 64999
	// otherPort is the other router's, which is in the same namespace.
	otherPort = 1179
	password  = "between-edge-and-router"
)

// link is one between the router and an edge.
type link struct {
	edge, router   netip.Addr
	edge6, router6 netip.Addr
	as             uint32
	name           string
	neighbors      []Neighbor
}

// links are the router's. The first edge has one session, over IPv4, with a
// password. The second has two, over IPv4 and, with the other router, over
// IPv6. Every session carries both families.
var links = []link{
	{
		edge: netip.MustParseAddr("10.91.1.2"), router: netip.MustParseAddr("10.91.1.1"),
		edge6: netip.MustParseAddr("fd91:1::2"), router6: netip.MustParseAddr("fd91:1::1"), as: 65001, name: "a",
		neighbors: []Neighbor{{Address: netip.MustParseAddr("10.91.1.1"), AS: routerAS, Password: password}},
	},
	{
		edge: netip.MustParseAddr("10.91.2.2"), router: netip.MustParseAddr("10.91.2.1"),
		edge6: netip.MustParseAddr("fd91:2::2"), router6: netip.MustParseAddr("fd91:2::1"), as: 4200000002, name: "b",
		neighbors: []Neighbor{
			{Address: netip.MustParseAddr("10.91.2.1"), AS: routerAS},
			{Address: netip.MustParseAddr("fd91:2::1"), AS: otherAS, Port: otherPort},
		},
	},
}

// router is a real FRR with an edge's namespace at each of its links.
type router struct {
	*node
	edges []*node
}

// routerConfig is that of the site's router.
const routerConfig = `
hostname router
router bgp 65000
 bgp router-id 10.91.0.1
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 neighbor 10.91.1.2 remote-as 65001
 neighbor 10.91.1.2 timers 1 3
 neighbor 10.91.1.2 timers connect 1
 neighbor 10.91.1.2 advertisement-interval 0
 neighbor 10.91.1.2 password between-edge-and-router
 neighbor 10.91.2.2 remote-as 4200000002
 neighbor 10.91.2.2 timers 1 3
 neighbor 10.91.2.2 timers connect 1
 neighbor 10.91.2.2 advertisement-interval 0
 address-family ipv4 unicast
  neighbor 10.91.1.2 activate
  neighbor 10.91.2.2 activate
 exit-address-family
 address-family ipv6 unicast
  neighbor 10.91.1.2 activate
  neighbor 10.91.2.2 activate
 exit-address-family
exit
`

// otherConfig is that of another router, whose routes are nobody's kernel's.
const otherConfig = `
hostname other
router bgp 64999
 bgp router-id 10.91.0.99
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 no bgp network import-check
 neighbor fd91:2::2 remote-as 4200000002
 neighbor fd91:2::2 timers 1 3
 neighbor fd91:2::2 timers connect 1
 neighbor fd91:2::2 advertisement-interval 0
 neighbor fd91:2::2 passive
 address-family ipv4 unicast
  network 10.91.0.0/16
  neighbor fd91:2::2 activate
 exit-address-family
 address-family ipv6 unicast
  neighbor fd91:2::2 activate
 exit-address-family
exit
`

// newRouter starts zebra and bgpd of Debian's frr in namespaces of their own.
func newRouter(t testing.TB) *router {
	t.Helper()
	for _, program := range []string{"/usr/lib/frr/zebra", "/usr/lib/frr/bgpd", "/usr/bin/vtysh", "/usr/bin/nsenter"} {
		if _, err := os.Stat(program); err != nil {
			t.Fatalf("this test needs %s (frr, util-linux): run make deps", program)
		}
	}
	// Not below a folder that only root may enter: FRR gives up root.
	dir, err := os.MkdirTemp("/var/tmp", "drover-frr-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	run := filepath.Join(dir, "run")
	must(t, os.Mkdir(run, 0o755))
	must(t, os.WriteFile(filepath.Join(run, "bgpd.conf"), []byte(routerConfig), 0o644))
	must(t, os.WriteFile(filepath.Join(run, "zebra.conf"), []byte("hostname router\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(run, "other.conf"), []byte(otherConfig), 0o644))
	must(t, os.Mkdir(filepath.Join(run, "other"), 0o755))
	r := &router{node: newNode(t, run)}
	r.run("chown -R frr:frr /run/frr")
	r.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	for _, l := range links {
		r.edges = append(r.edges, r.connect(l))
	}
	t.Cleanup(func() {
		if t.Failed() {
			said, _ := r.try("cat /run/frr/*.log; vtysh -c 'show bgp summary' -c 'show bgp neighbors'")
			t.Logf("router: %s", said)
		}
	})
	r.start("zebra")
	r.start("bgpd")
	r.run(fmt.Sprintf("/usr/lib/frr/bgpd -d -Z -p %d -f /run/frr/other.conf -i /run/frr/other.pid --vty_socket /run/frr/other --log file:/run/frr/other.log", otherPort))
	return r
}

// connect makes an edge's namespace and the link to it.
func (r *router) connect(l link) *node {
	e := newNode(r.t, "")
	out, err := exec.Command("nsenter", "--net="+r.namespace(), "ip", "link", "add", "to-"+l.name, "type", "veth",
		"peer", "name", "uplink", "netns", fmt.Sprint(e.cmd.Process.Pid)).CombinedOutput()
	if err != nil {
		r.t.Fatalf("link to edge %s: %v: %s", l.name, err, out)
	}
	for _, end := range []struct {
		n      *node
		device string
		v4, v6 netip.Addr
	}{{r.node, "to-" + l.name, l.router, l.router6}, {e, "uplink", l.edge, l.edge6}} {
		end.n.run(fmt.Sprintf("ip addr add %v/30 dev %s && ip addr add %v/64 dev %s nodad && ip link set %s up", end.v4, end.device, end.v6, end.device, end.device))
	}
	return e
}

// start starts one of FRR's daemons and returns when it answers.
func (r *router) start(daemon string) {
	r.t.Helper()
	r.run(fmt.Sprintf("/usr/lib/frr/%s -d -f /run/frr/%s.conf -i /run/frr/%s.pid --vty_socket /run/frr --log file:/run/frr/%s.log", daemon, daemon, daemon, daemon))
	eventually(r.t, func() string {
		said, ok := r.try("vtysh -d " + daemon + " -c 'show version'")
		if ok {
			return ""
		}
		return daemon + " does not answer: " + said
	})
}

// table is the kernel's table of routes from BGP, with their next hops.
func (r *router) table() map[netip.Prefix]netip.Addr {
	r.t.Helper()
	table := map[netip.Prefix]netip.Addr{}
	for _, family := range []string{"-4", "-6"} {
		var routes []struct{ Dst, Gateway string }
		said := r.run("ip -j " + family + " route show proto bgp")
		if said == "" {
			continue
		}
		if err := json.Unmarshal([]byte(said), &routes); err != nil {
			r.t.Fatalf("%s: %v", said, err)
		}
		for _, route := range routes {
			if !strings.Contains(route.Dst, "/") { // a host route is shown without
				route.Dst += map[string]string{"-4": "/32", "-6": "/128"}[family]
			}
			dst, err := netip.ParsePrefix(route.Dst)
			must(r.t, err)
			hop, err := netip.ParseAddr(route.Gateway)
			must(r.t, err)
			table[dst] = hop
		}
	}
	return table
}

// config is that of the speaker at a link.
func (r *router) config(i int, dir string) Config {
	l := links[i]
	self, err := os.Executable()
	must(r.t, err)
	c := Config{
		Dir: dir, AS: l.as, NextHop4: l.edge, NextHop6: l.edge6,
		Neighbors: l.neighbors,
		// The child alone is to be in the edge's namespace.
		Command: []string{"nsenter", "--net=" + r.edges[i].namespace(), "env", asSpeaker + "=real", self},
	}
	return c
}

// open opens a speaker and waits for its session.
func open(t testing.TB, c Config) *Speaker {
	t.Helper()
	s, err := Open(slog.New(slog.NewTextHandler(testLog{t}, nil)), c)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	waitEstablished(t, s)
	return s
}

func waitEstablished(t testing.TB, s *Speaker) {
	t.Helper()
	eventually(t, func() string {
		list, err := s.Neighbors(t.Context())
		must(t, err)
		for _, n := range list {
			if n.State != "established" {
				return fmt.Sprintf("%+v", n)
			}
		}
		return ""
	})
}

// testLog writes to a test's log.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}
