package lab_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
	"github.com/drover-vm/drover/lab/wanem"
)

// patience bounds waits of the tests; what they wait for takes a second or two
// on a machine that is not busy.
const patience = 2 * time.Minute

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// TestTiny starts the ready lab tiny with its guest and tries what a lab can do.
func TestTiny(t *testing.T) {
	o := options(t)
	o.WaitGuests = true
	f, err := labfile.Load("tiny")
	if err != nil {
		t.Fatal(err)
	}
	// What a lab of that name leaves when its machine restarts is in nobody's way.
	left := filepath.Join(o.Dir, "tiny", "nodes", "n9")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	l := up(t, o, f)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v; want it gone", left, err)
	}

	t.Run("guest", func(t *testing.T) {
		labs, err := lab.List(t.Context(), o)
		if err != nil || len(labs) != 1 || labs[0].Phase != lab.Running {
			t.Fatalf("%v, %v: want one lab that is up", labs, err)
		}
		if g := labs[0].Guests[0]; g.Name != "sheep1" || g.Host != "n1" || g.State != "running" {
			t.Errorf("%+v: want sheep1 running on n1", g)
		}
		def := must(t, l, "n1", "virsh dumpxml --inactive sheep1")
		for _, want := range []string{
			`<drover:probe tcp="10.50.0.11:7000" kind="sheep" http="http://10.50.0.11:8080/healthz"`,
			"<source bridge='br-blue'/>", "<source file='/var/lib/libvirt/images/sheep1.qcow2'/>",
			"<kernel>/var/lib/libvirt/images/golden/sheep/kernel</kernel>", "drover.ip=10.50.0.11/24 drover.gw=10.50.0.1",
		} {
			if !strings.Contains(def, want) {
				t.Errorf("the definition lacks %s:\n%s", want, def)
			}
		}
	})
	t.Run("hosts", func(t *testing.T) { testHosts(t, l) })
	t.Run("exec", func(t *testing.T) { testExec(t, l) })
	t.Run("link", func(t *testing.T) { testLink(t, l) })
	t.Run("service", func(t *testing.T) { testService(t, l) })
	t.Run("up again", func(t *testing.T) {
		_, err := lab.Up(t.Context(), o, f)
		if drover.KindOf(err) != drover.Exists {
			t.Errorf("%v: want it to exist", err)
		}
		must(t, l, "c1", "ping -c 1 -W 5 10.50.0.11")
	})
}

// testHosts expects that each host is a machine of its own to libvirt.
func testHosts(t *testing.T, l *lab.Lab) {
	seen := map[string]string{}
	for _, n := range l.Nodes {
		if n.Role != topology.Host {
			continue
		}
		conn, err := l.Libvirt(n.Name)
		if err != nil {
			t.Fatal(err)
		}
		name, err := conn.ConnectGetHostname()
		if err != nil || name != n.Name {
			t.Errorf("libvirtd of %s is called %q, %v", n.Name, name, err)
		}
		caps, err := conn.ConnectGetCapabilities()
		if err != nil {
			t.Fatal(err)
		}
		uuid := regexp.MustCompile(`<uuid>(.*?)</uuid>`).FindStringSubmatch(string(caps))[1]
		if other, taken := seen[uuid]; taken {
			t.Errorf("%s and %s are the same host to libvirt", n.Name, other)
		}
		seen[uuid] = n.Name
		if err := conn.Disconnect(); err != nil {
			t.Error(err)
		}
		if pool := must(t, l, n.Name, "virsh -q pool-list"); !strings.Contains(pool, "default") {
			t.Errorf("%s has no default pool: %q", n.Name, pool)
		}
		// The same golden files at the same paths everywhere, which nobody can change.
		must(t, l, n.Name, "test -s /var/lib/libvirt/images/golden/sheep/kernel")
		if out, err := sh(t, l, n.Name, "echo x > /var/lib/libvirt/images/golden/sheep/kernel"); err == nil {
			t.Errorf("%s can write to a golden image: %s", n.Name, out)
		}
	}
}

