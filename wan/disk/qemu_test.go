package disk

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// qemuLimit bounds the wait for QEMU on a busy machine.
const qemuLimit = 60 * time.Second

// program runs one of QEMU's until the test ends. It dies with the test.
func program(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var said strings.Builder
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (packages qemu-utils and qemu-system-x86)", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said: %s", name, said.String())
		}
	})
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// dialSoon connects as soon as somebody listens.
func dialSoon(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// monitor is a connection to QEMU's machine protocol.
type monitor struct {
	t      *testing.T
	conn   net.Conn
	dec    *json.Decoder
	events []event
}

type event struct {
	Event string
	Data  struct {
		Device string
		Error  string
	}
}

func newMonitor(t *testing.T, ctx context.Context, path string) *monitor {
	t.Helper()
	conn, err := dialSoon(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	m := &monitor{t: t, conn: conn, dec: json.NewDecoder(conn)}
	m.next() // its greeting
	m.do("qmp_capabilities", nil)
	return m
}

// next reads one message; an event is kept.
func (m *monitor) next() (result json.RawMessage, failed, answered bool) {
	m.t.Helper()
	var v struct {
		event
		Return, Error json.RawMessage
	}
	if err := m.dec.Decode(&v); err != nil {
		m.t.Fatalf("qemu's monitor: %v", err)
	}
	if v.Event != "" {
		m.events = append(m.events, v.event)
	}
	if v.Error != nil {
		return v.Error, true, true
	}
	return v.Return, false, v.Return != nil
}

func (m *monitor) do(name string, args map[string]any) string {
	m.t.Helper()
	if args == nil {
		args = map[string]any{}
	}
	if err := json.NewEncoder(m.conn).Encode(map[string]any{"execute": name, "arguments": args}); err != nil {
		m.t.Fatal(err)
	}
	for {
		if result, failed, answered := m.next(); answered {
			if failed {
				m.t.Fatalf("%s: %s", name, result)
			}
			return string(result)
		}
	}
}

// await waits for an event of the job.
func (m *monitor) await(name string) event {
	m.t.Helper()
	for {
		for i, e := range m.events {
			if e.Event == name {
				m.events = append(m.events[:i], m.events[i+1:]...)
				return e
			}
		}
		m.next()
	}
}

// io does what qemu-io would on the VM's disk.
func (m *monitor) io(command string) {
	m.t.Helper()
	out := m.do("human-monitor-command", map[string]any{"command-line": fmt.Sprintf("qemu-io -d /machine/peripheral/disk0/virtio-backend %q", command)})
	if strings.Contains(out, "rror") || strings.Contains(out, "failed") {
		m.t.Fatalf("%s: %s", command, out)
	}
}

// TestQEMUMirror: the mirror job of a real QEMU through both ends into a real
// qemu-nbd, as a migration runs it: full copy, writes while it runs, then the
// cancel that completes it. When the job has ended the images are equal and
// the destination's is flushed.
func TestQEMUMirror(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) { mirror(t, format) })
	}
}

// guest starts a paused QEMU whose disk is the image, and mirrors it to the
// path.
func guest(t *testing.T, ctx context.Context, p *path, dir, image, format, export string) *monitor {
	t.Helper()
	qmp := filepath.Join(dir, "m")
	program(t, "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "32", "-S",
		"-qmp", "unix:"+qmp+",server=on,wait=off",
		"-blockdev", "driver="+format+",node-name=top,file.driver=file,file.filename="+image,
		"-device", "virtio-blk-pci,id=disk0,drive=top")
	m := newMonitor(t, ctx, qmp)
	m.do("blockdev-add", map[string]any{
		"node-name": "far", "driver": "nbd", "export": export, "discard": "unmap",
		"server": map[string]any{"type": "unix", "path": p.socket},
	})
	m.do("blockdev-mirror", map[string]any{"job-id": "j", "device": "top", "target": "far", "sync": "full"})
	return m
}

