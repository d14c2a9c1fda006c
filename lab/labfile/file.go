// Package labfile is the lab file: one YAML document that describes data
// centers, what is in them, and the links between them.
//
// Load reads and checks a file as far as the file alone can tell, and finds all
// that is wrong with it at once, each with its line. Whether the machine has the
// images, the memory and the disk that the file asks for is package lab's to
// check; how the data centers become networks is package topology's.
package labfile

import (
	"net/netip"
	"time"
)

// File is a lab file that passed all checks; defaults are filled in.
type File struct {
	// Name names the lab; two labs that run at once differ in it.
	Name string `yaml:"name,need" want:"a name of up to 20 lower-case letters, digits and dashes"`
	// Accel is how guests are run: "kvm", "tcg", or "auto" for kvm where it works.
	Accel string `yaml:"accel" want:"auto, kvm or tcg"`
	// Routing is how packets find other sites: "static" for routes in the edges,
	// which the WAN links end at, or "bgp" for a router of its own at every site.
	Routing   string           `yaml:"routing" want:"static or bgp"`
	Sites     []Site           `yaml:"sites,need" want:"a list of sites"`
	Segments  []Segment        `yaml:"segments" want:"a list of segments"`
	Links     []Link           `yaml:"links" want:"a list of links"`
	Clients   []Client         `yaml:"clients" want:"a list of clients"`
	DNS       []DNS            `yaml:"dns" want:"a list of zones"`
	DHCP      []DHCP           `yaml:"dhcp" want:"a list of DHCP servers"`
	Balancers []Balancer       `yaml:"balancers" want:"a list of load balancers"`
	Server    string           `yaml:"server,need" want:"the name of the site where the server runs"`
	Images    map[string]Image `yaml:"images"`
	Guests    []Guest          `yaml:"guests" want:"a list of guests"`

	// ServerAddress is in the transport subnet of the server's site.
	ServerAddress netip.Addr

	// Path is where the file was read from, "" for a ready file.
	Path string

	label string
	lines map[string]int
}

// Site is a data center: hosts behind an edge. It may have no hosts.
type Site struct {
	Name     string    `yaml:"name,need" want:"a name of up to 11 lower-case letters, digits and dashes"`
	Location *Location `yaml:"location"`
	// Country is where the site is, by its two letters.
	Country string `yaml:"country" want:"two capital letters such as DE"`
	// Transport is the subnet of the site's hosts, edge and server. The edge has
	// its first address and the hosts the next ones, unless they name theirs.
	Transport Prefix `yaml:"transport,need" want:"a subnet such as 10.1.0.0/24"`
	// Access is the subnet of the site's clients; the edge has its first address.
	Access Prefix `yaml:"access" want:"a subnet such as 10.1.9.0/24"`
	// Access6 is the same for IPv6.
	Access6 Prefix6 `yaml:"access6" want:"an IPv6 subnet such as fd00:9::/64"`
	Hosts   []Host  `yaml:"hosts" want:"a list of hosts"`
}

// Location is a place on earth in degrees.
type Location struct {
	Lat float64 `yaml:"lat,need" want:"a latitude from -90 to 90"`
	Lon float64 `yaml:"lon,need" want:"a longitude from -180 to 180"`
}

// Host is a hypervisor of a site.
type Host struct {
	Name string `yaml:"name,need" want:"a name of up to 11 lower-case letters, digits and dashes"`
	// Address is in the transport subnet.
	Address Addr `yaml:"address" want:"an IPv4 address such as 10.1.0.11"`
	// Memory bounds what the file's guests on this host may add up to; 0 is no bound.
	Memory Size `yaml:"memory" want:"a size such as 4GiB"`
}

