package dhcp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
)

// keaServers is a kea-dhcp4 and a kea-dhcp6 of a test's own.
type keaServers struct {
	folder    string
	processes map[string]*keaProcess
}

type keaProcess struct {
	cmd      *exec.Cmd
	finished chan struct{}
}

func (k *keaServers) socket(program string) string { return filepath.Join(k.folder, program+".sock") }

// newKeaServers starts Kea on interfaces that are named as the segments, whose
// other ends are the clients'.
func newKeaServers(t *testing.T, c clients, lifetime int) *keaServers {
	t.Helper()
	folder, err := os.MkdirTemp("", "drvkea") // short, for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	k := &keaServers{folder: folder, processes: make(map[string]*keaProcess)}
	t.Cleanup(func() {
		k.stop()
		if t.Failed() {
			for _, program := range []string{"kea-dhcp4", "kea-dhcp6"} {
				text, _ := os.ReadFile(filepath.Join(folder, program+".log"))
				t.Logf("%s:\n%s", program, text[max(0, len(text)-3000):])
			}
		}
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	for segment, s := range testSegments {
		link := c.plug(t, segment, segment)
		for _, p := range []netip.Prefix{s.Subnet4, s.Subnet6} {
			address, err := netlink.ParseAddr(netip.PrefixFrom(p.Addr().Next(), p.Bits()).String())
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrAdd(link, address); err != nil {
				t.Fatal(err)
			}
		}
	}
	k.configure(t, 4, lifetime)
	k.configure(t, 6, lifetime)
	k.start(t)
	return k
}

// configure writes one server's configuration.
func (k *keaServers) configure(t *testing.T, family, lifetime int) {
	t.Helper()
	program := fmt.Sprintf("kea-dhcp%d", family)
	var subnets []map[string]any
	for i, segment := range []string{"blue", "green"} {
		s, pool := testSegments[segment], testPool(segment, drivertest.LeasesPool)
		sub := map[string]any{"id": i + 1, "interface": segment}
		if family == 4 {
			sub["subnet"], pool = s.Subnet4.String(), pool[:drivertest.LeasesPool]
			if segment == "blue" {
				sub["reservations"] = []map[string]any{{
					"hw-address": testStatic.MAC, "ip-address": testStatic.Addresses[0].String(), "hostname": testStatic.Hostname,
				}}
			}
		} else {
			sub["subnet"], pool = s.Subnet6.String(), pool[drivertest.LeasesPool:]
		}
		sub["pools"] = []map[string]any{{"pool": fmt.Sprintf("%v - %v", pool[0], pool[len(pool)-1])}}
		subnets = append(subnets, sub)
	}
	server := map[string]any{
		"interfaces-config":             map[string]any{"interfaces": []string{"blue", "green"}},
		"control-socket":                map[string]any{"socket-type": "unix", "socket-name": k.socket(program)},
		"lease-database":                map[string]any{"type": "memfile", "persist": true, "name": filepath.Join(k.folder, program+".csv"), "lfc-interval": 0},
		"hooks-libraries":               []map[string]any{{"library": "/usr/lib/x86_64-linux-gnu/kea/hooks/libdhcp_lease_cmds.so"}},
		"expired-leases-processing":     map[string]any{"reclaim-timer-wait-time": 1},
		"valid-lifetime":                lifetime,
		fmt.Sprintf("subnet%d", family): subnets,
	}
	if family == 6 {
		server["data-directory"] = k.folder
		server["preferred-lifetime"] = lifetime
	}
	raw, err := json.Marshal(map[string]any{fmt.Sprintf("Dhcp%d", family): server})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.folder, program+".conf"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// start starts both servers and returns when they answer.
func (k *keaServers) start(t *testing.T) {
	t.Helper()
	for _, program := range []string{"kea-dhcp4", "kea-dhcp6"} {
		_ = os.Remove(k.socket(program))
		out, err := os.OpenFile(filepath.Join(k.folder, program+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd := exec.Command(program, "-c", filepath.Join(k.folder, program+".conf"))
		cmd.Env = append(os.Environ(), "KEA_PIDFILE_DIR="+k.folder, "KEA_LOCKFILE_DIR="+k.folder, "KEA_LOGGER_DESTINATION=stderr")
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p := &keaProcess{cmd, make(chan struct{})}
		go func() { _ = cmd.Wait(); close(p.finished) }()
		k.processes[program] = p
	}
	for program, p := range k.processes {
		for deadline := time.Now().Add(20 * time.Second); ; {
			if _, err := command(t.Context(), k.socket(program), "list-commands", nil, nil); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("%s does not answer: %v", program, err)
			}
			select {
			case <-p.finished:
				t.Fatalf("%s has ended", program)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// stop kills both servers.
func (k *keaServers) stop() {
	for _, p := range k.processes {
		_ = p.cmd.Process.Kill()
		<-p.finished
	}
	for _, program := range []string{"kea-dhcp4", "kea-dhcp6"} {
		_ = os.Remove(filepath.Join(k.folder, program+"."+program+".pid"))
	}
}

func (k *keaServers) open(t *testing.T) *Kea {
	t.Helper()
	d, err := NewKea(logTo(t), KeaConfig{Socket4: k.socket("kea-dhcp4"), Socket6: k.socket("kea-dhcp6"), Segments: testSegments})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestKea runs the suite on real Kea servers with real clients.
func TestKea(t *testing.T) {
	drivertest.Leases(t, func(t *testing.T) drivertest.LeasesService {
		c := newClients(t)
		k := newKeaServers(t, c, 3600)
		return drivertest.LeasesService{
			Pool:   testPool("blue", drivertest.LeasesPool),
			Static: testStatic,
			Open:   func(t *testing.T) driver.Leases { return k.open(t) },
			Ask:    func(t *testing.T, segment, mac string) []netip.Addr { return c.ask(t, segment, mac) },
			Stop:   func(*testing.T) { k.stop() },
			Start:  k.start,
		}
	})
}