func testExec(t *testing.T, l *lab.Lab) {
	if got := must(t, l, "s1", "hostname; id -u"); got != "s1\n0" {
		t.Errorf("%q: want root on s1", got)
	}
	_, err := sh(t, l, "c1", "exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("%v: want exit status 7", err)
	}
	cmd, err := l.Command(t.Context(), "edge-south", "cat")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = strings.NewReader("through")
	if out, err := cmd.Output(); err != nil || string(out) != "through" {
		t.Errorf("%q, %v: want standard input to come through", out, err)
	}
	if _, err := l.Command(t.Context(), "n9", "true"); drover.KindOf(err) != drover.NotFound ||
		!strings.Contains(err.Error(), "edge-north, n1, server") {
		t.Errorf("%v: want an error that lists the nodes", err)
	}
	// The holder collects what its node's processes leave behind.
	must(t, l, "s1", "setsid sh -c 'sleep 0.1 & sleep 0.1 & exit' & wait")
	eventually(t, "orphans are collected", func() error {
		if out := must(t, l, "s1", "ps -eo stat,args | grep ^Z || true"); out != "" {
			return errors.New(out)
		}
		return nil
	})
	must(t, l, "n1", "getent hosts s1") // by name, without a name server
}

// rtt is the least round trip of a few pings.
func rtt(t *testing.T, l *lab.Lab, from, to string) float64 {
	t.Helper()
	out := must(t, l, from, "ping -c 10 -i 0.1 -W 5 "+to)
	m := regexp.MustCompile(`= ([0-9.]+)/`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no round trip in %s", out)
	}
	ms, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return ms
}

func testLink(t *testing.T, l *lab.Lab) {
	ctx := t.Context()
	k, err := l.LinkNamed("south", "north")
	if err != nil || k.Name != "north-south" {
		t.Fatalf("%v, %v: want north-south", k, err)
	}
	if _, err := l.LinkNamed("north", "west"); drover.KindOf(err) != drover.NotFound {
		t.Errorf("%v: want no such link", err)
	}
	// 20 ms set, and at most a few for ten namespaces on a busy machine; below 20
	// it would not be the emulator's path.
	if ms := rtt(t, l, "s1", "10.1.0.2"); ms < 20 || ms > 25 {
		t.Errorf("round trip %.1f ms, want 20", ms)
	}
	before, err := l.LinkStatus(ctx, k.Name)
	if err != nil || before.Forward.Packets == 0 || before.Reverse.Packets == 0 {
		t.Fatalf("%+v, %v: want packets counted both ways", before, err)
	}
	delay := 40 * time.Millisecond
	if s, err := l.SetLink(ctx, k.Name, wanem.ShapeChange{Delay: &delay}); err != nil || s.Shape.Delay != delay || s.Shape.RateBps != before.Shape.RateBps {
		t.Errorf("%+v, %v: want the delay changed and no more", s.Shape, err)
	}
	if ms := rtt(t, l, "s1", "10.1.0.2"); ms < 80 || ms > 85 {
		t.Errorf("round trip %.1f ms, want 80", ms)
	}
	cut, heal := true, false
	if _, err := l.SetLink(ctx, k.Name, wanem.ShapeChange{Cut: &cut}); err != nil {
		t.Fatal(err)
	}
	if out, err := sh(t, l, "s1", "ping -c 3 -i 0.1 -W 1 10.1.0.2"); err == nil {
		t.Errorf("ping through a cut link: %s", out)
	}
	if _, err := l.SetLink(ctx, k.Name, wanem.ShapeChange{Cut: &heal}); err != nil {
		t.Fatal(err)
	}
	must(t, l, "s1", "ping -c 1 -W 5 10.1.0.2")
}

