package disk

import (
	"syscall"
	"testing"

	"github.com/drover-vm/drover/namespace/namespacetest"
)

// TestMain runs the tests in a mount namespace of their own, for the small file
// systems that they mount.
func TestMain(m *testing.M) {
	namespacetest.Main(m, namespacetest.Spaces{Flags: syscall.CLONE_NEWNS})
}
