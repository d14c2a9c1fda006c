package libvirt_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/libvirt"
)

const diskFolder = "/var/lib/libvirt/images"

// TestConformance runs the suite on two real libvirtds with real QEMU guests,
// which boot no further than their firmware.
func TestConformance(t *testing.T) {
	setup := drivertest.HypervisorSetup{
		VM: drover.VM{
			VCPUs: 1, MemoryBytes: 32 * drover.MiB, Machine: machine(t), Accelerator: "tcg",
			NICs: []drover.NIC{{MAC: "52:54:00:d0:00:01", Network: "", Model: "virtio"}},
		},
		Define:     define,
		DiskFolder: diskFolder,
	}
	cache := t.TempDir()
	for i, uuid := range []string{"d2000000-0000-4000-8000-00000000000a", "d2000000-0000-4000-8000-00000000000b"} {
		h := newTestHost(t, string("ab"[i]), uuid, cache)
		setup.Hosts[i] = drivertest.HypervisorHost{
			Name:         h.name,
			Open:         h.open,
			Crash:        func(t *testing.T, d driver.Hypervisor) { crash(t, d) },
			StopManager:  h.kill,
			StartManager: h.start,
			CreateDisk: func(t *testing.T, _ drover.VM, disk drover.Disk) {
				args := []string{"create", "-q", "-f", disk.Format}
				for _, below := range disk.Backing {
					run(t, "qemu-img", "create", "-q", "-f", below.Format, h.image(below.Path), "16M")
					run(t, "qemu-io", "-c", "write -P 0x77 5M 9M", h.image(below.Path))
					args = append(args, "-u", "-b", below.Path, "-F", below.Format)
				}
				run(t, "qemu-img", append(args, h.image(disk.Path), "16M")...)
			},
			MarkDisks: func(t *testing.T, vm drover.VM) {
				for _, disk := range vm.Disks {
					run(t, "qemu-io", append(h.alone(disk), "-c", "write -P 0xa5 1M 4M", "-c", "write -P 0x5a 15M 512k")...)
				}
			},
			VerifyDisks: func(t *testing.T, vm drover.VM) {
				for _, disk := range vm.Disks {
					run(t, "qemu-io", append(h.alone(disk), "-c", "read -P 0 0 1M", "-c", "read -P 0xa5 1M 4M", "-c", "read -P 0x5a 15M 512k")...)
					for _, below := range disk.Backing {
						run(t, "qemu-img", "rebase", "-u", "-b", h.image(below.Path), "-F", below.Format, h.image(disk.Path))
						run(t, "qemu-io", "-c", "read -P 0x77 5M 9M", "-c", "read -P 0xa5 1M 4M", h.image(disk.Path))
					}
				}
			},
		}
	}
	drivertest.Hypervisor(t, setup)
	t.Run("CPUModels", func(t *testing.T) { testCPUModels(t, setup) })
}

// testCPUModels asks a real libvirt about CPU models under emulation.
func testCPUModels(t *testing.T, setup drivertest.HypervisorSetup) {
	h := setup.Hosts[0].Open(t)
	defer h.Close()
	source, err := h.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for model, want := range map[string]bool{
		"qemu64": true, "Nehalem": true, "Sapphire-Rapids": false, "No-Such-CPU": false,
	} {
		vm := setup.VM
		vm.Name, vm.UUID, vm.CPU = "cpu", "d3000000-0000-4000-8000-000000000001", model
		checks, err := h.Compatible(t.Context(), define(t, vm), source)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range checks {
			if c.Name == "cpu" && c.OK != want {
				t.Errorf("%s: %+v, want ok %v", model, c, want)
			}
		}
	}
}

// crash closes the driver's sockets under it, which is all that libvirtd sees
// of a client's death.
func crash(t *testing.T, d driver.Hypervisor) {
	if err := d.(*libvirt.Hypervisor).Close(); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
}

// machine returns what QEMU's alias q35 stands for.
func machine(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("qemu-system-x86_64", "-machine", "help").Output()
	if err != nil {
		t.Fatalf("ask QEMU for its machine types: %v; run make deps", err)
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); strings.HasPrefix(line, "q35 ") {
			return strings.TrimSuffix(fields[len(fields)-1], ")")
		}
	}
	t.Fatalf("QEMU has no machine type q35:\n%s", out)
	return ""
}

// define writes a VM as domain XML.
func define(t *testing.T, vm drover.VM) driver.Definition {
	t.Helper()
	domainType := vm.Accelerator
	if domainType == "tcg" {
		domainType = "qemu"
	}
	var probe bytes.Buffer
	fmt.Fprintf(&probe, `<drover:vm xmlns:drover=%q>`, libvirt.Namespace)
	if vm.Probe != nil {
		fmt.Fprintf(&probe, `<drover:probe tcp=%q kind=%q http=%q/>`, vm.Probe.TCP, vm.Probe.Kind, vm.Probe.HTTP)
	}
	for name, value := range vm.Labels {
		fmt.Fprintf(&probe, `<drover:label name="%s" value="`, name)
		if err := xml.EscapeText(&probe, []byte(value)); err != nil {
			t.Fatal(err)
		}
		probe.WriteString(`"/>`)
	}
	probe.WriteString(`</drover:vm>`)
	def := libvirtxml.Domain{
		Type: domainType, Name: vm.Name, UUID: vm.UUID,
		Metadata: &libvirtxml.DomainMetadata{XML: probe.String()},
		Memory:   &libvirtxml.DomainMemory{Value: uint(vm.MemoryBytes / drover.KiB), Unit: "KiB"},
		VCPU:     &libvirtxml.DomainVCPU{Value: uint(vm.VCPUs)},
		OS:       &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: vm.Machine, Type: "hvm"}},
		Features: &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}},
		Devices:  &libvirtxml.DomainDeviceList{Emulator: "/usr/bin/qemu-system-x86_64"},
	}
	if len(vm.Files) > 0 {
		def.OS.Kernel = vm.Files[0]
	}
	switch {
	case strings.HasPrefix(vm.CPU, "host-"):
		def.CPU = &libvirtxml.DomainCPU{Mode: vm.CPU}
	case vm.CPU != "":
		def.CPU = &libvirtxml.DomainCPU{Mode: "custom", Match: "exact", Model: &libvirtxml.DomainCPUModel{Value: vm.CPU}}
	}
	for _, disk := range vm.Disks {
		def.Devices.Disks = append(def.Devices.Disks, libvirtxml.DomainDisk{
			Device: "disk",
			Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: disk.Format},
			Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: disk.Path}},
			Target: &libvirtxml.DomainDiskTarget{Dev: disk.Target, Bus: "virtio"},
		})
	}
	for _, nic := range vm.NICs {
		source := &libvirtxml.DomainInterfaceSource{User: &libvirtxml.DomainInterfaceSourceUser{}}
		if nic.Network != "" {
			source = &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: nic.Network}}
		}
		def.Devices.Interfaces = append(def.Devices.Interfaces, libvirtxml.DomainInterface{
			MAC:    &libvirtxml.DomainInterfaceMAC{Address: nic.MAC},
			Source: source,
			Model:  &libvirtxml.DomainInterfaceModel{Type: nic.Model},
		})
	}
	text, err := def.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return driver.Definition(text)
}
