package tap

import (
	"syscall"
	"testing"

	"github.com/drover-vm/drover/namespace/namespacetest"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) {
	namespacetest.Main(m, namespacetest.Spaces{Flags: syscall.CLONE_NEWNET, Programs: []string{"ip"}})
}