// Segment is a layer 2 network for guests. At two or more sites it is one
// broadcast domain, the edges' bridges being joined over the WAN, unless Joined
// says that it is not.
type Segment struct {
	Name    string `yaml:"name,need" want:"a name of up to 11 lower-case letters, digits and dashes"`
	Subnet  Prefix `yaml:"subnet,need" want:"a subnet such as 10.50.0.0/24"`
	Gateway Addr   `yaml:"gateway" want:"an IPv4 address in the subnet"`
	// Subnet6 and Gateway6 are the same for IPv6.
	Subnet6  Prefix6 `yaml:"subnet6" want:"an IPv6 subnet such as fd00:50::/64"`
	Gateway6 Addr6   `yaml:"gateway6" want:"an IPv6 address in subnet6"`
	// Sites are where the segment exists. The first is its home: the edge there is
	// its gateway, and traffic for its subnet is sent there.
	Sites []string `yaml:"sites,need" want:"a list of site names"`
	// Joined is false for a segment that has a bridge, and the same gateway with
	// the same hardware address, at each of its sites, with nothing between them.
	Joined *bool `yaml:"joined" want:"true or false"`
}

// IsJoined reports whether the lab makes one broadcast domain of the segment.
func (s *Segment) IsJoined() bool { return s.Joined == nil || *s.Joined }

// Home is the site to which traffic for the segment's subnets is sent.
func (s *Segment) Home() string { return s.Sites[0] }

// Link is a WAN link between the edges of two sites. What is set holds for each
// direction.
type Link struct {
	// Name is "a-b" unless set.
	Name string `yaml:"name" want:"a name of up to 24 lower-case letters, digits and dashes"`
	A    string `yaml:"a,need" want:"the name of a site"`
	B    string `yaml:"b,need" want:"the name of a site"`
	Rate Rate   `yaml:"rate,need" want:"a rate of at least 1kbit, such as 200Mbit, or unlimited"`
	// Delay is one way; RTT is both ways and excludes Delay. With neither, the
	// distance between the sites gives the delay; see DistanceDelay.
	Delay  *Delay `yaml:"delay" want:"a time from 0s to 10s, such as 25ms"`
	RTT    *Delay `yaml:"rtt" want:"a time from 0s to 10s, such as 50ms"`
	Jitter Delay  `yaml:"jitter" want:"a time from 0s to 10s, such as 1ms"`
	Loss   Loss   `yaml:"loss" want:"a share of packets from 0% to below 100%, such as 0.1%"`
	// Queue is one round trip at the set rate unless set.
	Queue Size `yaml:"queue" want:"a size such as 1MiB"`
	// MTU in bytes; 1600 carries a stretched segment's 1500 inside.
	MTU int `yaml:"mtu" want:"a whole number from 1280 to 9000"`
}

// OneWay is the link's delay in one direction.
func (l *Link) OneWay() time.Duration {
	if l.Delay == nil {
		return 0
	}
	return time.Duration(*l.Delay)
}

// Client is a machine outside the hosts from which guests are used and probed.
type Client struct {
	Name string `yaml:"name,need" want:"a name of up to 11 lower-case letters, digits and dashes"`
	Site string `yaml:"site,need" want:"the name of a site"`
	// Segment puts the client into a segment instead of the access subnet.
	Segment  string `yaml:"segment" want:"the name of a segment"`
	Address  Addr   `yaml:"address,need" want:"an IPv4 address such as 10.1.9.10"`
	Address6 Addr6  `yaml:"address6" want:"an IPv6 address such as fd00:9::10"`
}

