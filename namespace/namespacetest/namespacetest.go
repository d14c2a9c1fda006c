// Package namespacetest gives a package's tests Linux namespaces of their own:
// what they make there (interfaces, addresses, mounts, servers on well-known
// ports) is out of everybody's way, and vanishes with the process, however it
// ends.
package namespacetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// Spaces says what a package's tests need.
type Spaces struct {
	// Flags are those of unshare(2): syscall.CLONE_NEWNET, CLONE_NEWNS.
	Flags uintptr
	// Programs have to be on the PATH.
	Programs []string
	// Prepare are shell commands that are run inside before the tests.
	Prepare []string
}

// inside tells the second of the two processes that a run consists of.
const inside = "DROVER_TEST_INSIDE"

// Main is a package's TestMain: it runs the tests in namespaces of their own, and
// wants them to leave no goroutine behind.
func Main(m *testing.M, s Spaces) {
	if os.Getenv(inside) == "" {
		os.Exit(outside(s))
	}
	for _, command := range s.Prepare {
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v %s\n", command, err, out)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// outside runs this program once more, and returns its exit status.
func outside(s Spaces) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make namespaces: run them as root")
		return 1
	}
	var missing []string
	for _, program := range s.Programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) > 0 {
		fmt.Fprintf(os.Stderr, "these tests need %s: run make deps\n", strings.Join(missing, ", "))
		return 1
	}
	runtime.LockOSThread() // the child is to end with the process, not with a thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: s.Flags, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "run the tests in namespaces:", err)
		return 1
	}
	return 0
}
