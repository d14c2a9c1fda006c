package vxlan_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/vxlan"
	"github.com/google/go-cmp/cmp"
)

// waitFault waits until the extension's fault has the text, "" for none.
func (w *world) waitFault(s *vxlan.Segments, want string) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		list, err := s.List(w.t.Context())
		w.must(err)
		if len(list) == 1 && (want == "" && list[0].Fault == "" || want != "" && strings.Contains(list[0].Fault, want)) {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("never %q: %+v", want, list)
		}
	}
}

// kernel is everything in an edge that an extension touches.
func (w *world) kernel(edge string) string {
	w.t.Helper()
	var all strings.Builder
	for _, args := range [][]string{
		{"ip", "-br", "link"},
		{"ip", "neigh", "show", "nud", "permanent"},
		{"ip", "-6", "neigh", "show", "nud", "permanent"},
		{"bridge", "fdb", "show", "br", bridgeName},
		{"nft", "-s", "list", "ruleset"},
	} {
		for line := range strings.Lines(w.run(edge, args[0], args[1:]...)) {
			if args[1] == "-br" { // the carrier follows late: name and MAC only
				f := strings.Fields(line)
				line = f[0] + " " + f[2] + "\n"
			}
			// The groups that a bridge itself is in change with its carrier.
			if !strings.Contains(line, "dev "+bridgeName+" self") {
				all.WriteString(line)
			}
		}
	}
	return all.String()
}

func TestRetract(t *testing.T) {
	w := newWorld(t, 1600)
	g1, g2 := w.guest("g1", "a", 11), w.guest("g2", "b", 12)
	// What is somebody else's.
	w.ip("a", "link", "add", "vx-mine", "type", "vxlan", "id", "9", "local", "10.99.0.1", "remote", "10.99.0.77", "dstport", "4789")
	w.ip("a", "link", "set", "vx-mine", "master", bridgeName, "up")
	w.run("a", "nft", "add", "table", "bridge", "mine")
	w.run("a", "nft", "add", "set", "bridge", "mine", "owners", "{ type ether_addr; elements = { 52:54:00:00:00:0c }; }")
	w.ip("a", "neigh", "add", "192.168.7.99", "lladdr", "52:54:00:00:00:99", "dev", bridgeName)
	w.ip("a", "neigh", "add", g2.Addresses[0].String(), "lladdr", "52:54:00:00:00:98", "dev", bridgeName, "nud", "permanent")
	before := w.kernel("a")

	a, b := w.stretched(true)
	w.must(a.Extend(t.Context(), owner2, withGateway(extensionOf(meshA, meshB))))
	w.know(a, b, []driver.Station{g1}, []driver.Station{g2})
	if out := w.ip("a", "neigh", "show", "nud", "permanent"); !strings.Contains(out, g2.Addresses[0].String()+" dev br-blue lladdr 52:54:00:00:00:98") {
		t.Errorf("somebody else's entry was changed: %s", out)
	}
	if out := w.ip("a", "neigh", "show", "nud", "permanent"); !strings.Contains(out, "fd07::c dev br-blue lladdr 52:54:00:00:00:0c") && !strings.Contains(w.ip("a", "-6", "neigh", "show"), "proto 215") {
		t.Errorf("no entry of our own: %s", out)
	}
	w.must(a.Retract(t.Context(), owner1, segmentName))
	list, err := a.List(t.Context())
	w.must(err)
	if len(list) != 1 || len(list[0].Owners) != 1 || list[0].Owners[0] != owner2 {
		t.Fatalf("one owner of two is gone: %+v", list)
	}
	w.must(a.Retract(t.Context(), owner2, segmentName))
	w.must(a.Retract(t.Context(), owner2, segmentName))
	if d := cmp.Diff(before, w.kernel("a")); d != "" {
		t.Errorf("retracting left or took something (-before +after):\n%s", d)
	}
}

