package tap

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// inNamespace tells the second of the two processes that a run consists of.
const inNamespace = "DROVER_TAP_TEST_NAMESPACE"

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) != "" {
		goleak.VerifyTestMain(m)
		return
	}
	if _, err := exec.LookPath("ip"); err != nil || os.Geteuid() != 0 {
		fmt.Fprintf(os.Stderr, "the tests of driver/tap need root and iproute2 (make deps): %v\n", err)
		os.Exit(1)
	}
	runtime.LockOSThread() // the child is to end with the process, not with a thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "run the tests in a namespace:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
