package libvirt

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// safeTCGMajor is the first major version of QEMU that migrates guests it
// emulates without corrupting them: of 15 live moves with 7.2 five ended in
// crashed guests, of 20 with 10.0.2 none.
const safeTCGMajor = 10

// The results of libvirt's comparison of CPUs (virCPUCompareResult); larger
// values mean that the host has what is needed, or more.
const cpuIncompatible = 0

// needs is everything that the checks look at.
type needs struct {
	def    *libvirtxml.Domain
	vm     drover.VM
	source drover.Host
	here   drover.Host
	// arch is what this host offers guests of the VM's architecture.
	arch     *libvirtxml.CapsGuestArch
	archName string
	// cpu is the result of libvirt's comparison, cpuErr why there is none.
	cpu    int32
	cpuErr error
}

// Compatible checks cpu, machine, qemu-version, network, files, accelerator
// and memory.
func (h *Hypervisor) Compatible(ctx context.Context, def driver.Definition, source drover.Host) ([]drover.Check, error) {
	parsed, err := parseDomain(string(def))
	if err != nil {
		return nil, drover.E(drover.Invalid, "check compatibility", err)
	}
	op := "check compatibility with " + parsed.Name
	here, err := h.Host(ctx)
	if err != nil {
		return nil, err
	}
	n := needs{def: parsed, vm: vmOf(parsed), source: source, here: here, archName: here.Arch}
	if parsed.OS != nil && parsed.OS.Type != nil && parsed.OS.Type.Arch != "" {
		n.archName = parsed.OS.Type.Arch
	}
	n, err = ask(ctx, h, op, func(rpc *golibvirt.Libvirt) (needs, error) {
		caps, err := capabilities(rpc)
		if err != nil {
			return n, err
		}
		if n.arch = guestArch(caps, n.archName); n.arch != nil {
			n.cpu, n.cpuErr = compareCPU(rpc, n)
			if interrupted(n.cpuErr) {
				return n, n.cpuErr
			}
		}
		return n, nil
	})
	if err != nil {
		return nil, err
	}
	return []drover.Check{
		n.checkCPU(), n.checkMachine(), n.checkVersion(), n.checkNetwork(),
		n.checkFiles(), n.checkAccelerator(), n.checkMemory(),
	}, nil
}

func passed(name, format string, args ...any) drover.Check {
	return drover.Check{Name: name, OK: true, Detail: fmt.Sprintf(format, args...)}
}

