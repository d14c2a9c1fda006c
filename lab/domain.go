package lab

import (
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/topology"
)

// libvirtLogs is the folder of a host's libvirt logs.
const libvirtLogs = "/var/log/libvirt"

// consoleLog is where a guest's serial console goes, in its host.
func consoleLog(guest string) string { return libvirtLogs + "/qemu/" + guest + "-console.log" }

// domain is the libvirt definition of a guest.
func (l *Lab) domain(f *labfile.File, g *labfile.Guest, img *image, disk, cache string) (string, error) {
	d := libvirtxml.Domain{
		Type:     map[string]string{accelKVM: "kvm", accelTCG: "qemu"}[l.Accel],
		Name:     g.Name,
		UUID:     uuid(f.Name, "guest", g.Name),
		Memory:   &libvirtxml.DomainMemory{Unit: "B", Value: uint(g.Memory)},
		VCPU:     &libvirtxml.DomainVCPU{Value: uint(g.VCPUs)},
		CPU:      l.cpu(g),
		Features: &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}, APIC: &libvirtxml.DomainFeatureAPIC{}},
		Clock:    &libvirtxml.DomainClock{Offset: "utc"},
		OS: &libvirtxml.DomainOS{
			Type:    &libvirtxml.DomainOSType{Arch: "x86_64", Machine: g.Machine, Type: "hvm"},
			Kernel:  img.kernelPath(),
			Initrd:  img.initrdPath(),
			Cmdline: cmdline(f, g, img),
		},
		OnPoweroff: "destroy",
		OnReboot:   "restart",
		OnCrash:    "destroy",
		Devices:    devices(g, disk, cache),
	}
	if img.kernel == "" {
		d.OS.BootDevices = []libvirtxml.DomainBootDevice{{Dev: "hd"}}
	}
	meta, err := xml.Marshal(newMetadata(g))
	if err != nil {
		return "", fmt.Errorf("metadata: %w", err)
	}
	d.Metadata = &libvirtxml.DomainMetadata{XML: string(meta)}
	return d.Marshal()
}

// cpu is the guest's processor. Under KVM every host is the same machine, so its
// own model moves between them.
func (l *Lab) cpu(g *labfile.Guest) *libvirtxml.DomainCPU {
	model := g.CPU
	switch {
	case model == "" && l.Accel == accelKVM:
		return &libvirtxml.DomainCPU{Mode: "host-model"}
	case model == "":
		model = tcgCPU
	}
	return &libvirtxml.DomainCPU{
		Mode: "custom", Match: "exact", Check: "none",
		Model: &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: model},
	}
}

// cmdline is the kernel's command line: the image's, the guest's name and
// network for the lab's own images, and what the file adds.
func cmdline(f *labfile.File, g *labfile.Guest, img *image) string {
	if img.kernel == "" {
		return ""
	}
	parts := []string{img.cmdline}
	if labfile.Builtin(img.name) {
		seg := f.Segment(g.Segment)
		parts = append(parts, "drover.name="+g.Name)
		parts = append(parts, network(f, g, seg)...)
	}
	parts = append(parts, g.Cmdline)
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}

// network is what an image of the lab's own is told of its addresses. A guest that
// asks for them learns its IPv4 gateway with its address; DHCPv6 names none.
func network(f *labfile.File, g *labfile.Guest, seg *labfile.Segment) []string {
	var words []string
	if g.DHCP {
		words = append(words, "drover.ip=dhcp")
	} else {
		words = append(words, fmt.Sprintf("drover.ip=%s/%d", g.Address, seg.Subnet.Bits()), "drover.gw="+seg.Gateway.String())
	}
	if !g.Address6.IsValid() {
		return words
	}
	// A segment without a DHCP service of its own has the lab's, for IPv4 alone.
	if g.DHCP && slices.ContainsFunc(f.DHCP, func(d labfile.DHCP) bool { return d.Segment == seg.Name }) {
		words = append(words, "drover.ip=dhcp6")
	} else {
		words = append(words, fmt.Sprintf("drover.ip=%s/%d", g.Address6, seg.Subnet6.Bits()))
	}
	if seg.Gateway6.IsValid() {
		words = append(words, "drover.gw="+seg.Gateway6.String())
	}
	return words
}

// agentChannel is the port where a guest agent answers its host.
const agentChannel = "org.qemu.guest_agent.0"

func devices(g *labfile.Guest, disk, cache string) *libvirtxml.DomainDeviceList {
	port := uint(0)
	list := &libvirtxml.DomainDeviceList{
		// No USB and no balloon: the less there is, the faster a guest boots
		// under emulation and the less state moves with it.
		Controllers: []libvirtxml.DomainController{{Type: "usb", Model: "none"}},
		MemBalloon:  &libvirtxml.DomainMemBalloon{Model: "none"},
		Interfaces: []libvirtxml.DomainInterface{{
			MAC:    &libvirtxml.DomainInterfaceMAC{Address: string(g.MAC)},
			Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
			Source: &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: topology.SegmentBridge(g.Segment)}},
		}},
		Serials: []libvirtxml.DomainSerial{{
			Source: &libvirtxml.DomainChardevSource{File: &libvirtxml.DomainChardevSourceFile{Path: consoleLog(g.Name), Append: "on"}},
			Target: &libvirtxml.DomainSerialTarget{Port: &port},
		}},
		Channels: []libvirtxml.DomainChannel{{
			Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind"}},
			Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: agentChannel}},
		}},
		RNGs: []libvirtxml.DomainRNG{{
			Model:   "virtio",
			Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
		}},
	}
	if disk != "" {
		list.Disks = []libvirtxml.DomainDisk{{
			Device: "disk",
			Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "qcow2", Cache: cache, Discard: "unmap"},
			Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: disk}},
			Target: &libvirtxml.DomainDiskTarget{Dev: "vda", Bus: "virtio"},
		}}
	}
	return list
}

func newMetadata(g *labfile.Guest) metadata {
	m := metadata{NS: metadataURI}
	if p := g.Probe; p != nil {
		m.Probe = &metadataProbe{TCP: p.TCP, Kind: p.Kind, HTTP: p.HTTP}
	}
	for _, k := range slices.Sorted(maps.Keys(g.Labels)) {
		m.Labels = append(m.Labels, metadataLabel{Name: k, Value: g.Labels[k]})
	}
	for _, k := range slices.Sorted(maps.Keys(g.Requirements)) {
		m.Requirements = append(m.Requirements, metadataLabel{Name: k, Value: g.Requirements[k]})
	}
	return m
}
