package kernel

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover-vm/drover/namespace"
	"github.com/drover-vm/drover/namespace/namespacetest"
)

// TestMain runs the tests in a network and a mount namespace of their own: the
// sites that they make vanish with the process, however it ends.
func TestMain(m *testing.M) {
	namespacetest.Main(m, namespacetest.Spaces{
		Flags:    syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Programs: []string{"ip", "nft", "ping"},
		Prepare:  []string{"mount --make-rprivate /", "mount -t tmpfs tmpfs /run", "ip link set lo up"},
	})
}

// world is two sites with an edge each, a router between them, and a client
// behind it:
//
//	            cl
//	            │
//	  ea ────── r ────── eb      10.1.0.0/24 is routed to ea, 10.2.0.0/24 to eb
//	  │ └───── mesh ────┘ │
//	br-web              br-web, br-new
//	g  n
//
// g is the guest, 10.1.0.5, n its neighbour, 10.1.0.9.
const world = `
ip netns add cl; ip netns add r; ip netns add ea; ip netns add eb; ip netns add g; ip netns add n
for s in cl r ea eb g n; do
  ip -n $s link set lo up
  ip netns exec $s sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
done
join() { # NS IF ADDR4 ADDR6 NS IF ADDR4 ADDR6
  ip -n $1 link add $2 type veth peer name $6 netns $5
  ip -n $1 addr add $3 dev $2; ip -n $1 addr add $4 dev $2 nodad; ip -n $1 link set dev $2 up
  ip -n $5 addr add $7 dev $6; ip -n $5 addr add $8 dev $6 nodad; ip -n $5 link set dev $6 up
}
join cl eth0 198.51.100.2/24 2001:db8:c::2/64 r cl 198.51.100.1/24 2001:db8:c::1/64
join ea wan 203.0.113.2/30 2001:db8:a0::2/64 r toa 203.0.113.1/30 2001:db8:a0::1/64
join eb wan 203.0.113.6/30 2001:db8:b0::2/64 r tob 203.0.113.5/30 2001:db8:b0::1/64
join ea drover0 10.99.0.1/24 fd99::1/64 eb drover0 10.99.0.2/24 fd99::2/64
ip -n ea link set drover0 mtu 1420; ip -n eb link set drover0 mtu 1420
bridge() { # NS NAME ADDR4 ADDR6
  ip -n $1 link add $2 address 02:00:00:00:00:01 type bridge; ip -n $1 link set dev $2 up
  ip -n $1 addr add $3 dev $2; ip -n $1 addr add $4 dev $2 nodad
}
bridge ea br-web 10.1.0.1/24 2001:db8:1::1/64
bridge eb br-web 10.1.0.1/24 2001:db8:1::1/64
bridge eb br-new 10.2.0.1/24 2001:db8:2::1/64
ip -n ea route add default via 203.0.113.1; ip -n ea -6 route add default via 2001:db8:a0::1
ip -n eb route add default via 203.0.113.5; ip -n eb -6 route add default via 2001:db8:b0::1
ip -n cl route add default via 198.51.100.1; ip -n cl -6 route add default via 2001:db8:c::1
ip -n r route add 10.1.0.0/24 via 203.0.113.2; ip -n r -6 route add 2001:db8:1::/64 via 2001:db8:a0::2
ip -n r route add 10.2.0.0/24 via 203.0.113.6; ip -n r -6 route add 2001:db8:2::/64 via 2001:db8:b0::2
guest() { # NS LAST MAC
  ip -n $1 link add eth0 address $3 type veth peer name p-$1 netns ea
  ip -n ea link set p-$1 master br-web up; ip -n $1 link set eth0 up
  ip -n $1 addr add 10.1.0.$2/24 dev eth0; ip -n $1 addr add 2001:db8:1::$2/64 dev eth0 nodad
  ip -n $1 route add default via 10.1.0.1; ip -n $1 -6 route add default via 2001:db8:1::1
}
guest g 5 52:54:00:00:00:05
guest n 9 52:54:00:00:00:09
# What others have made on the edges.
for e in ea eb; do
  ip -n $e route add 10.77.0.0/16 via 203.0.113.1 onlink dev wan proto 99 table 777
  ip -n $e route add 10.1.0.77/32 dev br-web proto 99; ip -n $e -6 route add 2001:db8:1::77/128 dev br-web proto 99
  ip -n $e rule add from 10.77.0.0/16 lookup 777 pref 777
  ip -n $e neigh add proxy 10.1.0.78 dev br-web; ip -n $e neigh add proxy 2001:db8:1::78 dev br-web
  ip netns exec $e nft 'table inet operator { chain forward { type filter hook forward priority 10; policy accept; counter comment "theirs"; }; }'
done
`

