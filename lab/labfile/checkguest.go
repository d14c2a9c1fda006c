package labfile

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"

	"github.com/drover-vm/drover"
)

// Limits of a guest.
const (
	maxGuestName = 40 // its console log and disk are named after it
	maxVCPUs     = 64
	// minGuestMemory is what Debian's kernel with a small initramfs boots in; at
	// 64 MiB it does not.
	minGuestMemory = 96 * drover.MiB
	maxCmdline     = 1024 // of the kernel's 2048, the rest is the lab's
)

// Ports on which a sheep answers, see package guest.
const (
	sheepTCPPort  = 7000
	sheepHTTPPort = 8080
)

var machineName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func (c *checker) clients() {
	for i := range c.f.Clients {
		l := &c.f.Clients[i]
		at := fmt.Sprintf("clients[%d]", i)
		if c.name(at+".name", l.Name, maxShortName) {
			c.node(at+".name", l.Name)
		}
		s := c.knownSite(at+".site", l.Site)
		if s == nil || c.bad[at+".segment"] {
			continue
		}
		if l.Segment != "" {
			if seg := c.knownSegment(at+".segment", l.Segment, s.Name); seg != nil {
				c.address(at+".address", l.Address.Addr, seg.Subnet.Prefix, "segment's")
				c.address6(at+".address6", l.Address6.Addr, seg.Subnet6.Prefix, "segment's")
				c.atHome(at+".segment", seg, s.Name)
			}
			continue
		}
		if !s.Access.IsValid() {
			c.report(at+".site", l.Site, "the site has no access subnet for clients, want one there or a segment here")
			continue
		}
		c.address(at+".address", l.Address.Addr, s.Access.Prefix, "access")
		c.address6(at+".address6", l.Address6.Addr, s.Access6.Prefix, "access")
	}
}

// address6 is address for IPv6, which the subnet may not have.
func (c *checker) address6(path string, addr netip.Addr, subnet netip.Prefix, kind string) {
	if addr.IsValid() && !subnet.IsValid() && !c.bad[path] {
		c.report(path, addr.String(), fmt.Sprintf("there is no IPv6 in the %s subnet, want its IPv6 subnet too", kind))
		return
	}
	c.address(path, addr, subnet, kind+" IPv6")
}

// atHome checks that what is in a segment that is not joined is at its home:
// elsewhere nothing would lead to it.
func (c *checker) atHome(path string, seg *Segment, site string) {
	if !seg.IsJoined() && len(seg.Sites) > 0 && site != "" && site != seg.Home() {
		c.report(path, seg.Name, fmt.Sprintf("the segment is not joined, and nothing leads to it at site %s, want it at site %s", site, seg.Home()))
	}
}

// knownSegment checks a reference to a segment that must exist at a site.
func (c *checker) knownSegment(path, name, site string) *Segment {
	if c.bad[path] || name == "" {
		return nil
	}
	s := c.f.Segment(name)
	if s == nil {
		c.report(path, name, "unknown segment, want one of "+list(c.f.Segments, func(s Segment) string { return s.Name }))
		return nil
	}
	if site != "" && !slices.Contains(s.Sites, site) {
		c.report(path, name, fmt.Sprintf("the segment does not exist at site %s", site))
		return nil
	}
	return s
}

func (c *checker) images() {
	for name, img := range c.f.Images {
		at := "images." + name
		c.name(at, name, maxLinkName)
		c.siteList(at+".sites", img.Sites)
		c.oneOf(at+".format", &img.Format, "", "raw", "qcow2")
		c.oneOf(at+".backing_format", &img.BackingFormat, "", "raw", "qcow2")
		only := func(cond bool, key, value, want string) {
			if value != "" && cond && !c.bad[at+"."+key] {
				c.report(at+"."+key, value, want)
			}
		}
		if Builtin(name) {
			for _, k := range []struct{ key, value string }{
				{"kernel", img.Kernel},
				{"initrd", img.Initrd},
				{"disk", img.Disk},
				{"format", img.Format},
				{"backing", img.Backing},
				{"cmdline", img.Cmdline},
			} {
				only(true, k.key, k.value, "this image is built in, want no more than sites here, or another name")
			}
			continue
		}
		if img.Kernel == "" && img.Disk == "" && !c.bad[at] && !c.bad[at+".kernel"] && !c.bad[at+".disk"] {
			c.report(at, "", "want a kernel, a disk or both")
		}
		only(img.Kernel == "", "initrd", img.Initrd, "there is no kernel to use it, want kernel too")
		only(img.Kernel == "", "cmdline", img.Cmdline, "there is no kernel to use it, want kernel too")
		only(img.Disk == "", "format", img.Format, "there is no disk, want disk too")
		only(img.Disk == "", "backing", img.Backing, "there is no disk, want disk too")
		only(img.Format == "raw", "backing", img.Backing, "a raw disk has no backing file, want format qcow2")
		if img.Disk != "" && img.Format == "" {
			img.Format = "qcow2"
		}
		if img.Backing != "" && img.BackingFormat == "" {
			img.BackingFormat = "qcow2"
		}
		c.f.Images[name] = img
	}
}

