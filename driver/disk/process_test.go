package disk

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// holderFolder tells TestHolder which folder's image to open.
const holderFolder = "DROVER_DISK_TEST_HOLD"

// TestHolder is no test of its own: TestDiesWithParent runs it in a process
// that opens an image and waits to be killed.
func TestHolder(t *testing.T) {
	dir := os.Getenv(holderFolder)
	if dir == "" {
		return
	}
	s := newStore(t, Config{Dirs: []string{dir}})
	w, err := s.OpenWrite(t.Context(), filepath.Join(dir, "disk.raw"))
	must(t, err)
	fmt.Printf("server %d\n", w.(*image).server.cmd.Process.Pid)
	io.Copy(io.Discard, os.Stdin) // until the test ends
}

// TestDiesWithParent: a killed process takes its servers with it, and the
// image can be opened again.
func TestDiesWithParent(t *testing.T) {
	s, dir := store(t)
	path := filepath.Join(dir, "disk.raw")
	must(t, s.Create(t.Context(), driver.VolumeSpec{Path: path, Format: "raw", VirtualBytes: 1 << 20}))
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHolder$", "-test.v")
	// The other process cannot clean up: its temporary files are ours.
	temp, err := os.MkdirTemp("", "hold-")
	must(t, err)
	defer os.RemoveAll(temp)
	cmd.Env = append(os.Environ(), holderFolder+"="+dir, "TMPDIR="+temp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	must(t, err)
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	runtime.LockOSThread() // the kernel watches the thread, see spawn
	defer runtime.UnlockOSThread()
	must(t, cmd.Start())
	pid := 0
	for lines := bufio.NewScanner(stdout); pid == 0 && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "server "); ok {
			pid, err = strconv.Atoi(text)
			must(t, err)
		}
	}
	if pid == 0 {
		t.Fatal("the other process did not open the image")
	}
	_, err = s.OpenRead(t.Context(), path, false)
	if drover.KindOf(err) != drover.Refused || !strings.Contains(err.Error(), "in use") {
		t.Errorf("open elsewhere: %v", err)
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	for range 1000 { // 10 s, far more than the kernel needs
		if ended(pid) && !locked(path) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !ended(pid) || locked(path) {
		t.Fatalf("qemu-nbd %d or its locks outlive its parent", pid)
	}
	r, err := s.OpenRead(t.Context(), path, false)
	must(t, err)
	must(t, r.Close())
}

// ended reports whether the process is gone, or a zombie that its new parent
// has not collected.
func ended(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z")
}

// vm runs a paused QEMU with the image as its disk and returns when it has it
// open, or with what QEMU said instead.
func vm(t *testing.T, path, format string) (stop func(), err error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "drover-vm-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	monitor := filepath.Join(dir, "m")
	c, err := spawn("qemu-system-x86_64", io.Discard, "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "32", "-S",
		"-qmp", "unix:"+monitor+",server=on,wait=off",
		"-blockdev", "driver="+format+",node-name=d,file.driver=file,file.filename="+path, "-device", "virtio-blk-pci,drive=d")
	must(t, err)
	for {
		conn, err := net.Dial("unix", monitor)
		if err == nil {
			// A command is answered by the main loop, when all devices are
			// there; the greeting may come before.
			fmt.Fprintln(conn, `{"execute":"qmp_capabilities"}{"execute":"query-status"}`)
			r := bufio.NewReader(conn)
			for line := ""; err == nil && !strings.Contains(line, `"running"`); {
				line, err = r.ReadString('\n')
			}
			conn.Close()
		}
		if err == nil {
			return func() { c.signal(os.Kill); <-c.exited }, nil
		}
		select {
		case <-c.exited:
			return nil, c.failure()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestVirtualMachine: a running VM and this store keep each other out.
func TestVirtualMachine(t *testing.T) {
	for _, format := range []string{"qcow2", "raw"} {
		s, dir := store(t)
		path := filepath.Join(dir, "disk."+format)
		must(t, s.Create(t.Context(), driver.VolumeSpec{Path: path, Format: format, VirtualBytes: 1 << 20}))
		stop, err := vm(t, path, format)
		must(t, err)
		_, err = s.OpenRead(t.Context(), path, true)
		wantRefused(t, err)
		_, err = s.OpenWrite(t.Context(), path)
		wantRefused(t, err)
		_, err = s.Identify(t.Context(), path)
		wantRefused(t, err)
		wantRefused(t, s.Delete(t.Context(), path))
		if _, err := s.Volume(t.Context(), path); err != nil {
			t.Errorf("%s: observe under a VM: %v", format, err)
		}
		stop()
		r, err := s.OpenRead(t.Context(), path, false)
		must(t, err)
		if stop, err := vm(t, path, format); err == nil {
			stop()
			t.Errorf("%s: a VM starts on an image that is being read", format)
		} else {
			wantRefused(t, err)
		}
		must(t, r.Close())
		stop, err = vm(t, path, format)
		must(t, err)
		stop()
	}
}

func wantRefused(t *testing.T, err error) {
	t.Helper()
	if err == nil || drover.KindOf(err) != drover.Refused || !strings.Contains(err.Error(), "a VM runs on it") {
		t.Errorf("got %v of kind %v, want it refused as in use", err, drover.KindOf(err))
	}
}

// TestServerDies: what is open fails with Unavailable, and Close does not hang.
func TestServerDies(t *testing.T) {
	s, dir := store(t)
	path := filepath.Join(dir, "disk.raw")
	must(t, s.Create(t.Context(), driver.VolumeSpec{Path: path, Format: "raw", VirtualBytes: 1 << 20}))
	w, err := s.OpenWrite(t.Context(), path)
	must(t, err)
	im := w.(*image)
	im.server.signal(os.Kill)
	<-im.server.exited
	if _, err := w.WriteAt(make([]byte, 512), 0); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("write: %v of kind %v", err, drover.KindOf(err))
	}
	if err := w.Flush(t.Context()); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("flush: %v of kind %v", err, drover.KindOf(err))
	}
	if err := w.Close(); err == nil {
		t.Error("closing hides that the server was killed")
	}
}

// TestLimit: no more processes than maxOpen, and each place is given back.
func TestLimit(t *testing.T) {
	s, dir := store(t)
	path := filepath.Join(dir, "disk.raw")
	must(t, s.Create(t.Context(), driver.VolumeSpec{Path: path, Format: "raw", VirtualBytes: 1 << 20}))
	s.count = maxOpen - 1 // as if the others were open
	r, err := s.OpenRead(t.Context(), path, false)
	must(t, err)
	if _, err := s.OpenRead(t.Context(), path, false); drover.KindOf(err) != drover.Exhausted {
		t.Errorf("one too many: %v", err)
	}
	must(t, r.Close())
	if _, err := s.OpenRead(t.Context(), filepath.Join(dir, "none.raw"), false); drover.KindOf(err) != drover.NotFound {
		t.Errorf("missing: %v", err)
	}
	r, err = s.OpenRead(t.Context(), path, false)
	must(t, err)
	must(t, r.Close())
	s.count -= maxOpen - 1
}
