package libvirt_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/libvirt"
)

// hostScript is process 1 of a host's namespaces: it lays the host's own
// folders over the machine's and starts libvirtd once for each line it reads,
// so that a test can kill it and start it again while QEMU runs on. It must
// not be libvirtd itself that is process 1: the QEMUs that libvirtd starts to
// learn their capabilities become daemons, process 1 inherits them, and one
// that does not reap makes libvirtd wait 40 s for each.
const hostScript = `
set -e
mount --make-rprivate /
for d in /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt; do mkdir -p $d; done
mount --bind $1/run /run
mount --bind $1/etc /etc/libvirt
mount --bind $1/lib /var/lib/libvirt
mount --bind $1/log /var/log/libvirt
mount --bind $3 /var/cache/libvirt
mount -t proc proc /proc
hostname $2
ip link set lo up
ip link add br-test type bridge
set +e
while read -r _; do
	rm -f /run/libvirtd.pid
	libvirtd >>/var/log/libvirt/console 2>&1
	echo ended
done
`

const qemuConf = `user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
remember_owner = 0
`

// testHost is a libvirtd in namespaces of its own.
type testHost struct {
	name, folder string
	cmd          *exec.Cmd
	lines        io.WriteCloser
	answers      *bufio.Reader
}

// newTestHost starts one. Cache is the folder where libvirtd keeps what it has
// learnt of QEMU, which takes it seconds; hosts may share it. The host ends
// with the test, and with the test's process however that ends: process 1 of a
// namespace takes all others with it.
func newTestHost(t *testing.T, name, uuid, cache string) *testHost {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test starts libvirtd in namespaces and needs root")
	}
	for _, program := range []string{"libvirtd", "qemu-system-x86_64", "qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("this test needs %s: run make deps", program)
		}
	}
	// Short, for the paths of sockets.
	folder, err := os.MkdirTemp("", "drvhost")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	for _, sub := range []string{"run", "etc", "lib/images", "log"} {
		if err := os.MkdirAll(filepath.Join(folder, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range map[string]string{
		"etc/qemu.conf":     qemuConf,
		"etc/libvirtd.conf": fmt.Sprintf("host_uuid = %q\nauth_unix_rw = \"none\"\n", uuid),
	} {
		if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/bin/bash", "-c", hostScript, "host", folder, name, cache)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	h := &testHost{name: name, folder: folder, cmd: cmd}
	var problems strings.Builder
	cmd.Stderr = &problems
	if h.lines, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.answers = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			console, _ := os.ReadFile(filepath.Join(folder, "log/console"))
			t.Logf("host %s: %s\n%s", name, problems.String(), tail(string(console), 4000))
		}
	})
	h.start(t)
	return h
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (h *testHost) socket() string { return filepath.Join(h.folder, "run/libvirt/libvirt-sock") }

// start starts libvirtd and returns when it listens.
func (h *testHost) start(t *testing.T) {
	t.Helper()
	_ = os.Remove(h.socket())
	if _, err := io.WriteString(h.lines, "start\n"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, err := os.Stat(h.socket()); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("libvirtd of host %s does not listen", h.name)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// kill kills libvirtd and returns when it has ended.
func (h *testHost) kill(t *testing.T) {
	t.Helper()
	first := strconv.Itoa(h.cmd.Process.Pid)
	children, err := os.ReadFile(filepath.Join("/proc", first, "task", first, "children"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range strings.Fields(string(children)) {
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil || strings.TrimSpace(string(name)) != "libvirtd" {
			continue
		}
		number, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(number, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if line, err := h.answers.ReadString('\n'); err != nil || line != "ended\n" {
		t.Fatalf("host %s answers %q, %v", h.name, line, err)
	}
}

func (h *testHost) open(t *testing.T) driver.Hypervisor {
	log := slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return libvirt.New(log.With("host", h.name), h.socket())
}

// image is where a disk of the host is, seen from outside.
func (h *testHost) image(path string) string {
	return filepath.Join(h.folder, "lib/images", filepath.Base(path))
}

// alone are qemu-io's arguments for opening a disk's top image without what is
// below it, whose path means something else outside of the host.
func (h *testHost) alone(disk drover.Disk) []string {
	options := fmt.Sprintf("driver=%s,file.filename=%s", disk.Format, h.image(disk.Path))
	if len(disk.Backing) > 0 {
		options += ",backing=" // none
	}
	return []string{"--image-opts", options}
}

// testLog writes a logger's lines to the test's.
type testLog struct{ t *testing.T }

func (w testLog) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}
