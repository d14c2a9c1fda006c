package disk

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
const inNamespace = "DROVER_DISK_TEST_NAMESPACE"

// TestMain runs the tests in a mount namespace of their own, so that the small
// file systems they mount vanish with the process, however it ends.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(reexec())
	}
	goleak.VerifyTestMain(m)
}

func reexec() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of driver/disk mount small file systems: run them as root")
		return 1
	}
	runtime.LockOSThread() // the child is to end with the process, not with a thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "run the tests in a mount namespace:", err)
		return 1
	}
	return 0
}