// edges is the world, made anew for a test.
type edges struct{ *testing.T }

func newWorld(t *testing.T) edges {
	t.Helper()
	w := edges{t}
	t.Cleanup(func() { w.sh("for s in cl r ea eb g n; do ip netns del $s 2>/dev/null || true; done") })
	w.sh(world)
	return w
}

func (w edges) sh(script string) string {
	w.Helper()
	cmd := exec.Command("bash", "-euc", script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.Fatalf("%v: %.200s\n%s", err, script, out)
	}
	return string(out)
}

// succeeds reports whether a command in a namespace does.
func (w edges) succeeds(ns, command string) bool {
	w.Helper()
	return exec.Command("bash", "-c", "ip netns exec "+ns+" "+command).Run() == nil
}

func (w edges) pings(ns, addr string) bool {
	w.Helper()
	return w.succeeds(ns, "ping -q -c 1 -W 3 "+addr)
}

func path(ns string) string { return filepath.Join("/run/netns", ns) }

func (w edges) open(ns string) *Addresses {
	w.Helper()
	a, err := New(Config{Namespace: path(ns)})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { a.Close() })
	return a
}

// state is everything of an edge that Drover could have changed.
func (w edges) state(ns string) string {
	w.Helper()
	return w.sh("ip netns exec " + ns + " bash -euc '" + stateScript + "'")
}

// stateScript leaves out what changes by itself: link-local addresses, the
// states of links, times, counters, and the guest's port, which moves.
const stateScript = `
for f in -4 -6; do
  ip $f rule; ip $f neigh show proxy
  ip $f route show table all | grep -v "fe80\|p-g\|expires\|cache" | sed "s/ *linkdown//" | sort
done
ip -br link | grep -v ^p-g | cut -d" " -f1 | sort
nft list ruleset | sed "s/counter packets [0-9]* bytes [0-9]*/counter/; s/ expires [0-9a-z]*//g"
cd /proc/sys/net
grep -s . ipv4/conf/{all,br-*}/{proxy_arp,forwarding,rp_filter} ipv6/conf/{all,br-*}/{proxy_ndp,forwarding} ipv{4,6}/neigh/br-*/proxy_delay netfilter/nf_conntrack_{acct,timestamp} || true
`

// in runs f in the namespace: sockets that it makes are there.
func in[T any](t *testing.T, ns string, f func() (T, error)) (value T, err error) {
	t.Helper()
	err = namespace.InNamed(ns, func() error {
		value, err = f()
		return err
	})
	return value, err
}

const patience = 5 * time.Second // for one packet there and back, on a busy machine

func (w edges) dial(ns, network, addr string) (net.Conn, error) {
	w.Helper()
	return in(w.T, ns, func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(w.Context(), patience)
		defer cancel()
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	})
}

// echo serves an echo in a namespace.
func (w edges) echo(ns string) {
	w.Helper()
	l, err := in(w.T, ns, func() (net.Listener, error) { return net.Listen("tcp", "[::]:7") })
	if err != nil {
		w.Fatal(err)
	}
	u, err := in(w.T, ns, func() (net.PacketConn, error) { return net.ListenPacket("udp4", "10.1.0.5:7") })
	if err != nil {
		w.Fatal(err)
	}
	done := make(chan struct{})
	var conns []net.Conn
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			u.WriteTo(buf[:n], from)
		}
	}()
	w.Cleanup(func() {
		l.Close()
		u.Close()
		<-done
		for _, c := range conns {
			c.Close()
		}
	})
}

// answers reports whether an echo session still does, with as many bytes as
// asked: more than a packet shows that the MTU is found.
func answers(c net.Conn, size int) bool {
	c.SetDeadline(time.Now().Add(patience))
	want := strings.Repeat("0123456789abcdef", size/16+1)[:size]
	sent := make(chan error, 1)
	go func() { _, err := io.WriteString(c, want); sent <- err }()
	got := make([]byte, size)
	_, err := io.ReadFull(c, got)
	return errors.Join(err, <-sent) == nil && string(got) == want
}