func failed(name, fix, format string, args ...any) drover.Check {
	return drover.Check{Name: name, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

func warned(name, fix, format string, args ...any) drover.Check {
	check := failed(name, fix, format, args...)
	check.Warning = true
	return check
}

// compareCPU asks libvirt whether this host's QEMU can give the guest the CPU
// that its definition names, under the definition's own accelerator.
func compareCPU(rpc *golibvirt.Libvirt, n needs) (int32, error) {
	cpu := n.def.CPU
	if !namesModel(cpu) {
		return 0, nil
	}
	bare := *cpu
	bare.XMLName = xml.Name{Local: "cpu"}
	bare.Topology, bare.Cache, bare.Numa = nil, nil, nil // the guest's shape, no feature of the host
	text, err := bare.Marshal()
	if err != nil {
		return 0, err
	}
	return rpc.ConnectCompareHypervisorCPU(nil, optional(n.archName), optional(canonicalMachine(n.arch, n.vm.Machine)),
		optional(n.def.Type), text, 0)
}

// namesModel reports whether a definition names a CPU model, which can be
// compared, in place of a mode, which means something else on every host.
func namesModel(cpu *libvirtxml.DomainCPU) bool {
	return cpu != nil && cpu.Model != nil && cpu.Model.Value != "" && (cpu.Mode == "" || cpu.Mode == "custom")
}

func optional(s string) golibvirt.OptString {
	if s == "" {
		return nil
	}
	return golibvirt.OptString{s}
}

func (n *needs) checkCPU() drover.Check {
	const name = "cpu"
	if n.arch == nil {
		return failed(name, "move the VM to a host of its own architecture",
			"the VM is %s; this host is %s and runs no such guests", n.archName, n.here.Arch)
	}
	cpu := n.def.CPU
	switch {
	case namesModel(cpu) && n.cpuErr != nil:
		return failed(name, "use a CPU model that this host's QEMU knows (virsh domcapabilities lists them)",
			"this host cannot judge CPU model %s: %v", cpu.Model.Value, n.cpuErr)
	case namesModel(cpu) && n.cpu <= cpuIncompatible:
		return failed(name, "give the VM a CPU model that both hosts have, or move it to a host with that CPU",
			"CPU model %s with the features of the VM's definition cannot be had on this host (%s)", cpu.Model.Value, n.here.CPUModel)
	case namesModel(cpu):
		return passed(name, "CPU model %s can be had here", cpu.Model.Value)
	case cpu == nil || cpu.Mode == "" || cpu.Mode == "custom":
		return passed(name, "the VM takes QEMU's default CPU model, which every host of its architecture has")
	case cpu.Mode == "maximum" && n.vm.Accelerator == "tcg":
		if n.source.HypervisorVersion == n.here.HypervisorVersion {
			return passed(name, "all that QEMU %s emulates, on both hosts", n.here.HypervisorVersion)
		}
		return failed(name, "bring both hosts to the same QEMU, or give the VM a CPU model by name",
			"the VM has every CPU feature that QEMU %s emulates; this host has QEMU %s", n.source.HypervisorVersion, n.here.HypervisorVersion)
	case n.source.CPUModel == n.here.CPUModel:
		return passed(name, "%s: %s on both hosts", cpu.Mode, n.here.CPUModel)
	case cpu.Mode == "host-model":
		return warned(name, "give the VM a CPU model by name if libvirt refuses the move",
			"host-model: the VM has a %s from its source, this host is a %s; libvirt judges the running VM's features at the move's start",
			n.source.CPUModel, n.here.CPUModel)
	default:
		return failed(name, "give the VM a CPU model by name, or move it to a host with the same CPU",
			"%s: the VM sees its source's %s, this host is a %s", cpu.Mode, n.source.CPUModel, n.here.CPUModel)
	}
}

func (n *needs) checkMachine() drover.Check {
	const name = "machine"
	machine := n.vm.Machine
	if machine == "" || n.arch == nil {
		return failed(name, "define the VM with a machine type and architecture of this host",
			"machine type %q of architecture %s is not offered here", machine, n.archName)
	}
	canonical := canonicalMachine(n.arch, machine)
	offered := machinesOf(n.arch)
	switch {
	case !slices.Contains(offered, canonical):
		return failed(name, "install a QEMU here that offers it, or give the VM a machine type that both hosts have",
			"machine type %s is not offered by QEMU %s here", machine, n.here.HypervisorVersion)
	case canonical != machine && len(n.source.Machines) > 0 && !slices.Contains(n.source.Machines, canonical):
		return failed(name, "name the versioned machine type in the VM's definition",
			"machine type %s means %s here, which its source does not have", machine, canonical)
	}
	return passed(name, "%s is offered here", canonical)
}

func (n *needs) checkVersion() drover.Check {
	const name = "qemu-version"
	here, err := parseVersion(n.here.HypervisorVersion)
	if err != nil {
		return failed(name, "install QEMU from a known package", "this host's QEMU version is %q", n.here.HypervisorVersion)
	}
	source, sourceErr := parseVersion(n.source.HypervisorVersion)
	if n.vm.Accelerator == "tcg" {
		for _, side := range []struct {
			where string
			known bool
			v     version
		}{{"this host", true, here}, {"the source", sourceErr == nil, source}} {
			if side.known && side.v.major < safeTCGMajor {
				return failed(name, fmt.Sprintf("bring %s to QEMU %d or newer (Debian 12: bookworm-backports), or move the VM cold", side.where, safeTCGMajor),
					"%s has QEMU %s, which corrupts emulated (TCG) guests on a live move", side.where, side.v)
			}
		}
	}
	if need, ok := machineVersion(n.vm.Machine); ok && here.older(need) {
		return failed(name, fmt.Sprintf("bring this host to QEMU %d.%d or newer", need.major, need.minor),
			"machine type %s needs QEMU %d.%d, this host has %s", n.vm.Machine, need.major, need.minor, here)
	}
	if sourceErr == nil && here.older(source) {
		return warned(name, "bring this host to the source's QEMU version if the move fails",
			"this host's QEMU %s is older than the source's %s; the machine type allows it", here, source)
	}
	return passed(name, "QEMU %s here, %s at the source", here, n.source.HypervisorVersion)
}

func (n *needs) checkNetwork() drover.Check {
	const name = "network"
	var missing []string
	for _, nic := range n.vm.NICs {
		if nic.Network != "" && !slices.Contains(n.here.Networks, nic.Network) && !slices.Contains(missing, nic.Network) {
			missing = append(missing, nic.Network)
		}
	}
	if len(missing) > 0 {
		return failed(name, "make these bridges or libvirt networks here, on the same segment as at the source",
			"the VM's NICs need %s; this host has %s", strings.Join(missing, ", "), listOrNone(n.here.Networks))
	}
	return passed(name, "all networks of %d NICs are here", len(n.vm.NICs))
}

func (n *needs) checkFiles() drover.Check {
	const name = "files"
	nvram := ""
	if n.def.OS != nil && n.def.OS.NVRam != nil {
		nvram = n.def.OS.NVRam.NVRam
	}
	var missing []string
	for _, path := range n.vm.Files {
		// Libvirt makes the NVRAM file from its template, and a migration
		// carries the content.
		if path == nvram {
			continue
		}
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			missing = append(missing, path)
		}
	}
	if len(missing) > 0 {
		return failed(name, "copy these files here, to the same path", "missing here: %s", strings.Join(missing, ", "))
	}
	return passed(name, "kernel, initrd and firmware: %d files, all here", len(n.vm.Files))
}

func (n *needs) checkAccelerator() drover.Check {
	const name = "accelerator"
	if !slices.Contains(n.here.Accelerators, n.vm.Accelerator) {
		return failed(name, "turn on virtualization in this host's firmware and load its kvm module, or move the VM elsewhere",
			"the VM runs with %s; this host offers %s", n.vm.Accelerator, listOrNone(n.here.Accelerators))
	}
	return passed(name, "%s is offered here", n.vm.Accelerator)
}

func (n *needs) checkMemory() drover.Check {
	const name = "memory"
	if n.here.MemoryFreeBytes < n.vm.MemoryBytes {
		return failed(name, "free memory on this host or choose another",
			"the VM has %s of memory; this host has %s free of %s", n.vm.MemoryBytes, n.here.MemoryFreeBytes, n.here.MemoryBytes)
	}
	return passed(name, "%s needed, %s free", n.vm.MemoryBytes, n.here.MemoryFreeBytes)
}

func listOrNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// version is a version of QEMU.
type version struct{ major, minor, micro int }

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.micro) }

func (v version) older(than version) bool {
	if v.major != than.major {
		return v.major < than.major
	}
	if v.minor != than.minor {
		return v.minor < than.minor
	}
	return v.micro < than.micro
}

func parseVersion(text string) (version, error) {
	parts := strings.SplitN(text, ".", 3)
	numbers := [3]int{}
	for i, part := range parts {
		n, err := strconv.Atoi(part)
		if err != nil {
			return version{}, fmt.Errorf("version %q: want numbers separated by dots", text)
		}
		numbers[i] = n
	}
	return version{numbers[0], numbers[1], numbers[2]}, nil
}

// machineVersion reads the version out of a versioned machine type:
// "pc-q35-9.2" needs QEMU 9.2.
func machineVersion(machine string) (version, bool) {
	dash := strings.LastIndexByte(machine, '-')
	if dash < 0 {
		return version{}, false
	}
	v, err := parseVersion(machine[dash+1:])
	return v, err == nil && strings.Contains(machine[dash+1:], ".")
}
