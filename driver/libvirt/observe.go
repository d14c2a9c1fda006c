package libvirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
)

// Namespace is the XML namespace of Drover's element in a domain's metadata:
//
//	<drover:vm xmlns:drover="https://drover-vm.org/libvirt/1">
//	  <drover:probe tcp="192.0.2.7:7" kind="sheep" http="http://192.0.2.7/"/>
//	  <drover:label name="role" value="database"/>
//	  <drover:requirement name="keep-sessions" value="yes"/>
//	</drover:vm>
const Namespace = "https://drover-vm.org/libvirt/1"

// chainLimit bounds a backing chain; libvirt itself allows 200.
const chainLimit = 200

// List observes every VM.
func (h *Hypervisor) List(ctx context.Context) ([]drover.VM, error) {
	const op = "list vms"
	domains, err := ask(ctx, h, op, func(rpc *golibvirt.Libvirt) ([]golibvirt.Domain, error) {
		domains, _, err := rpc.ConnectListAllDomains(1, golibvirt.ConnectListDomainsActive|golibvirt.ConnectListDomainsInactive)
		return domains, err
	})
	if err != nil {
		return nil, err
	}
	vms := make([]drover.VM, 0, len(domains))
	for _, dom := range domains {
		vm, err := ask(ctx, h, op, func(rpc *golibvirt.Libvirt) (drover.VM, error) { return h.observe(rpc, dom) })
		if notFound(err) {
			continue // it went away since the list was made
		}
		if err != nil {
			return nil, err
		}
		vms = append(vms, vm)
	}
	return vms, nil
}

// VM observes one.
func (h *Hypervisor) VM(ctx context.Context, name string) (drover.VM, error) {
	return askDomain(ctx, h, "observe", name, h.observe)
}

