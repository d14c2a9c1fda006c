package dhcp

import (
	"syscall"
	"testing"

	"github.com/drover-vm/drover/namespace/namespacetest"
)

// TestMain runs the tests in network and mount namespaces of their own.
func TestMain(m *testing.M) {
	namespacetest.Main(m, namespacetest.Spaces{
		Flags:    syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Programs: []string{"kea-dhcp4", "kea-dhcp6", "libvirtd", "dnsmasq", "ip"},
		Prepare:  []string{"ip link set lo up", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"},
	})
}
