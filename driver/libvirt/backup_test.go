package libvirt_test

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/disk"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/libvirt"
)

// TestBackups runs the suite on a real libvirtd with real QEMU guests, which
// boot no further than their firmware: what they write is written for them, by
// QEMU through the guest's own device.
func TestBackups(t *testing.T) {
	h := newTestHost(t, "bak", "d2000000-0000-4000-8000-00000000000d", t.TempDir())
	images := filepath.Join(h.folder, "lib/images")
	store, err := disk.New(slog.New(slog.DiscardHandler), disk.Config{Dirs: []string{images}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	setup := drivertest.BackupSetup{
		HypervisorHost: drivertest.HypervisorHost{
			Name: h.name, Open: h.open, Crash: func(t *testing.T, d driver.Hypervisor) { crash(t, d) },
			StopManager: h.kill, StartManager: h.start,
			CreateDisk: func(t *testing.T, _ drover.VM, d drover.Disk) {
				run(t, "qemu-img", "create", "-q", "-f", d.Format, h.image(d.Path), strconv.FormatInt(int64(d.VirtualBytes), 10))
			},
		},
		VM:         drover.VM{VCPUs: 1, MemoryBytes: 32 * drover.MiB, Machine: machine(t), Accelerator: "tcg"},
		Define:     define,
		DiskFolder: diskFolder,
		WriteGuest: func(t *testing.T, vm drover.VM, target string, off, n int64, value byte) {
			i := slices.IndexFunc(vm.Disks, func(d drover.Disk) bool { return d.Target == target })
			h.monitor(t, vm.Name, fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "write -P %d %d %d"`, i, value, off, n))
		},
		KillGuest: func(t *testing.T, vm drover.VM) { h.killGuest(t, vm.Name) },
		Volumes:   store,
		Path:      func(d drover.Disk) string { return h.image(d.Path) },
		Scratches: func(t *testing.T) int {
			found, err := filepath.Glob(filepath.Join(images, ".drover-*"))
			if err != nil {
				t.Fatal(err)
			}
			return len(found)
		},
	}
	drivertest.Backups(t, setup)
	t.Run("Foreign", func(t *testing.T) { testForeignCheckpoint(t, h, setup) })
}

// testForeignCheckpoint: another program's checkpoint is not listed, is warned
// of, and stays.
func testForeignCheckpoint(t *testing.T, h *testHost, setup drivertest.BackupSetup) {
	d := h.open(t)
	defer d.Close()
	vm := setup.VM
	vm.Name, vm.UUID = "foreign", "d4000000-0000-4000-8000-0000000000ff"
	vm.Disks = []drover.Disk{{Target: "vda", Path: diskFolder + "/foreign.qcow2", Format: "qcow2", VirtualBytes: drover.MiB}}
	setup.CreateDisk(t, vm, vm.Disks[0])
	if _, err := d.Define(t.Context(), define(t, vm)); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), vm.Name); err != nil {
		t.Fatal(err)
	}
	rpc, dom := h.rpc(t, vm.Name)
	if _, err := rpc.DomainCheckpointCreateXML(dom, `<domaincheckpoint><name>nightly</name></domaincheckpoint>`, 0); err != nil {
		t.Fatal(err)
	}
	owner := driver.MoveOwner("m-7")
	b, err := d.BeginBackup(t.Context(), vm.Name, driver.BackupSpec{
		Checkpoint: driver.Checkpoint{Owner: owner, Number: 1}, Socket: filepath.Join(h.folder, "run/b"),
		Disks: []driver.BackupDisk{{Target: "vda", Scratch: diskFolder + "/" + driver.ScratchName(owner, "vda")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	checks, err := d.CheckBackup(t.Context(), vm.Name)
	if err != nil || !slices.ContainsFunc(checks, func(c drover.Check) bool { return c.Name == "checkpoints" && c.Warning }) {
		t.Errorf("checks %+v, %v: want a warning about the other program's", checks, err)
	}
	if list, err := d.Checkpoints(t.Context(), vm.Name); err != nil || len(list) != 1 {
		t.Errorf("checkpoints %v, %v: want one's own", list, err)
	}
	if err := d.RemoveCheckpoint(t.Context(), vm.Name, driver.Checkpoint{Owner: owner, Number: 1}, []string{"vda"}); err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.DomainCheckpointLookupByName(dom, "nightly", 0); err != nil {
		t.Errorf("the other program's checkpoint: %v", err)
	}
	if err := d.Destroy(t.Context(), vm.Name); err != nil {
		t.Fatal(err)
	}
	if err := d.Undefine(t.Context(), vm.Name); err != nil {
		t.Fatal(err)
	}
}

// rpc is a connection of the test's own to the host's libvirtd.
func (h *testHost) rpc(t *testing.T, vm string) (*golibvirt.Libvirt, golibvirt.Domain) {
	t.Helper()
	sock, err := net.Dial("unix", h.socket())
	if err != nil {
		t.Fatal(err)
	}
	rpc := golibvirt.NewWithDialer(dialers.NewAlreadyConnected(sock))
	if err := rpc.ConnectToURI(golibvirt.QEMUSystem); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rpc.Disconnect() })
	dom, err := rpc.DomainLookupByName(vm)
	if err != nil {
		t.Fatal(err)
	}
	return rpc, dom
}

// monitor has QEMU's human monitor carry out a command that says nothing when
// all is well.
func (h *testHost) monitor(t *testing.T, vm, command string) {
	t.Helper()
	rpc, dom := h.rpc(t, vm)
	out, err := rpc.QEMUDomainMonitorCommand(dom, command, 1)
	if err != nil || strings.TrimSpace(out) != "" {
		t.Fatalf("monitor of %s: %q: %q, %v", vm, command, out, err)
	}
}

// killGuest kills a VM's QEMU, found by its name in the namespace of this host.
func (h *testHost) killGuest(t *testing.T, vm string) {
	t.Helper()
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", h.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		line, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(line), "guest="+vm+",") {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(filepath.Dir(path), "ns/ipc")); err != nil || ns != own {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for over := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil && time.Now().Before(over); {
			time.Sleep(10 * time.Millisecond)
		}
		return
	}
	t.Fatalf("no QEMU of %s runs on host %s", vm, h.name)
}

var _ driver.Backuper = (*libvirt.Hypervisor)(nil)
