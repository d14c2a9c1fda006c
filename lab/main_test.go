package lab_test

import (
	"os"
	"testing"

	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/node"
)

// TestMain lets the test binary be the drover that a lab's holders and emulator
// run.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case node.Subcommand:
			os.Exit(node.Main(os.Args[2:]))
		case lab.WANSubcommand:
			os.Exit(lab.WANMain(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}
