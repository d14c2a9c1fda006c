package dhcp

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
const inNamespace = "DROVER_DHCP_TEST_NAMESPACE"

// TestMain runs the tests in network and mount namespaces of their own.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(reexec())
	}
	if err := loopback(); err != nil {
		fmt.Fprintln(os.Stderr, "bring up the namespace's loopback:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func reexec() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of driver/dhcp start DHCP services in namespaces: run them as root")
		return 1
	}
	for _, program := range []string{"kea-dhcp4", "kea-dhcp6", "libvirtd", "dnsmasq"} {
		if _, err := exec.LookPath(program); err != nil {
			fmt.Fprintf(os.Stderr, "the tests of driver/dhcp need %s: run make deps\n", program)
			return 1
		}
	}
	runtime.LockOSThread() // the child is to end with the process, not with a thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
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