// testService kills and stops libvirtd: it comes back after the one and stays
// away after the other, and the guest does not notice.
func testService(t *testing.T, l *lab.Lab) {
	ctx := t.Context()
	qemu := must(t, l, "n1", "cat /run/libvirt/qemu/sheep1.pid")
	if _, err := l.Service(ctx, "n1", node.Kill, "libvirtd"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "libvirtd starts again", func() error {
		st, err := l.Service(ctx, "n1", node.List, "")
		if err == nil && (st[0].State != node.Running || st[0].Starts != 2 || st[0].LastExit != "signal killed") {
			err = errors.New(string(st[0].State))
		}
		return err
	})
	eventually(t, "libvirtd answers", func() error {
		_, err := sh(t, l, "n1", "virsh domstate sheep1 | grep -x running")
		return err
	})
	if now := must(t, l, "n1", "cat /run/libvirt/qemu/sheep1.pid"); now != qemu {
		t.Errorf("QEMU was process %s and is %s", qemu, now)
	}
	st, err := l.Service(ctx, "n1", node.Stop, "libvirtd")
	if err != nil || st[0].State != node.Stopped {
		t.Fatalf("%+v, %v: want it stopped", st, err)
	}
	if conn, err := l.Libvirt("n1"); err == nil {
		_ = conn.Disconnect()
		t.Error("a stopped libvirtd answers")
	}
	must(t, l, "c1", "ping -c 1 -W 5 10.50.0.11")
	if _, err := l.Service(ctx, "n1", node.Start, "libvirtd"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Service(ctx, "n1", node.Start, "httpd"); err == nil || !strings.Contains(err.Error(), "libvirtd") {
		t.Errorf("%v: want an error that lists the services", err)
	}
	eventually(t, "libvirtd answers", func() error {
		conn, err := l.Libvirt("n1")
		if err == nil {
			err = conn.Disconnect()
		}
		return err
	})
}

// TestStretchedSegment expects one broadcast domain with full-size packets at two
// sites, whose traffic to others goes through the gateway's site.
func TestStretchedSegment(t *testing.T) {
	l := up(t, options(t), load(t, `
name: stretch
server: a
sites:
  - {name: a, transport: 10.1.0.0/24, hosts: [{name: a1}]}
  - {name: b, transport: 10.2.0.0/24, hosts: [{name: b1}]}
  - {name: c, transport: 10.3.0.0/24, access: 10.3.9.0/24}
links:
  - {a: a, b: b, rate: 1Gbit, delay: 5ms}
  - {a: a, b: c, rate: 1Gbit, delay: 10ms}
segments:
  - {name: blue, subnet: 10.50.0.0/24, sites: [a, b]}
clients:
  - {name: ca, site: a, segment: blue, address: 10.50.0.100}
  - {name: cb, site: b, segment: blue, address: 10.50.0.101}
  - {name: cc, site: c, address: 10.3.9.10}
`))
	must(t, l, "ca", "ping -c 2 -W 5 -M do -s 1472 10.50.0.101")
	// Neighbours, not routed to: the packet arrives with the time to live it had.
	if out := must(t, l, "ca", "ping -c 1 -W 5 10.50.0.101"); !strings.Contains(out, "ttl=64") {
		t.Errorf("the segment is routed: %s", out)
	}
	// b has no link to c: through a, and the answer back by the gateway at a.
	if ms := rtt(t, l, "cc", "10.50.0.101"); ms < 30 {
		t.Errorf("round trip %.1f ms, want 30 by way of a", ms)
	}
	if out := must(t, l, "b1", "ip -o link show master br-blue"); !strings.Contains(out, "up-blue") {
		t.Errorf("the segment's bridge is not connected in b1: %s", out)
	}
	must(t, l, "server", "ping -c 1 -W 5 10.3.9.10")
	must(t, l, "edge-b", "ping -c 1 -W 5 10.3.0.1")
}

// minimal is a lab of two hosts without guests.
const minimal = `
name: NAME
server: a
sites:
  - {name: a, transport: 10.1.0.0/24, hosts: [{name: a1}]}
  - {name: b, transport: 10.2.0.0/24, hosts: [{name: b1}]}
links:
  - {a: a, b: b, rate: 1Gbit, delay: 1ms}
`

// TestTwoLabs runs two labs with the same addresses side by side.
func TestTwoLabs(t *testing.T) {
	o := options(t)
	one := up(t, o, load(t, strings.Replace(minimal, "NAME", "one", 1)))
	two := up(t, o, load(t, strings.Replace(minimal, "NAME", "two", 1)))
	must(t, one, "a1", "ping -c 1 -W 5 10.2.0.2")
	must(t, two, "a1", "ping -c 1 -W 5 10.2.0.2")
	must(t, one, "a1", "touch /tmp/mark /run/mark")
	must(t, two, "a1", "test ! -e /tmp/mark -a ! -e /run/mark")
	if _, err := os.Stat("/run/mark"); err == nil {
		t.Error("a node's /run is the machine's")
	}
	if _, err := lab.Down(t.Context(), o, "", false); drover.KindOf(err) != drover.Invalid || !strings.Contains(err.Error(), "one, two") {
		t.Errorf("%v: want an error that lists the labs", err)
	}
	if _, err := lab.Open(o, ""); err == nil || !strings.Contains(err.Error(), "one, two") {
		t.Errorf("%v: want an error that lists the labs", err)
	}
	if done, err := lab.Down(t.Context(), o, "one", false); err != nil || len(done) != 1 {
		t.Fatalf("%v, %v: want one down", done, err)
	}
	must(t, two, "b1", "ping -c 1 -W 5 10.1.0.2")
	// The only one left needs no name.
	if done, err := lab.Down(t.Context(), o, "", false); err != nil || len(done) != 1 || done[0] != "two" {
		t.Errorf("%v, %v: want two down", done, err)
	}
	for range 2 {
		if done, err := lab.Down(t.Context(), o, "", false); err != nil || len(done) != 0 {
			t.Errorf("%v, %v: want nothing to do", done, err)
		}
		if done, err := lab.Down(t.Context(), o, "one", false); err != nil || len(done) != 0 {
			t.Errorf("%v, %v: want nothing to do", done, err)
		}
	}
	if _, err := lab.Down(t.Context(), o, "../x", false); drover.KindOf(err) != drover.Invalid {
		t.Errorf("%v: want the name refused", err)
	}
}

// TestDownAfterDeath takes labs down in whose middle something was killed, and
// whose folder is gone; options checks that nothing is left.
func TestDownAfterDeath(t *testing.T) {
	o := options(t)
	f := load(t, strings.Replace(minimal, "NAME", "dead", 1))
	for what, kill := range map[string]func(t *testing.T, l *lab.Lab){
		"holder": func(t *testing.T, l *lab.Lab) {
			pid, err := l.Holder("a1")
			if err == nil {
				err = syscall.Kill(pid, syscall.SIGKILL)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"emulator": func(t *testing.T, l *lab.Lab) {
			pid, err := l.EmulatorPID()
			if err == nil {
				err = syscall.Kill(pid, syscall.SIGKILL)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"folder": func(t *testing.T, l *lab.Lab) {
			if err := os.RemoveAll(l.Dir); err != nil {
				t.Fatal(err)
			}
		},
		"state": func(t *testing.T, l *lab.Lab) {
			if err := os.Remove(filepath.Join(l.Dir, "lab.json")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			before := interfaces(t)
			kill(t, up(t, o, f))
			eventually(t, "the lab is not seen as up", func() error {
				labs, err := lab.List(t.Context(), o)
				if err == nil && (len(labs) != 1 || labs[0].Phase != lab.Left) {
					err = errors.New("it is")
				}
				return err
			})
			if _, err := lab.Up(t.Context(), o, f); drover.KindOf(err) != drover.Exists || !strings.Contains(err.Error(), "drover lab down dead") {
				t.Errorf("%v: want to be told to take it down", err)
			}
			if done, err := lab.Down(t.Context(), o, "dead", false); err != nil || len(done) != 1 {
				t.Fatalf("%v, %v: want it down", done, err)
			}
			nothingLeft(t, o.Dir, before)
		})
	}
}

// TestUpKilled kills lab up at several moments; lab down cleans up after each.
func TestUpKilled(t *testing.T) {
	o := options(t)
	before := interfaces(t)
	file := filepath.Join(t.TempDir(), "killed.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(minimal, "NAME", "killed", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{20, 60, 100, 150, 220, 300} {
		cmd := exec.Command(exe, upCommand, o.Dir, file)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after * time.Millisecond)
		_ = cmd.Process.Kill() // it may be through already
		_ = cmd.Wait()
		done, err := lab.Down(t.Context(), o, "", true)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("killed after %d ms, down: %v", after, done)
		nothingLeft(t, o.Dir, before)
	}
}

// TestUpFails lets a start fail late, at libvirt; what was started is taken down.
func TestUpFails(t *testing.T) {
	o := options(t)
	before := interfaces(t)
	f, err := labfile.Load("tiny")
	if err != nil {
		t.Fatal(err)
	}
	f.Guests[0].Machine = "pc-of-the-future"
	_, err = lab.Up(t.Context(), o, f)
	if err == nil || !strings.Contains(err.Error(), "guest sheep1: define") || drover.KindOf(err).ExitStatus() != 1 {
		t.Errorf("%v: want a failure that names guest and step", err)
	}
	nothingLeft(t, o.Dir, before)
}