// Image is what a guest boots from. The names sheep and debian are built in;
// an entry for one of them can only say where it is placed.
type Image struct {
	// Kernel, Initrd and Disk are files, relative to the lab file.
	Kernel string `yaml:"kernel" want:"the path of a Linux kernel"`
	Initrd string `yaml:"initrd" want:"the path of an initial RAM disk"`
	Disk   string `yaml:"disk" want:"the path of a disk image"`
	// Format of Disk: raw or qcow2.
	Format string `yaml:"format" want:"raw or qcow2"`
	// Backing is the file that backs Disk, if any.
	Backing string `yaml:"backing" want:"the path of the disk's backing file"`
	// BackingFormat of Backing: raw or qcow2.
	BackingFormat string `yaml:"backing_format" want:"raw or qcow2"`
	// Cmdline is the kernel's command line.
	Cmdline string `yaml:"cmdline" want:"a kernel command line"`
	// Sites are where the image is placed; everywhere unless set.
	Sites []string `yaml:"sites" want:"a list of site names"`
}

// Builtin reports whether name is an image that the lab builds itself.
func Builtin(name string) bool { return name == ImageSheep || name == ImageDebian }

// The built-in images.
const (
	ImageSheep  = "sheep"
	ImageDebian = "debian"
)

// Guest is a virtual machine that the lab defines and starts.
type Guest struct {
	Name   string `yaml:"name,need" want:"a name of letters, digits, dots, dashes and underscores"`
	Host   string `yaml:"host,need" want:"the name of a host"`
	Image  string `yaml:"image,need" want:"the name of an image"`
	Memory Size   `yaml:"memory,need" want:"a size such as 256MiB"`
	VCPUs  int    `yaml:"vcpus" want:"a whole number from 1 to 64"`
	// Machine is QEMU's machine type.
	Machine string `yaml:"machine" want:"a QEMU machine type such as q35 or pc"`
	// CPU is libvirt's model name; by default one that every host can give.
	CPU      string `yaml:"cpu" want:"a CPU model such as qemu64"`
	Segment  string `yaml:"segment,need" want:"the name of a segment"`
	Address  Addr   `yaml:"address,need" want:"an IPv4 address in the segment's subnet"`
	Address6 Addr6  `yaml:"address6" want:"an IPv6 address in the segment's subnet6"`
	// DHCP makes the guest ask for its address, which the site's edge holds for it.
	DHCP bool `yaml:"dhcp" want:"true or false"`
	MAC  MAC  `yaml:"mac" want:"a unicast address such as 52:54:00:00:00:01"`
	Disk Disk `yaml:"disk"`
	// Cmdline is added to the image's.
	Cmdline string            `yaml:"cmdline" want:"kernel arguments"`
	Labels  map[string]string `yaml:"labels"`
	// Requirements are what the guest needs, by the names of drover.Requirements.
	Requirements map[string]string `yaml:"requirements"`
	// Advice is what "drover advise" is right to say of it.
	Advice    *Advice `yaml:"advice"`
	Probe     *Probe  `yaml:"probe"`
	Autostart *bool   `yaml:"autostart" want:"true or false"`
}

// Starts reports whether lab up starts the guest.
func (g *Guest) Starts() bool { return g.Autostart == nil || *g.Autostart }

// Advice is how a guest should come to a site, for tests of the adviser.
type Advice struct {
	To string `yaml:"to,need" want:"the name of a site"`
	// Method is one of the methods, or stay.
	Method string `yaml:"method,need" want:"a method, or stay"`
	// Because says why, for the file's readers.
	Because string `yaml:"because,need" want:"the reason in a few words"`
}

// Disk is a guest's disk.
type Disk struct {
	// Size is the virtual size; the image's disk's unless set.
	Size Size `yaml:"size" want:"a size such as 512MiB"`
	// Copy is true for a full copy of the image's disk instead of an overlay.
	Copy bool `yaml:"copy" want:"true or false"`
}

// Probe is where a client can see whether the guest answers.
type Probe struct {
	// TCP is "ip:port" or ":port" of the guest's address.
	TCP string `yaml:"tcp" want:"an address and port such as 10.50.0.11:7000, or :7000"`
	// Kind is the protocol spoken there: sheep, redis or line.
	Kind string `yaml:"kind" want:"sheep, redis or line"`
	HTTP string `yaml:"http" want:"a URL"`
}
