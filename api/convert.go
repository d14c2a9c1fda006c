package api

import (
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// A zero time crosses as 0 and a nil message gives the zero value. Lists come
// back empty, not nil, where the domain's JSON always shows them.

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// each converts a list; the result is never nil.
func each[A, B any](in []A, f func(A) B) []B {
	out := make([]B, 0, len(in))
	for _, a := range in {
		out = append(out, f(a))
	}
	return out
}

// SiteToProto converts a site.
func SiteToProto(s drover.Site) *droverv1.Site {
	return &droverv1.Site{Name: s.Name, Latitude: s.Latitude, Longitude: s.Longitude, Country: s.Country, Hosts: s.Hosts}
}

// SiteFromProto converts a site.
func SiteFromProto(s *droverv1.Site) drover.Site {
	return drover.Site{
		Name: s.GetName(), Latitude: s.GetLatitude(), Longitude: s.GetLongitude(),
		Country: s.GetCountry(), Hosts: append([]string{}, s.GetHosts()...),
	}
}

// HostToProto converts a host.
func HostToProto(h drover.Host) *droverv1.Host {
	return &droverv1.Host{
		Name: h.Name, Site: h.Site, Address: h.Address, Uuid: h.UUID, Arch: h.Arch,
		CpuModel: h.CPUModel, Cpus: int32(h.CPUs),
		MemoryBytes: int64(h.MemoryBytes), MemoryFreeBytes: int64(h.MemoryFreeBytes),
		VolumesFreeBytes:  int64(h.VolumesFreeBytes),
		HypervisorVersion: h.HypervisorVersion, ManagerVersion: h.ManagerVersion,
		Accelerators: h.Accelerators, Machines: h.Machines, Networks: h.Networks,
		Edge: h.Edge, Up: h.Up, LastSeenUnixNanos: nanos(h.LastSeen), Fault: h.Fault,
	}
}

// HostFromProto converts a host.
func HostFromProto(h *droverv1.Host) drover.Host {
	return drover.Host{
		Name: h.GetName(), Site: h.GetSite(), Address: h.GetAddress(), UUID: h.GetUuid(), Arch: h.GetArch(),
		CPUModel: h.GetCpuModel(), CPUs: int(h.GetCpus()),
		MemoryBytes: drover.Bytes(h.GetMemoryBytes()), MemoryFreeBytes: drover.Bytes(h.GetMemoryFreeBytes()),
		VolumesFreeBytes:  drover.Bytes(h.GetVolumesFreeBytes()),
		HypervisorVersion: h.GetHypervisorVersion(), ManagerVersion: h.GetManagerVersion(),
		Accelerators: h.GetAccelerators(), Machines: h.GetMachines(), Networks: h.GetNetworks(),
		Edge: h.GetEdge(), Up: h.GetUp(), LastSeen: fromNanos(h.GetLastSeenUnixNanos()), Fault: h.GetFault(),
	}
}

// LinkToProto converts a link.
func LinkToProto(l drover.Link) *droverv1.Link {
	return &droverv1.Link{
		Name: l.Name, A: l.A, B: l.B, RateBps: int64(l.Rate), RttMs: l.RTTMillis,
		AbBytes: int64(l.ABBytes), BaBytes: int64(l.BABytes), PricePerGb: l.PricePerGB,
	}
}

// LinkFromProto converts a link.
func LinkFromProto(l *droverv1.Link) drover.Link {
	if l == nil {
		return drover.Link{}
	}
	return drover.Link{
		Name: l.GetName(), A: l.GetA(), B: l.GetB(), Rate: drover.BitRate(l.GetRateBps()), RTTMillis: l.GetRttMs(),
		ABBytes: drover.Bytes(l.GetAbBytes()), BABytes: drover.Bytes(l.GetBaBytes()),
		PricePerGB: l.PricePerGb,
	}
}

// VMToProto converts a VM.
func VMToProto(v drover.VM) *droverv1.VM {
	return &droverv1.VM{
		Name: v.Name, Uuid: v.UUID, Host: v.Host, Site: v.Site, State: string(v.State),
		Vcpus: int32(v.VCPUs), MemoryBytes: int64(v.MemoryBytes), Machine: v.Machine,
		Accelerator: v.Accelerator, Cpu: v.CPU, Persistent: v.Persistent, Autostart: v.Autostart,
		Disks: each(v.Disks, DiskToProto), Nics: each(v.NICs, NICToProto), Labels: v.Labels,
		Probe: optionalProbe(v.Probe), Files: v.Files, RemoteIo: remoteIOToProto(v.RemoteIO),
		Requirements: v.Requirements,
		Detour:       DetourToProto(v.Detour),
	}
}

// VMFromProto converts a VM.
func VMFromProto(v *droverv1.VM) drover.VM {
	vm := drover.VM{
		Name: v.GetName(), UUID: v.GetUuid(), Host: v.GetHost(), Site: v.GetSite(), State: drover.VMState(v.GetState()),
		VCPUs: int(v.GetVcpus()), MemoryBytes: drover.Bytes(v.GetMemoryBytes()), Machine: v.GetMachine(),
		Accelerator: v.GetAccelerator(), CPU: v.GetCpu(), Persistent: v.GetPersistent(), Autostart: v.GetAutostart(),
		Disks: each(v.GetDisks(), DiskFromProto), NICs: each(v.GetNics(), NICFromProto), Labels: v.GetLabels(),
		Files: v.GetFiles(), RemoteIO: remoteIOFromProto(v.GetRemoteIo()),
		Requirements: v.GetRequirements(),
		Detour:       DetourFromProto(v.GetDetour()),
	}
	if v.GetProbe() != nil {
		p := ProbeTargetFromProto(v.GetProbe())
		vm.Probe = &p
	}
	return vm
}

// DiskToProto converts a disk.
func DiskToProto(d drover.Disk) *droverv1.Disk {
	return &droverv1.Disk{
		Target: d.Target, Path: d.Path, Format: d.Format,
		VirtualBytes: int64(d.VirtualBytes), AllocatedBytes: int64(d.AllocatedBytes),
		ReadOnly: d.ReadOnly, Shared: d.Shared, Backing: each(d.Backing, backingToProto), Left: leftToProto(d.Left),
	}
}

// DiskFromProto converts a disk.
func DiskFromProto(d *droverv1.Disk) drover.Disk {
	return drover.Disk{
		Target: d.GetTarget(), Path: d.GetPath(), Format: d.GetFormat(),
		VirtualBytes: drover.Bytes(d.GetVirtualBytes()), AllocatedBytes: drover.Bytes(d.GetAllocatedBytes()),
		ReadOnly: d.GetReadOnly(), Shared: d.GetShared(), Backing: each(d.GetBacking(), backingFromProto), Left: leftFromProto(d.GetLeft()),
	}
}

func backingToProto(b drover.Backing) *droverv1.Backing {
	return &droverv1.Backing{Path: b.Path, Format: b.Format, VirtualBytes: int64(b.VirtualBytes)}
}

func backingFromProto(b *droverv1.Backing) drover.Backing {
	return drover.Backing{Path: b.GetPath(), Format: b.GetFormat(), VirtualBytes: drover.Bytes(b.GetVirtualBytes())}
}

// NICToProto converts a network interface.
func NICToProto(n drover.NIC) *droverv1.NIC {
	return &droverv1.NIC{Mac: n.MAC, Network: n.Network, Model: n.Model, Addresses: textOf(n.Addresses)}
}

// NICFromProto converts a network interface.
func NICFromProto(n *droverv1.NIC) drover.NIC {
	nic := drover.NIC{MAC: n.GetMac(), Network: n.GetNetwork(), Model: n.GetModel()}
	if len(n.GetAddresses()) > 0 {
		nic.Addresses = readable(n.GetAddresses(), netip.ParseAddr)
	}
	return nic
}

// ProbeTargetToProto converts a probe target.
func ProbeTargetToProto(p drover.ProbeTarget) *droverv1.ProbeTarget {
	return &droverv1.ProbeTarget{Tcp: p.TCP, Kind: p.Kind, Http: p.HTTP}
}

// ProbeTargetFromProto converts a probe target.
func ProbeTargetFromProto(p *droverv1.ProbeTarget) drover.ProbeTarget {
	return drover.ProbeTarget{TCP: p.GetTcp(), Kind: p.GetKind(), HTTP: p.GetHttp()}
}

func optionalProbe(p *drover.ProbeTarget) *droverv1.ProbeTarget {
	if p == nil {
		return nil
	}
	return ProbeTargetToProto(*p)
}

// ServiceToProto converts a service.
func ServiceToProto(s drover.Service) *droverv1.Service {
	return &droverv1.Service{Name: s.Name, Vm: s.VM, Site: s.Site, Probe: ProbeTargetToProto(s.Probe)}
}

// ServiceFromProto converts a service.
func ServiceFromProto(s *droverv1.Service) drover.Service {
	return drover.Service{Name: s.GetName(), VM: s.GetVm(), Site: s.GetSite(), Probe: ProbeTargetFromProto(s.GetProbe())}
}