// TestMarks: the owners are in the kernel, a driver that is started again
// finds them, and what a crash has left is found and removed.
func TestMarks(t *testing.T) {
	w := newWorld(t, 1600)
	before := w.kernel("a")
	g2 := driver.Station{MAC: "52:54:00:00:00:0c", At: meshB}
	a := w.open("a", vxlan.Config{})
	w.must(a.Extend(t.Context(), owner1, withGateway(extensionOf(meshA, meshB))))
	w.must(a.Extend(t.Context(), owner2, withGateway(extensionOf(meshA, meshB))))
	w.must(a.SetStations(t.Context(), segmentName, []driver.Station{g2}))
	want, err := a.List(t.Context())
	w.must(err)
	if out := w.run("a", "nft", "list", "table", "bridge", "drover_vxlan_77"); !strings.Contains(out, string(owner1)) || !strings.Contains(out, string(owner2)) {
		t.Errorf("the owners are not in the kernel:\n%s", out)
	}
	w.must(a.Close())
	a = w.open("a", vxlan.Config{})
	got, err := a.List(t.Context())
	w.must(err)
	if d := cmp.Diff(want, got, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); d != "" || len(got) != 1 {
		t.Fatalf("another start finds something else (-want +got):\n%s", d)
	}
	// The interface is lost: found, and made again.
	w.ip("a", "link", "del", "dvx77")
	w.waitFault(a, "missing")
	w.must(a.Extend(t.Context(), owner1, withGateway(extensionOf(meshA, meshB))))
	w.waitFault(a, "")
	if out := w.run("a", "bridge", "fdb", "show", "dev", "dvx77"); !strings.Contains(out, g2.MAC+" dst 10.99.0.2") {
		t.Errorf("the stations were not made again:\n%s", out)
	}
	// The table is lost: an extension without owners, removed by anybody's Retract.
	w.run("a", "nft", "delete", "table", "bridge", "drover_vxlan_77")
	got, err = a.List(t.Context())
	w.must(err)
	if len(got) != 1 || len(got[0].Owners) != 0 || got[0].Fault == "" {
		t.Errorf("leftover: %+v", got)
	}
	w.must(a.Retract(t.Context(), owner1, segmentName))
	if d := cmp.Diff(before, w.kernel("a")); d != "" {
		t.Errorf("left or taken (-before +after):\n%s", d)
	}
}

// TestTaken: what somebody else has is said, and left alone.
func TestTaken(t *testing.T) {
	w := newWorld(t, 1600)
	a := w.open("a", vxlan.Config{})
	w.ip("a", "link", "add", "dvx77", "type", "bridge")
	before := w.kernel("a")
	if err := a.Extend(t.Context(), owner1, extensionOf(meshA, meshB)); drover.KindOf(err) != drover.Exists {
		t.Errorf("an interface of somebody else: %v", err)
	}
	w.ip("a", "link", "del", "dvx77")
	w.ip("a", "link", "add", "mine", "type", "vxlan", "id", "77", "local", "10.99.0.1", "dstport", "4789")
	if err := a.Extend(t.Context(), owner1, extensionOf(meshA, meshB)); drover.KindOf(err) != drover.Exists {
		t.Errorf("a number of somebody else: %v", err)
	}
	w.ip("a", "link", "del", "mine")
	w.ip("a", "link", "add", "dvx77", "type", "bridge")
	if d := cmp.Diff(trimIndex(before), trimIndex(w.kernel("a"))); d != "" {
		t.Errorf("left or taken (-before +after):\n%s", d)
	}
}

// trimIndex leaves out MACs, which the kernel makes up for each interface.
func trimIndex(s string) string {
	var keep []string
	for line := range strings.SplitSeq(s, "\n") {
		if !strings.Contains(line, "dvx77") {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "\n")
}

// TestMesh6: the mesh may have IPv6 addresses.
func TestMesh6(t *testing.T) {
	w := newWorld(t, 1600)
	g1, g2 := w.guest("g1", "a", 11), w.guest("g2", "b", 12)
	a, b := w.open("a", vxlan.Config{}), w.open("b", vxlan.Config{})
	ea, eb := extensionOf(mesh6A, mesh6B), extensionOf(mesh6B, mesh6A)
	w.must(a.Extend(t.Context(), owner1, ea))
	w.must(b.Extend(t.Context(), owner1, eb))
	far1, far2 := g1, g2
	far1.At, far2.At = mesh6A, mesh6B
	w.must(a.SetStations(t.Context(), segmentName, []driver.Station{g1, far2}))
	w.must(b.SetStations(t.Context(), segmentName, []driver.Station{g2, far1}))
	w.pings("g1", g2.Addresses[0], 2, full4)
	w.pings("g1", g2.Addresses[1], 2, full6)
}
