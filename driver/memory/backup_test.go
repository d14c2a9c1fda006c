package memory_test

import (
	"bytes"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

func TestBackups(t *testing.T) {
	fleet, hosts := newFleet()
	volumes := memory.NewVolumes(memory.VolumesConfig{Dirs: []string{"/images"}})
	fleet.AttachVolumes("a", volumes)
	drivertest.Backups(t, drivertest.BackupSetup{
		HypervisorHost: drivertest.HypervisorHost{
			Name:         "a",
			Open:         func(*testing.T) driver.Hypervisor { return hosts[0] },
			Crash:        func(*testing.T, driver.Hypervisor) { fleet.Crash("a") },
			StopManager:  func(*testing.T) { fleet.StopManager("a") },
			StartManager: func(*testing.T) { fleet.StartManager("a") },
			CreateDisk: func(t *testing.T, _ drover.VM, d drover.Disk) {
				must(t, volumes.Create(t.Context(), driver.VolumeSpec{Path: d.Path, Format: d.Format, VirtualBytes: d.VirtualBytes}))
			},
		},
		VM:         drover.VM{VCPUs: 1, MemoryBytes: 64 * drover.MiB, Machine: "pc-q35-10.0", Accelerator: "tcg"},
		Define:     func(_ *testing.T, vm drover.VM) driver.Definition { return memory.NewDefinition(vm) },
		DiskFolder: "/images",
		WriteGuest: func(t *testing.T, vm drover.VM, target string, off, n int64, value byte) {
			must(t, fleet.WriteDisk("a", vm.Name, target, off, bytes.Repeat([]byte{value}, int(n))))
		},
		KillGuest: func(_ *testing.T, vm drover.VM) { fleet.Kill("a", vm.Name) },
		Volumes:   volumes,
		Path:      func(d drover.Disk) string { return d.Path },
		Scratches: func(*testing.T) int { return 0 },
	})
	for _, violation := range fleet.Violations() {
		t.Error(violation)
	}
}
