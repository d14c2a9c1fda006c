package dns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

// inNamespace tells the second of the two processes that a run consists of.
const inNamespace = "DROVER_DNS_TEST_NAMESPACE"

// TestMain runs the tests in a network namespace of their own, where the name
// servers have port 53 for themselves.
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

// loopback gives the namespace an address for each name server.
func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, text := range []string{"127.0.0.2/32", "127.0.0.3/32"} {
		address, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, address); err != nil {
			return err
		}
	}
	return nil
}

func reexec() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of driver/dns start name servers in a network namespace: run them as root")
		return 1
	}
	for _, program := range []string{"named", "knotd"} {
		if _, err := exec.LookPath(program); err != nil {
			fmt.Fprintf(os.Stderr, "the tests of driver/dns need %s: run make deps\n", program)
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
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace:", err)
		return 1
	}
	return 0
}
