package dns

import (
	"syscall"
	"testing"

	"github.com/drover-vm/drover/namespace/namespacetest"
)

// TestMain runs the tests in a network namespace of their own, where the name
// servers have port 53 for themselves.
func TestMain(m *testing.M) {
	namespacetest.Main(m, namespacetest.Spaces{
		Flags:    syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Programs: []string{"named", "knotd", "ip"},
		// An address for each name server.
		Prepare: []string{"ip link set lo up", "ip addr add 127.0.0.2/32 dev lo", "ip addr add 127.0.0.3/32 dev lo"},
	})
}