func (c *checker) guests() {
	if len(c.f.Guests) > maxGuests {
		c.report("guests", fmt.Sprint(len(c.f.Guests)), fmt.Sprintf("too many guests, want at most %d", maxGuests))
	}
	names, macs := map[string]bool{}, map[MAC]string{}
	for i := range c.f.Guests {
		g := &c.f.Guests[i]
		at := fmt.Sprintf("guests[%d]", i)
		if !c.bad[at+".name"] {
			if err := drover.CheckName("name", g.Name); err != nil || len(g.Name) > maxGuestName {
				c.report(at+".name", g.Name, fmt.Sprintf("want a name of up to %d letters, digits, dots, dashes and underscores", maxGuestName))
			} else if names[g.Name] {
				c.report(at+".name", g.Name, "two guests have this name")
			}
		}
		names[g.Name] = true
		if g.MAC == "" && !c.bad[at+".mac"] {
			g.MAC = deriveMAC(c.f.Name, g.Name)
		}
		if other, taken := macs[g.MAC]; taken && g.MAC != "" && g.Name != other {
			c.report(at+".mac", string(g.MAC), "the address is taken by guest "+other)
		}
		macs[g.MAC] = g.Name
		c.guestPlace(g, at)
		c.guestMachine(g, at)
		c.guestProbe(g, at)
	}
}

// guestPlace checks host, image, segment and address against each other.
func (c *checker) guestPlace(g *Guest, at string) {
	var site string
	if !c.bad[at+".host"] {
		if s := c.f.SiteOfHost(g.Host); s != nil {
			site = s.Name
		} else {
			var hosts []Host
			for _, s := range c.f.Sites {
				hosts = append(hosts, s.Hosts...)
			}
			c.report(at+".host", g.Host, "unknown host, want one of "+list(hosts, func(h Host) string { return h.Name }))
		}
	}
	if seg := c.knownSegment(at+".segment", g.Segment, site); seg != nil {
		c.address(at+".address", g.Address.Addr, seg.Subnet.Prefix, "segment's")
		c.address6(at+".address6", g.Address6.Addr, seg.Subnet6.Prefix, "segment's")
		c.atHome(at+".segment", seg, site)
	}
	img, known := c.f.Images[g.Image]
	switch {
	case c.bad[at+".image"]:
	case !known && !Builtin(g.Image):
		want := "unknown image, want sheep, debian"
		if len(c.f.Images) > 0 {
			want += " or one of " + keys(c.f.Images)
		}
		c.report(at+".image", g.Image, want)
	case site != "" && len(img.Sites) > 0 && !slices.Contains(img.Sites, site):
		c.report(at+".image", g.Image, fmt.Sprintf("the image is not placed at site %s, want it in images.%s.sites", site, g.Image))
	case g.Disk.Copy && (g.Image == ImageSheep || known && !Builtin(g.Image) && img.Disk == ""):
		c.report(at+".disk.copy", "true", "the image has no disk to copy")
	case known && !Builtin(g.Image) && img.Kernel == "" && g.Cmdline != "":
		c.report(at+".cmdline", g.Cmdline, "the image has no kernel to use it")
	}
}

