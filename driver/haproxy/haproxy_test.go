package haproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/namespace/namespacetest"
)

// TestMain runs the tests in a network namespace of their own, with nothing but
// a loopback interface.
func TestMain(m *testing.M) {
	namespacetest.Main(m, namespacetest.Spaces{
		Flags: syscall.CLONE_NEWNET, Programs: []string{"haproxy", "ip", "unshare"}, Prepare: []string{"ip link set lo up"},
	})
}

// bench is a HAProxy with three web servers: two of its own and a spare one.
type bench struct {
	dir     string
	servers []*webServer
	front   string
	stateFile,
	level string
	// contained has HAProxy run as a container would: its process id is always 1.
	contained bool
	run       *exec.Cmd
}

const config = `global
	stats socket %[1]s/admin.sock mode 600 level %[2]s
	%[3]s
defaults
	mode http
	timeout connect 2s
	timeout client 60s
	timeout server 60s
	%[4]s
frontend front
	bind 127.0.0.1:18080
	default_backend web
backend web
	balance roundrobin
	option httpchk GET /
	http-reuse never
	server one %[5]s weight 10 check inter 50ms
	server two %[6]s weight 10 check inter 50ms
backend fixed
	balance static-rr
	server one %[5]s
`

func newBench(t *testing.T, stateFile bool, level string) *bench {
	t.Helper()
	b := &bench{dir: t.TempDir(), front: "http://127.0.0.1:18080", level: level}
	for range 3 {
		b.servers = append(b.servers, newWebServer(t))
	}
	global, defaults := "", ""
	if stateFile {
		b.stateFile = filepath.Join(b.dir, "server.state")
		global, defaults = "server-state-file "+b.stateFile, "load-server-state-from-file global"
	}
	text := fmt.Sprintf(config, b.dir, level, global, defaults, b.servers[0].addr, b.servers[1].addr)
	if err := os.WriteFile(filepath.Join(b.dir, "haproxy.cfg"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	t.Cleanup(func() { b.stop(t) })
	return b
}

// start starts HAProxy; when one runs already, it takes over from it as at a reload.
func (b *bench) start(t *testing.T) {
	t.Helper()
	before := b.run
	args := []string{"-q", "-db", "-f", filepath.Join(b.dir, "haproxy.cfg")}
	if before != nil {
		args = append(args, "-sf", strconv.Itoa(before.Process.Pid))
	}
	b.run = exec.Command("haproxy", args...)
	if b.contained {
		b.run = exec.Command("unshare", append([]string{"--pid", "--fork", "--kill-child", "haproxy"}, args...)...)
	}
	b.run.Stderr = os.Stderr
	if err := b.run.Start(); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		old := before
		done := make(chan struct{})
		go func() { defer close(done); old.Wait() }() // it ends when its sessions have
		t.Cleanup(func() {
			old.Process.Kill()
			<-done
		})
	}
	b.await(t)
}

// await waits for the process to answer on its socket.
func (b *bench) await(t *testing.T) {
	t.Helper()
	s := socket{filepath.Join(b.dir, "admin.sock")}
	for ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second); ; {
		defer cancel()
		info, err := s.run(ctx, "show info")
		pid := b.run.Process.Pid
		if b.contained {
			pid = 1
		}
		if err == nil && strings.Contains(info, fmt.Sprintf("\nPid: %d\n", pid)) {
			return
		}
		if wait(ctx, 10*time.Millisecond) != nil {
			t.Fatalf("HAProxy does not answer: %v", err)
		}
	}
}

func (b *bench) stop(t *testing.T) {
	t.Helper()
	b.run.Process.Kill()
	b.run.Wait()
}

func (b *bench) config() Config {
	return Config{Socket: filepath.Join(b.dir, "admin.sock"), StateDir: filepath.Join(b.dir, "state"), ServerStateFile: b.stateFile}
}

func (b *bench) open(t *testing.T) driver.Balancer {
	t.Helper()
	d, err := New(b.config())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (b *bench) visit(t *testing.T, n int) map[netip.AddrPort]int {
	t.Helper()
	counts := map[netip.AddrPort]int{}
	for range n {
		counts[b.get(t)]++
	}
	return counts
}

func (b *bench) get(t *testing.T) netip.AddrPort {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Get(b.front)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v: %s", res.Status, err, body)
	}
	return netip.MustParseAddrPort(string(body))
}

// hold opens a response that has no end; each byte that is sent up is answered.
func (b *bench) hold(t *testing.T) drivertest.Held {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.front, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprint(conn, "GET /hold HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("hold: %v %+v", err, res)
	}
	return drivertest.Held{
		Server: netip.MustParseAddrPort(res.Header.Get("Server-Address")),
		Alive: func() bool {
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := conn.Write([]byte{'x'}); err != nil {
				return false
			}
			c, err := r.ReadByte()
			return err == nil && c == 'x'
		},
		End: func() { conn.Close() },
	}
}

// webServer says its own address; /hold is an echo.
type webServer struct{ addr netip.AddrPort }

func newWebServer(t *testing.T) *webServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &webServer{addr: netip.MustParseAddrPort(l.Addr().String())}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, w.addr) })
	mux.HandleFunc("/hold", func(rw http.ResponseWriter, _ *http.Request) {
		conn, buf, err := rw.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nServer-Address: %s\r\n\r\n", w.addr)
		buf.Flush()
		io.Copy(conn, buf)
	})
	s := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return w
}

// dead is an address where nothing listens.
func dead(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestBalancer(t *testing.T) {
	for name, stateFile := range map[string]bool{"StateFile": true, "NoStateFile": false} {
		t.Run(name, func(t *testing.T) {
			drivertest.Balancer(t, func(t *testing.T) drivertest.Balancing {
				b := newBench(t, stateFile, "admin")
				return drivertest.Balancing{
					Open: b.open, Reload: b.start, Visit: b.visit, Hold: b.hold,
					Spare: b.servers[2].addr, Dead: dead(t),
				}
			})
		})
	}
}
