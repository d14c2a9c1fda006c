package memory

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Compatible compares the host's figures with the VM's needs.
func (h *Hypervisor) Compatible(ctx context.Context, def driver.Definition, source drover.Host) ([]drover.Check, error) {
	vm, err := parseDefinition(def)
	if err != nil {
		return nil, err
	}
	var checks []drover.Check
	err = h.call(ctx, "compatible", vm.Name, func() error {
		checks = h.compare(vm, source)
		return nil
	})
	return checks, err
}

// compare makes the same findings, by the same names, as a real driver.
func (h *Hypervisor) compare(vm drover.VM, source drover.Host) []drover.Check {
	check := func(name string, ok bool, detail, fix string) drover.Check {
		if ok {
			fix = ""
		}
		return drover.Check{Name: name, OK: ok, Detail: detail, Fix: fix}
	}
	var networks, files []string
	for _, nic := range vm.NICs {
		if nic.Network != "" && !slices.Contains(h.host.Networks, nic.Network) {
			networks = append(networks, nic.Network)
		}
	}
	for _, path := range vm.Files {
		if !h.files[path] {
			files = append(files, path)
		}
	}
	passthrough := strings.HasPrefix(vm.CPU, "host-")
	free := h.memoryFree()
	return []drover.Check{
		check("cpu", !passthrough || h.host.CPUModel == source.CPUModel,
			fmt.Sprintf("the VM has CPU %s of a %s; this host is a %s", vm.CPU, source.CPUModel, h.host.CPUModel),
			"give the VM a CPU model that both hosts have"),
		check("machine", slices.Contains(h.host.Machines, vm.Machine),
			fmt.Sprintf("machine type %s; this host offers %s", vm.Machine, strings.Join(h.host.Machines, ", ")),
			"give the VM a machine type that both hosts have"),
		check("qemu-version", true, fmt.Sprintf("QEMU %s here, %s at the source", h.host.HypervisorVersion, source.HypervisorVersion), ""),
		check("network", len(networks) == 0,
			fmt.Sprintf("missing here: %s", strings.Join(networks, ", ")), "make these networks here"),
		check("files", len(files) == 0,
			fmt.Sprintf("missing here: %s", strings.Join(files, ", ")), "copy these files here"),
		check("accelerator", slices.Contains(h.host.Accelerators, vm.Accelerator),
			fmt.Sprintf("the VM runs with %s; this host offers %s", vm.Accelerator, strings.Join(h.host.Accelerators, ", ")),
			"move the VM to a host that offers it"),
		check("memory", vm.MemoryBytes <= free,
			fmt.Sprintf("%s needed, %s free", vm.MemoryBytes, free), "free memory on this host or choose another"),
	}
}