// shortDir is a folder whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mirror")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestQEMUMirrorFails: a destination that is full ends QEMU's job with its
// reason, and one that hangs does not keep a closed Source or QEMU.
func TestQEMUMirrorFails(t *testing.T) {
	for name, far := range map[string]*image{
		"full":  {disk: make([]byte, 24<<20), fail: syscall.ENOSPC},
		"hangs": {disk: make([]byte, 24<<20), hold: make(chan struct{})},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), qemuLimit)
			defer cancel()
			dir := shortDir(t)
			from := filepath.Join(dir, "from")
			if err := os.WriteFile(from, randomBytes(3, len(far.disk)), 0o600); err != nil {
				t.Fatal(err)
			}
			p := newPath(t, pathOptions{dial: dialImages(t, map[string]*image{"d": far}), limit: minLimit})
			m := guest(t, ctx, p, dir, from, "raw", "d")
			want := "No space left"
			if far.hold != nil {
				want = "" // the answer and the connection's end race
				// A full mirror begins with zeros everywhere, which do not hang.
				for p.source.Positions()["d"].Bytes < uint64(len(far.disk))+minLimit/2 {
					time.Sleep(time.Millisecond)
				}
				p.cancel() // as when a move is cancelled: both ends at once
				p.source.Close()
			}
			if e := m.await("BLOCK_JOB_COMPLETED"); e.Data.Error == "" || !strings.Contains(e.Data.Error, want) {
				t.Errorf("the mirror ended with %q, want %q", e.Data.Error, want)
			}
			if Missing(p.source.Positions(), p.target.Positions()) == nil {
				t.Error("nothing is said to be missing")
			}
			m.do("quit", nil)
		})
	}
}

func mirror(t *testing.T, format string) {
	ctx, cancel := context.WithTimeout(t.Context(), qemuLimit)
	defer cancel()
	const export, size = "drive-virtio-disk0", "24M"
	dir := shortDir(t)
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	for _, f := range []string{from, to} {
		command(t, "qemu-img", "create", "-q", "-f", format, f, size)
	}
	command(t, "qemu-io", "-f", format, "-c", "write -P 11 0 3M", "-c", "write -z 5M 64k", "-c", "write -P 12 20M 1000k", from)
	command(t, "qemu-io", "-f", format, "-c", "write -P 99 10M 2M", to) // what a full mirror has to remove
	served := filepath.Join(dir, "d")
	program(t, "qemu-nbd", "--socket="+served, "--export-name="+export, "--format="+format, "--persistent", "--shared=4", "--discard=unmap", to)
	p := newPath(t, pathOptions{dial: func(ctx context.Context, _ string) (net.Conn, error) { return dialSoon(ctx, served) }})
	m := guest(t, ctx, p, dir, from, format, export)
	m.io("write -P 33 1M 70000")
	m.await("BLOCK_JOB_READY")
	m.io("write -P 44 4096 12k")
	m.io("write -P 45 777 3000")
	m.io("write -z -u 20M 128k")
	m.io("discard 2M 1M")
	m.do("block-job-cancel", map[string]any{"device": "j"})
	if e := m.await("BLOCK_JOB_COMPLETED"); e.Data.Error != "" {
		t.Fatalf("the mirror ended with %s", e.Data.Error)
	}
	// The job has ended: nothing may be missing, without a Drain.
	if err := Missing(p.source.Positions(), p.target.Positions()); err != nil || len(p.source.Positions()) != 1 {
		t.Errorf("after the job's end: %v", err)
	}
	m.do("blockdev-del", map[string]any{"node-name": "far"})
	m.do("quit", nil)
	if err := p.source.Close(); err != nil {
		t.Error(err)
	}
	if err := <-p.results; err != nil {
		t.Errorf("the target ended with %v", err)
	}
	command(t, "qemu-img", "compare", "-U", "-f", format, "-F", format, from, to)
}
