package icmp_test

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/icmp"
)

func TestConformance(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test makes a network and raw sockets in it, and needs root")
	}
	for _, here := range []string{"127.0.0.1", "::1"} {
		t.Run(here, func(t *testing.T) {
			quiet(t)
			drivertest.Pings(t, drivertest.PingsSetup{
				New:     func(*testing.T) driver.Pings { return icmp.Pings{} },
				Answers: netip.MustParseAddr(here), Silent: netip.MustParseAddr("192.0.2.1"),
			})
		})
	}
}

// quiet gives the test a network of its own with a cable that ends nowhere, so
// that 192.0.2.1 is a neighbour that never answers. The thread ends with the
// test, and the network with it.
func quiet(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "near", "type", "veth", "peer", "name", "far"},
		{"address", "add", "192.0.2.2/24", "dev", "near"},
		{"link", "set", "near", "up"},
		{"link", "set", "far", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
}