func (c *checker) guestMachine(g *Guest, at string) {
	if m := drover.Bytes(g.Memory); m != 0 && !c.bad[at+".memory"] {
		if m < minGuestMemory {
			c.report(at+".memory", m.String(), "want at least "+minGuestMemory.String())
		} else if m%drover.MiB != 0 {
			c.report(at+".memory", strconv.FormatInt(int64(m), 10), "want a whole number of MiB")
		}
	}
	if _, set := c.lines[at+".vcpus"]; !set {
		g.VCPUs = 1
	}
	if !c.bad[at+".vcpus"] && (g.VCPUs < 1 || g.VCPUs > maxVCPUs) {
		c.report(at+".vcpus", fmt.Sprint(g.VCPUs), fmt.Sprintf("want a whole number from 1 to %d", maxVCPUs))
	}
	if g.Machine == "" {
		g.Machine = "q35"
	}
	for _, k := range []struct{ key, value string }{{".machine", g.Machine}, {".cpu", g.CPU}} {
		if k.value != "" && !c.bad[at+k.key] && !machineName.MatchString(k.value) {
			c.report(at+k.key, k.value, "want letters, digits, dots, dashes and underscores")
		}
	}
	if len(g.Cmdline) > maxCmdline {
		c.report(at+".cmdline", fmt.Sprintf("%d characters", len(g.Cmdline)), fmt.Sprintf("want at most %d", maxCmdline))
	}
	for key := range g.Labels {
		if err := drover.CheckName("label", key); err != nil {
			c.report(at+".labels."+key, key, "want a name of letters, digits, dots, dashes and underscores")
		}
	}
	c.guestNeeds(g, at)
}

// guestNeeds checks what the adviser is told of a guest.
func (c *checker) guestNeeds(g *Guest, at string) {
	for _, key := range slices.Sorted(maps.Keys(g.Requirements)) {
		if err := drover.CheckRequirement(key, g.Requirements[key]); err != nil {
			c.report(at+".requirements."+key, g.Requirements[key], err.Error())
		}
	}
	if g.Advice == nil {
		return
	}
	c.knownSite(at+".advice.to", g.Advice.To)
	if m := drover.Method(g.Advice.Method); m != drover.Stay && !slices.Contains(drover.Methods(), m) {
		c.report(at+".advice.method", g.Advice.Method, "want stay or one of live, stretch, route, renumber, redirect, warm, cold, spawn")
	}
}

func (c *checker) guestProbe(g *Guest, at string) {
	if g.Probe == nil {
		if g.Image == ImageSheep && g.Address.IsValid() {
			g.Probe = &Probe{
				Kind: "sheep",
				TCP:  netip.AddrPortFrom(g.Address.Addr, sheepTCPPort).String(),
				HTTP: fmt.Sprintf("http://%s/healthz", netip.AddrPortFrom(g.Address.Addr, sheepHTTPPort)),
			}
		}
		return
	}
	p := g.Probe
	at += ".probe"
	if p.TCP == "" && p.HTTP == "" && !c.bad[at] && !c.bad[at+".tcp"] && !c.bad[at+".http"] {
		c.report(at, "", "want tcp, http or both")
	}
	if p.TCP != "" {
		host, port, err := net.SplitHostPort(p.TCP)
		if host == "" {
			host = g.Address.String()
		}
		target, perr := netip.ParseAddrPort(net.JoinHostPort(host, port))
		if err != nil || perr != nil || target.Port() == 0 {
			if g.Address.IsValid() {
				c.report(at+".tcp", p.TCP, "want an address and port such as 10.50.0.11:7000, or :7000")
			}
		} else {
			p.TCP = target.String()
		}
		c.oneOf(at+".kind", &p.Kind, "line", "sheep", "redis", "line")
	} else if p.Kind != "" {
		c.report(at+".kind", p.Kind, "there is no tcp to speak it at, want tcp too")
	}
	if p.HTTP != "" {
		if u, err := url.Parse(p.HTTP); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			c.report(at+".http", p.HTTP, "want a URL such as http://10.50.0.11:8080/healthz")
		}
	}
}

// hostMemory checks the bounds that hosts set on their guests.
func (c *checker) hostMemory() {
	sums := map[string]drover.Bytes{}
	for _, g := range c.f.Guests {
		sums[g.Host] += drover.Bytes(g.Memory)
	}
	for i, s := range c.f.Sites {
		for j, h := range s.Hosts {
			if bound := drover.Bytes(h.Memory); bound > 0 && sums[h.Name] > bound {
				c.report(fmt.Sprintf("sites[%d].hosts[%d].memory", i, j), bound.String(),
					fmt.Sprintf("the guests on %s take %s, want at least that", h.Name, sums[h.Name]))
			}
		}
	}
}

// deriveMAC is an address in QEMU's range that stays the same from run to run
// and differs from guest to guest and lab to lab.
func deriveMAC(lab, guest string) MAC {
	h := sha256.Sum256([]byte(lab + "/" + guest))
	return MAC(fmt.Sprintf("52:54:00:%02x:%02x:%02x", h[0], h[1], h[2]))
}