// observe reads one domain. Disk sizes are filled only while it runs: QEMU
// knows them then; the images of a VM that is off are the Volumes' to read.
func (h *Hypervisor) observe(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (drover.VM, error) {
	state, reason, err := rpc.DomainGetState(dom, 0)
	if err != nil {
		return drover.VM{}, err
	}
	incoming, err := isIncoming(rpc, dom)
	if err != nil {
		return drover.VM{}, err
	}
	if incoming {
		return h.observeIncoming(rpc, dom)
	}
	text, err := rpc.DomainGetXMLDesc(dom, 0)
	if err != nil {
		return drover.VM{}, err
	}
	def, err := parseDomain(text)
	if err != nil {
		return drover.VM{}, err
	}
	persistent, err := rpc.DomainIsPersistent(dom)
	if err != nil {
		return drover.VM{}, err
	}
	vm := vmOf(def)
	vm.State = stateOf(golibvirt.DomainState(state), reason)
	vm.Persistent = persistent != 0
	if vm.Persistent {
		autostart, err := rpc.DomainGetAutostart(dom)
		if err != nil {
			return drover.VM{}, err
		}
		vm.Autostart = autostart != 0
	}
	if vm.State != drover.VMRunning && vm.State != drover.VMPaused {
		return vm, nil
	}
	for i := range vm.Disks {
		allocated, capacity, _, err := rpc.DomainGetBlockInfo(dom, vm.Disks[i].Target, 0)
		if err != nil {
			// An empty drive, or a VM that has just stopped: the figures stay
			// unknown, which callers have to expect anyway.
			continue
		}
		vm.Disks[i].VirtualBytes = drover.Bytes(capacity)
		vm.Disks[i].AllocatedBytes = drover.Bytes(allocated)
	}
	return vm, nil
}

// observeIncoming reads a domain that is being received. Libvirt answers no
// question about its definition until Finish (the question waits 30 s for the
// migration's lock and fails), so that has to come from Prepare.
func (h *Hypervisor) observeIncoming(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (drover.VM, error) {
	_, memory, _, vcpus, _, err := rpc.DomainGetInfo(dom)
	if err != nil {
		return drover.VM{}, err
	}
	vm := drover.VM{
		Name: dom.Name, UUID: formatUUID(dom.UUID),
		MemoryBytes: drover.Bytes(memory) * drover.KiB, VCPUs: int(vcpus),
	}
	h.mu.Lock()
	in, ours := h.migrations[dom.Name].(*incoming)
	h.mu.Unlock()
	if ours {
		vm = in.vm
	}
	vm.State, vm.Persistent = drover.VMPaused, false
	return vm, nil
}

func stateOf(state golibvirt.DomainState, reason int32) drover.VMState {
	switch state {
	case golibvirt.DomainRunning, golibvirt.DomainBlocked, golibvirt.DomainShutdown:
		return drover.VMRunning // being shut down is still running
	case golibvirt.DomainPaused, golibvirt.DomainPmsuspended:
		return drover.VMPaused
	case golibvirt.DomainCrashed:
		return drover.VMCrashed
	case golibvirt.DomainShutoff:
		if golibvirt.DomainShutoffReason(reason) == golibvirt.DomainShutoffCrashed {
			return drover.VMCrashed
		}
	}
	return drover.VMOff
}

// parseDomain reads domain XML as far as Drover needs it.
func parseDomain(text string) (*libvirtxml.Domain, error) {
	def := new(libvirtxml.Domain)
	if err := def.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	if def.Name == "" {
		return nil, errors.New("domain XML: it has no name")
	}
	return def, nil
}

// vmOf translates a definition; state, persistence and sizes are not in it.
func vmOf(def *libvirtxml.Domain) drover.VM {
	vm := drover.VM{
		Name:        def.Name,
		UUID:        def.UUID,
		MemoryBytes: memoryOf(def.Memory),
		Accelerator: acceleratorOf(def.Type),
		CPU:         cpuOf(def.CPU),
		Files:       filesOf(def.OS),
	}
	if def.VCPU != nil {
		vm.VCPUs = int(def.VCPU.Value)
	}
	if def.OS != nil && def.OS.Type != nil {
		vm.Machine = def.OS.Type.Machine
	}
	if def.Metadata != nil {
		metadataOf(&vm, def.Metadata.XML)
	}
	if def.Devices == nil {
		return vm
	}
	for i := range def.Devices.Disks {
		if disk, ok := diskOf(&def.Devices.Disks[i]); ok {
			vm.Disks = append(vm.Disks, disk)
		}
	}
	for i := range def.Devices.Interfaces {
		vm.NICs = append(vm.NICs, nicOf(&def.Devices.Interfaces[i]))
	}
	return vm
}

// memoryOf converts to bytes; libvirt's default unit is KiB.
func memoryOf(memory *libvirtxml.DomainMemory) drover.Bytes {
	if memory == nil {
		return 0
	}
	unit := drover.KiB
	switch strings.ToLower(memory.Unit) {
	case "b", "bytes":
		unit = 1
	case "kb":
		unit = 1e3
	case "mb":
		unit = 1e6
	case "m", "mib":
		unit = drover.MiB
	case "gb":
		unit = 1e9
	case "g", "gib":
		unit = drover.GiB
	case "tb":
		unit = 1e12
	case "t", "tib":
		unit = drover.TiB
	}
	return drover.Bytes(memory.Value) * unit
}

// acceleratorOf: libvirt calls QEMU without an accelerator "qemu".
func acceleratorOf(domainType string) string {
	if domainType == "qemu" {
		return "tcg"
	}
	return domainType
}

func cpuOf(cpu *libvirtxml.DomainCPU) string {
	switch {
	case cpu == nil:
		return ""
	case cpu.Model != nil && cpu.Model.Value != "":
		return cpu.Model.Value
	default:
		return cpu.Mode
	}
}

func filesOf(os *libvirtxml.DomainOS) []string {
	if os == nil {
		return nil
	}
	var files []string
	add := func(path string) {
		if path != "" {
			files = append(files, path)
		}
	}
	add(os.Kernel)
	add(os.Initrd)
	add(os.DTB)
	if os.Loader != nil {
		add(os.Loader.Path)
	}
	if os.NVRam != nil {
		add(os.NVRam.NVRam)
		if os.NVRam.Source != nil {
			add(pathOf(os.NVRam.Source))
		}
	}
	return files
}

// pathOf is where a disk's source is: a path, or for storage that is not on
// the host its name there.
func pathOf(source *libvirtxml.DomainDiskSource) string {
	switch {
	case source == nil:
		return ""
	case source.File != nil:
		return source.File.File
	case source.Block != nil:
		return source.Block.Dev
	case source.Network != nil:
		return source.Network.Protocol + ":" + source.Network.Name
	case source.Volume != nil:
		return source.Volume.Pool + "/" + source.Volume.Volume
	}
	return ""
}

// diskOf translates a disk; drives without a medium are left out.
func diskOf(d *libvirtxml.DomainDisk) (drover.Disk, bool) {
	path := pathOf(d.Source)
	if path == "" || d.Target == nil {
		return drover.Disk{}, false
	}
	disk := drover.Disk{
		Target:   d.Target.Dev,
		Path:     path,
		Format:   "raw",
		ReadOnly: d.ReadOnly != nil,
		Shared:   d.Shareable != nil || d.Source.Network != nil,
	}
	if d.Driver != nil && d.Driver.Type != "" {
		disk.Format = d.Driver.Type
	}
	below := d.BackingStore
	for range chainLimit {
		if below == nil || pathOf(below.Source) == "" {
			break
		}
		backing := drover.Backing{Path: pathOf(below.Source), Format: "raw"}
		if below.Format != nil && below.Format.Type != "" {
			backing.Format = below.Format.Type
		}
		disk.Backing = append(disk.Backing, backing)
		below = below.BackingStore
	}
	return disk, true
}

func nicOf(i *libvirtxml.DomainInterface) drover.NIC {
	var nic drover.NIC
	if i.MAC != nil {
		nic.MAC = i.MAC.Address
	}
	if i.Model != nil {
		nic.Model = i.Model.Type
	}
	if s := i.Source; s != nil {
		switch {
		case s.Network != nil:
			nic.Network = s.Network.Network
		case s.Bridge != nil:
			nic.Network = s.Bridge.Bridge
		case s.Direct != nil:
			nic.Network = s.Direct.Dev
		}
	}
	return nic
}

// named is a label or a requirement.
type named struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

// maxNamed bounds labels, and requirements, of one VM.
const maxNamed = 256

// table turns them into a map, nil for none; of two with one name the last holds.
func table(list []named) map[string]string {
	if len(list) == 0 {
		return nil
	}
	m := map[string]string{}
	for _, n := range list[:min(len(list), maxNamed)] {
		m[n.Name] = n.Value
	}
	return m
}

// metadataOf reads Drover's element. A label without a name is left out: one
// that somebody misspelt must not hide the VM. Requirements stay as they were
// written, so that what is wrong in them can be shown.
func metadataOf(vm *drover.VM, text string) {
	var metadata struct {
		VMs []struct {
			Probe *struct {
				TCP  string `xml:"tcp,attr"`
				Kind string `xml:"kind,attr"`
				HTTP string `xml:"http,attr"`
			} `xml:"https://drover-vm.org/libvirt/1 probe"`
			Labels       []named `xml:"https://drover-vm.org/libvirt/1 label"`
			Requirements []named `xml:"https://drover-vm.org/libvirt/1 requirement"`
		} `xml:"https://drover-vm.org/libvirt/1 vm"`
	}
	if err := xml.Unmarshal([]byte("<metadata>"+text+"</metadata>"), &metadata); err != nil || len(metadata.VMs) == 0 {
		return
	}
	own := metadata.VMs[0]
	if p := own.Probe; p != nil {
		vm.Probe = &drover.ProbeTarget{TCP: p.TCP, Kind: p.Kind, HTTP: p.HTTP}
	}
	own.Labels = slices.DeleteFunc(own.Labels, func(n named) bool { return n.Name == "" })
	vm.Labels, vm.Requirements = table(own.Labels), table(own.Requirements)
}
