package libvirt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/vishvananda/netlink"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
)

// dumpRetries is how often an interrupted netlink dump is begun again; it is
// interrupted only while interfaces are being changed.
const dumpRetries = 5

// Host observes the machine. Networks are libvirt's active ones and the
// bridges of this process's network namespace, since a NIC may be on either.
// Memory is the kernel's: all, and what can be had without swapping.
func (h *Hypervisor) Host(ctx context.Context) (drover.Host, error) {
	const op = "observe host"
	host, err := ask(ctx, h, op, observeHost)
	if err != nil {
		return drover.Host{}, err
	}
	if host.MemoryBytes, host.MemoryFreeBytes, err = memory(); err != nil {
		return drover.Host{}, drover.E(drover.Internal, op, err)
	}
	bridges, err := bridges()
	if err != nil {
		return drover.Host{}, drover.E(drover.Internal, op, err)
	}
	for _, name := range bridges {
		if !slices.Contains(host.Networks, name) {
			host.Networks = append(host.Networks, name)
		}
	}
	slices.Sort(host.Networks)
	return host, nil
}

// observeHost is what libvirt knows of the machine.
func observeHost(rpc *golibvirt.Libvirt) (drover.Host, error) {
	caps, err := capabilities(rpc)
	if err != nil {
		return drover.Host{}, err
	}
	host := drover.Host{UUID: caps.Host.UUID}
	if caps.Host.CPU != nil {
		host.Arch = caps.Host.CPU.Arch
		host.CPUModel = caps.Host.CPU.Model
	}
	arch := guestArch(caps, host.Arch)
	if arch == nil {
		return drover.Host{}, fmt.Errorf("QEMU for %s guests is not installed", host.Arch)
	}
	host.Accelerators = acceleratorsOf(arch)
	host.Machines = machinesOf(arch)
	_, _, cpus, _, _, _, _, _, err := rpc.NodeGetInfo()
	if err != nil {
		return drover.Host{}, err
	}
	host.CPUs = int(cpus)
	qemu, err := rpc.ConnectGetVersion()
	if err != nil {
		return drover.Host{}, err
	}
	manager, err := rpc.ConnectGetLibVersion()
	if err != nil {
		return drover.Host{}, err
	}
	host.HypervisorVersion, host.ManagerVersion = versionText(qemu), versionText(manager)
	host.Networks, err = virtualNetworks(rpc)
	return host, err
}

func capabilities(rpc *golibvirt.Libvirt) (*libvirtxml.Caps, error) {
	text, err := rpc.ConnectGetCapabilities()
	if err != nil {
		return nil, err
	}
	caps := new(libvirtxml.Caps)
	if err := caps.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("capabilities XML: %w", err)
	}
	return caps, nil
}

// guestArch returns what is offered to guests of an architecture, nil if
// nothing is.
func guestArch(caps *libvirtxml.Caps, name string) *libvirtxml.CapsGuestArch {
	for i := range caps.Guests {
		if caps.Guests[i].OSType == "hvm" && caps.Guests[i].Arch.Name == name {
			return &caps.Guests[i].Arch
		}
	}
	return nil
}

func acceleratorsOf(arch *libvirtxml.CapsGuestArch) []string {
	var names []string
	for _, domain := range arch.Domains {
		names = append(names, acceleratorOf(domain.Type))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// machinesOf returns the canonical machine types.
func machinesOf(arch *libvirtxml.CapsGuestArch) []string {
	var names []string
	add := func(machines []libvirtxml.CapsGuestMachine) {
		for _, machine := range machines {
			if machine.Canonical == "" {
				names = append(names, machine.Name)
			}
		}
	}
	add(arch.Machines)
	for _, domain := range arch.Domains {
		add(domain.Machines)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// canonicalMachine resolves an alias ("q35") to what it means here.
func canonicalMachine(arch *libvirtxml.CapsGuestArch, name string) string {
	lists := [][]libvirtxml.CapsGuestMachine{arch.Machines}
	for _, domain := range arch.Domains {
		lists = append(lists, domain.Machines)
	}
	for _, machines := range lists {
		for _, machine := range machines {
			if machine.Name == name && machine.Canonical != "" {
				return machine.Canonical
			}
		}
	}
	return name
}

// virtualNetworks returns libvirt's active networks; a host without the
// network driver has none.
func virtualNetworks(rpc *golibvirt.Libvirt) ([]string, error) {
	networks, _, err := rpc.ConnectListAllNetworks(1, golibvirt.ConnectListNetworksActive)
	if hasCode(err, golibvirt.ErrNoSupport) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(networks))
	for _, network := range networks {
		names = append(names, network.Name)
	}
	return names, nil
}

// bridges returns the bridges of this network namespace.
func bridges() ([]string, error) {
	var links []netlink.Link
	var err error
	for range dumpRetries {
		if links, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var names []string
	for _, link := range links {
		if link.Type() == "bridge" || link.Type() == "openvswitch" {
			names = append(names, link.Attrs().Name)
		}
	}
	return names, nil
}

// memory returns MemTotal and MemAvailable of /proc/meminfo. Libvirt's own
// figures are of no use here: its total is the NUMA nodes', which on some
// virtual machines is a part only, and as free it counts no page that can be
// reclaimed, or all of the page cache with the guests in shared memory in it.
func memory() (total, available drover.Bytes, err error) {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		var into *drover.Bytes
		switch fields[0] {
		case "MemTotal:":
			into = &total
		case "MemAvailable:":
			into = &available
		default:
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/meminfo: %w", err)
		}
		*into = drover.Bytes(kib) * drover.KiB
	}
	if total == 0 || available == 0 {
		return 0, 0, errors.Join(errors.New("/proc/meminfo is without MemTotal or MemAvailable"), lines.Err())
	}
	return total, available, nil
}

// versionText prints libvirt's packed version numbers: major × 1,000,000 +
// minor × 1,000 + release.
func versionText(v uint64) string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1_000%1_000, v%1_000)
}
