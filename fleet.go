package drover

import (
	"net/netip"
	"time"
)

// Site is a data center.
type Site struct {
	Name string `json:"name"`
	// Latitude and Longitude in degrees; both zero when not known.
	Latitude  float64 `json:"latitude,omitempty"`
	Longitude float64 `json:"longitude,omitempty"`
	// Country is its two letters (ISO 3166-1); empty when not known.
	Country string `json:"country,omitempty"`
	// Hosts are the names of the hosts observed at the site.
	Hosts []string `json:"hosts"`
}

// Host is a hypervisor as its agent observes it.
type Host struct {
	Name string `json:"name"`
	Site string `json:"site"`
	// Address is where its agent listens, "ip:port".
	Address string `json:"address"`
	// UUID is the hypervisor's own host identity.
	UUID              string   `json:"uuid,omitempty"`
	Arch              string   `json:"arch,omitempty"`
	CPUModel          string   `json:"cpu_model,omitempty"`
	CPUs              int      `json:"cpus"`
	MemoryBytes       Bytes    `json:"memory_bytes"`
	MemoryFreeBytes   Bytes    `json:"memory_free_bytes"`
	VolumesFreeBytes  Bytes    `json:"volumes_free_bytes"`
	HypervisorVersion string   `json:"hypervisor_version,omitempty"` // QEMU, "10.0.2"
	ManagerVersion    string   `json:"manager_version,omitempty"`    // libvirt, "11.3.0"
	Accelerators      []string `json:"accelerators,omitempty"`       // "kvm", "tcg"
	Machines          []string `json:"machines,omitempty"`           // canonical machine types
	Networks          []string `json:"networks,omitempty"`           // bridges and libvirt networks a NIC can attach to
	// Edge is true for an agent without a hypervisor: a site's edge, or a
	// machine that only probes.
	Edge bool `json:"edge,omitempty"`
	// Up is false when the agent did not answer; LastSeen is when it last did.
	Up       bool      `json:"up"`
	LastSeen time.Time `json:"last_seen"`
	// Fault says why Up is false, or what is wrong while it is true.
	Fault string `json:"fault,omitempty"`
}

// Link joins two sites over a WAN.
type Link struct {
	Name string `json:"name"`
	A    string `json:"a"`
	B    string `json:"b"`
	// Rate is the rate bought, zero when not known. RTTMillis likewise.
	Rate      BitRate `json:"rate_bps"`
	RTTMillis float64 `json:"rtt_ms"`
	// PricePerGB is what 10^9 bytes over it cost, in either direction and in a
	// currency that is the same for all links; nil when not known.
	PricePerGB *float64 `json:"price_per_gb,omitempty"`
	// Bytes on the wire since counting began: from A to B and from B to A.
	ABBytes Bytes `json:"a_to_b_bytes"`
	BABytes Bytes `json:"b_to_a_bytes"`
}

// Joins reports whether the link joins the two sites, in either direction.
func (l Link) Joins(a, b string) bool {
	return l.A == a && l.B == b || l.A == b && l.B == a
}

// Cost is what that many bytes over the link cost; nil when its price is not
// known.
func (l Link) Cost(n Bytes) *float64 {
	if l.PricePerGB == nil {
		return nil
	}
	const gigabyte = 1e9 // as links are sold
	return new(float64(n) / gigabyte * *l.PricePerGB)
}

// VMState is a VM's life on one host.
type VMState string

// The states a VM can be observed in.
const (
	VMRunning VMState = "running"
	VMPaused  VMState = "paused"
	VMOff     VMState = "off"
	VMCrashed VMState = "crashed"
)

// VM is a virtual machine as observed on its host.
type VM struct {
	Name        string            `json:"name"`
	UUID        string            `json:"uuid"`
	Host        string            `json:"host"`
	Site        string            `json:"site"`
	State       VMState           `json:"state"`
	VCPUs       int               `json:"vcpus"`
	MemoryBytes Bytes             `json:"memory_bytes"`
	Machine     string            `json:"machine"`
	Accelerator string            `json:"accelerator"` // "kvm" or "tcg"
	CPU         string            `json:"cpu"`         // model or mode
	Persistent  bool              `json:"persistent"`
	Autostart   bool              `json:"autostart,omitempty"`
	Disks       []Disk            `json:"disks"`
	NICs        []NIC             `json:"nics"`
	Labels      map[string]string `json:"labels,omitempty"`
	Probe       *ProbeTarget      `json:"probe,omitempty"`
	// Requirements are what its metadata says that it needs, as it was written
	// there; see SettleRequirements.
	Requirements map[string]string `json:"requirements,omitempty"`
	// Files are kernel, initrd, firmware and other files besides disks that
	// the VM needs at the same path wherever it runs.
	Files []string `json:"files,omitempty"`
	// RemoteIO is nil for a VM none of whose disks was left behind at another site.
	RemoteIO *RemoteIO `json:"remote_io,omitempty"`
	// Detour is what a server has made of all observations; a host knows nothing of it.
	Detour
}

// ProbeTarget is where a client can see whether the VM answers.
type ProbeTarget struct {
	TCP  string `json:"tcp,omitempty"`  // "ip:port" of a line protocol
	Kind string `json:"kind,omitempty"` // "sheep", "redis", "line"
	HTTP string `json:"http,omitempty"` // URL
}

// LeftDisk is where a disk is that was left behind when its VM was moved.
type LeftDisk struct {
	Host string `json:"host"`
	// Path and Format are the image's there.
	Path   string `json:"path"`
	Format string `json:"format"`
}

// Disk is a VM's disk: its top image and what backs it.
type Disk struct {
	// Target is the name the guest bus gives it ("vda").
	Target string `json:"target"`
	// Path of the top image on the host.
	Path   string `json:"path"`
	Format string `json:"format"` // "qcow2", "raw"
	// VirtualBytes is what the guest sees; AllocatedBytes what the top image
	// takes on the host.
	VirtualBytes   Bytes `json:"virtual_bytes"`
	AllocatedBytes Bytes `json:"allocated_bytes"`
	// Left says where the disk is when it was left behind at another host; nil: it
	// is on the VM's.
	Left     *LeftDisk `json:"left,omitempty"`
	ReadOnly bool      `json:"read_only,omitempty"`
	// Shared disks are reachable from every host and are never copied.
	Shared bool `json:"shared,omitempty"`
	// Backing is the chain below the top image, nearest first.
	Backing []Backing `json:"backing,omitempty"`
}

// Backing is one image below a disk's top image.
type Backing struct {
	Path         string `json:"path"`
	Format       string `json:"format"`
	VirtualBytes Bytes  `json:"virtual_bytes"`
}

// NIC is a VM's network interface.
type NIC struct {
	MAC string `json:"mac"`
	// Network is the bridge or libvirt network it is attached to; it names
	// the segment.
	Network string `json:"network"`
	Model   string `json:"model,omitempty"`
	// Addresses are what the guest is known to have, by its agent or by the
	// VM's metadata; empty where nobody has said.
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// Volume is an image file on a host, used by a VM or not.
type Volume struct {
	Path           string    `json:"path"`
	Format         string    `json:"format"`
	VirtualBytes   Bytes     `json:"virtual_bytes"`
	AllocatedBytes Bytes     `json:"allocated_bytes"`
	Backing        []Backing `json:"backing,omitempty"`
}

// Service is an address that clients use, with the VM that answers there.
type Service struct {
	Name  string      `json:"name"`
	VM    string      `json:"vm"`
	Site  string      `json:"site"`
	Probe ProbeTarget `json:"probe"`
}
