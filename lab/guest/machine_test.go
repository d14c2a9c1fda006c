package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/drover-vm/drover/lab/guest"
	"github.com/drover-vm/drover/lab/guest/control"
)

// bootLimit is many times what a boot takes on an idle machine.
const bootLimit = 2 * time.Minute

// machine is a real QEMU process with a guest, its ports forwarded to
// loopback.
type machine struct {
	cmd     *exec.Cmd
	qmp     *bufio.ReadWriter
	exited  chan error
	console string // file
	session string // host:port
	control *control.Client
}

// boot starts a guest on an emulated processor and waits until it answers.
func boot(t *testing.T, sheep guest.Sheep, machineType, disk, settings string) *machine {
	t.Helper()
	dir := t.TempDir()
	console, socket := filepath.Join(dir, "console"), filepath.Join(dir, "qmp")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	m := &machine{exited: make(chan error, 1), console: console}
	m.cmd = exec.Command("qemu-system-x86_64", "-machine", machineType, "-accel", "tcg", "-m", "128", "-nodefaults", "-display", "none",
		"-kernel", sheep.Kernel, "-initrd", sheep.Initrd, "-append", "console=ttyS0 quiet "+settings,
		"-serial", "file:"+console, "-qmp", "unix:"+socket,
		"-netdev", "user,id=n,net=10.20.0.0/24,host=10.20.0.1,dhcpstart=10.20.0.15,hostfwd=tcp:127.0.0.1:0-:7000,hostfwd=tcp:127.0.0.1:0-:8080",
		"-device", "virtio-net-pci,netdev=n",
		"-drive", "if=virtio,format=raw,file="+disk)
	m.cmd.Stderr = os.Stderr
	if err := m.cmd.Start(); err != nil {
		t.Fatalf("start QEMU (apt-get install qemu-system-x86): %v", err)
	}
	go func() { m.exited <- m.cmd.Wait() }()
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			b, _ := os.ReadFile(console)
			t.Logf("console:\n%s", b)
		}
	})
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	m.qmp = bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	if _, err := m.qmp.ReadString('\n'); err != nil { // greeting
		t.Fatalf("QMP: %v", err)
	}
	m.ask(t, "qmp_capabilities", nil)
	m.findPorts(t)
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	for m.control.Health(ctx) != nil {
		if ctx.Err() != nil {
			t.Fatal("the guest does not answer")
		}
		time.Sleep(100 * time.Millisecond)
	}
	return m
}

// findPorts learns the loopback ports that QEMU has chosen.
func (m *machine) findPorts(t *testing.T) {
	t.Helper()
	var table string
	m.ask(t, "human-monitor-command", &table, "command-line", "info usernet")
	port := func(guest int) string {
		// Protocol[State] FD Source-Address Port Dest.-Address Port RecvQ SendQ
		found := regexp.MustCompile(fmt.Sprintf(`HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+%d\s`, guest)).FindStringSubmatch(table)
		if found == nil {
			t.Fatalf("no port forwarded to %d:\n%s", guest, table)
		}
		return found[1]
	}
	m.session = "127.0.0.1:" + port(control.SessionPort)
	m.control = &control.Client{
		Base: "http://127.0.0.1:" + port(control.HTTPPort),
		HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
}

// ask sends a QMP command with arguments name, value, … and reads its result
// into out, unless that is nil.
func (m *machine) ask(t *testing.T, command string, out any, args ...string) {
	t.Helper()
	req := map[string]any{"execute": command}
	if len(args) > 0 {
		req["arguments"] = map[string]string{args[0]: args[1]}
	}
	if err := json.NewEncoder(m.qmp).Encode(req); err != nil {
		t.Fatal(err)
	}
	if err := m.qmp.Flush(); err != nil {
		t.Fatalf("QMP: %v", err)
	}
	for {
		line, err := m.qmp.ReadBytes('\n')
		if err != nil {
			t.Fatalf("QMP: %v", err)
		}
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			t.Fatalf("QMP: %v", err)
		}
		switch {
		case reply.Error != nil:
			t.Fatalf("QMP %s: %s", command, reply.Error.Desc)
		case reply.Return != nil: // anything else is an event
			if out != nil {
				if err := json.Unmarshal(reply.Return, out); err != nil {
					t.Fatal(err)
				}
			}
			return
		}
	}
}

// kill ends QEMU as a power cut would.
func (m *machine) kill() {
	_ = m.cmd.Process.Kill() // no error matters: it may have ended already
	m.exited <- <-m.exited   // waits, and leaves the result for others
}

// powerDown presses the power button and waits until the guest is off, with its
// network down before.
func (m *machine) powerDown(t *testing.T) {
	t.Helper()
	m.ask(t, "system_powerdown", nil)
	select {
	case err := <-m.exited:
		m.exited <- err
		if err != nil {
			t.Errorf("QEMU: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the guest does not power off by its power button")
	}
	if b, err := os.ReadFile(m.console); err != nil || !bytes.Contains(b, []byte(`"link set down"`)) {
		t.Errorf("the guest powered off with its network up (%v)", err)
	}
}

// copyFile copies a disk.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if closeErr := out.Close(); err != nil || closeErr != nil {
		t.Fatal(err, closeErr)
	}
}
