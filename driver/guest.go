package driver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// Guests is the inside of one host's VMs, as far as a move has to reach in:
// through an agent that runs in the guest, or, where there is none, by taking
// the cable of its network card out and putting it back.
//
// Methods may be called concurrently. A VM that does not exist gives
// drover.NotFound, a network card that the VM does not have likewise. A method
// that needs the agent gives drover.Refused when the VM has none, when the agent
// does not allow what is asked, or when the VM is off, and drover.Unavailable,
// within a few seconds, when the agent does not answer: it may be booting, or
// hang. What an agent answers is the guest's word: it is bounded, checked in
// form and used for that guest alone.
//
// Every method may be repeated. Canceling leaves an agent's command running in
// the guest; the next call begins from what it finds there.
//
// There is no owner: what is changed is the VM's own, moves with it and is gone
// with its next boot, since no file of the guest's is written. Default routes
// that AddAddress makes carry GuestRouteProtocol. A client of DHCP that runs in
// the guest is not stopped; give it the same addresses, or it changes them back.
//
// Close ends the driver and changes nothing.
type Guests interface {
	// Agent says whether an agent answers in the running VM and what it can do
	// there. That none answers is an answer, no error.
	Agent(ctx context.Context, vm string) (GuestAgent, error)
	// Interfaces lists the guest's Ethernet interfaces with their addresses,
	// link-local ones left out.
	Interfaces(ctx context.Context, vm string) ([]GuestInterface, error)
	// AddAddress gives the guest's interface with that MAC more addresses, or
	// changes the place of those it has; see GuestAddresses. No address is
	// taken away.
	AddAddress(ctx context.Context, vm, mac string, change GuestAddresses) error
	// DropAddress takes an address away; missing is fine. The last one of its
	// family on the interface gives drover.Refused: a VM must stay reachable.
	// Where it is the one of new connections, make another primary before: Linux
	// takes the default route away with its source.
	DropAddress(ctx context.Context, vm, mac string, address netip.Addr) error
	// SetLink takes the cable of the running VM's network card out, or puts it
	// back. It needs no agent. A card whose cable was taken out stays without
	// until it is put back or the VM is started again: whoever takes it out
	// has to put it back, after a crash too. A guest notices only if it gets to
	// run in between: wait for LinkDownTime, then see whether it has asked DHCP
	// again, and repeat it if not.
	SetLink(ctx context.Context, vm, mac string, up bool) error
	// SetHostname names the guest until its next boot.
	SetHostname(ctx context.Context, vm, hostname string) error
	// Freeze makes the guest's file systems consistent on its disks and stops
	// writes to them until Thaw. Between the two the agent does nothing else
	// (drover.Refused). Frozen already is fine. After an error, too, call Thaw.
	Freeze(ctx context.Context, vm string) error
	// Thaw ends Freeze. A VM that is not frozen, is off or is gone is fine.
	Thaw(ctx context.Context, vm string) error
	// Retarget rewrites a definition for another place, or into that of another
	// VM. It is pure: nothing is looked up, nothing is defined. What is left
	// out of the changes is not touched. A network card, disk or path that is
	// named and not there, or a clone that would share a disk or an address
	// with its original, gives drover.Invalid.
	Retarget(def Definition, to Retarget) (Definition, error)
	Close() error
}

// LinkDownTime is how long a cable stays out so that a guest notices: one that
// runs sees it at once, an emulated one on a busy host within this.
const LinkDownTime = 500 * time.Millisecond

// GuestRouteProtocol marks a route in a guest as made by Drover: the number that
// Linux calls the route's protocol, from its range for users.
const GuestRouteProtocol = 215

// GuestAgent is what is known of a guest's agent.
type GuestAgent struct {
	// Answers is true when the agent answered; otherwise Fault says why not.
	Answers bool
	Fault   string
	Version string
	// Interfaces, Addresses, Hostname and Freeze say which methods will work:
	// Interfaces; AddAddress and DropAddress; SetHostname; Freeze and Thaw.
	Interfaces, Addresses, Hostname, Freeze bool
}

// GuestInterface is a network interface as the guest sees it.
type GuestInterface struct {
	Name string
	// MAC in lower case with colons.
	MAC string
	// Addresses with the length of their subnet, in the guest's order.
	Addresses []netip.Prefix
}

// GuestAddresses is what AddAddress does.
type GuestAddresses struct {
	// Prefixes are the new addresses with the length of their subnet, the
	// preferred one of each family first.
	Prefixes []netip.Prefix
	// Gateways are the new default gateways, one for a family at most.
	Gateways []netip.Addr
	// Primary makes new connections use Prefixes: each family's default route
	// leads to its gateway and has the first new address as its source, and the
	// subnets of the new addresses are on the link. What the interface had
	// before in these families stays for its sessions, as an address without a
	// subnet (IPv4) or a deprecated one (RFC 4862, 5.5.4; IPv6).
	//
	// Without it the new addresses are answered and nothing else changes: no
	// route, no source. Gateways must be empty then.
	Primary bool
}

// maxGuestAddresses bounds what one interface can have or be given.
const maxGuestAddresses = 64

// Validate reports what is wrong with a change as far as it alone can tell; the
// kind is drover.Invalid.
func (c GuestAddresses) Validate() error {
	const op = "guest addresses"
	if len(c.Prefixes) == 0 || len(c.Prefixes) > maxGuestAddresses {
		return drover.Errorf(drover.Invalid, op, "%d addresses: want 1 to %d", len(c.Prefixes), maxGuestAddresses)
	}
	seen := map[netip.Addr]bool{}
	families := map[bool]bool{}
	for _, p := range c.Prefixes {
		a := p.Addr()
		switch {
		case !p.IsValid(), !usable(a):
			return drover.Errorf(drover.Invalid, op, "%v: want the address of one host and the length of its subnet", p)
		case seen[a]:
			return drover.Errorf(drover.Invalid, op, "%v is named twice", a)
		}
		seen[a], families[a.Is4()] = true, true
	}
	if !c.Primary && len(c.Gateways) > 0 {
		return drover.Errorf(drover.Invalid, op, "a gateway without Primary: only the primary addresses have one")
	}
	gateways := map[bool]bool{}
	for _, g := range c.Gateways {
		switch {
		case !g.IsValid() || g.Is4In6() || g.IsUnspecified() || g.IsMulticast() || g.IsLoopback() || g.Zone() != "":
			return drover.Errorf(drover.Invalid, op, "gateway %v: want the address of one host", g)
		case seen[g]:
			return drover.Errorf(drover.Invalid, op, "gateway %v is the guest's own new address", g)
		case gateways[g.Is4()]:
			return drover.Errorf(drover.Invalid, op, "gateway %v: want one per address family", g)
		case !families[g.Is4()]:
			return drover.Errorf(drover.Invalid, op, "gateway %v: no new address of its family", g)
		}
		gateways[g.Is4()] = true
	}
	return nil
}

// usable reports whether an interface can be given the address.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast()
}

// CheckGuestAddress reports whether an address can be one of a guest's that
// these methods deal with; the kind is drover.Invalid.
func CheckGuestAddress(a netip.Addr) error {
	if !usable(a) {
		return drover.Errorf(drover.Invalid, "guest address", "%v: want the address of one host, not a link-local one", a)
	}
	return nil
}

// GuestMAC returns an Ethernet address in the form that GuestInterface has; the
// kind of an error is drover.Invalid.
func GuestMAC(text string) (string, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return "", drover.Errorf(drover.Invalid, "mac", "%q: want a unicast Ethernet address such as 52:54:00:00:00:01", text)
	}
	return mac.String(), nil
}

// maxHostname is the longest name that Linux takes.
const maxHostname = 64

// CheckGuestHostname reports what is wrong with a host name (RFC 1123, 2.1); the kind
// is drover.Invalid.
func CheckGuestHostname(name string) error {
	bad := drover.Errorf(drover.Invalid, "hostname", "%q: want letters, digits, dashes and dots, up to %d", name, maxHostname)
	if len(name) > maxHostname {
		return bad
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad
		}
		for _, c := range label {
			if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
				return bad
			}
		}
	}
	return nil
}

// Retarget says how a definition changes.
type Retarget struct {
	// NICs are the network cards that change, by MAC.
	NICs []RetargetNIC
	// Paths are files that are elsewhere: of disks, firmware variables, logs
	// of consoles. A disk that gets another path loses what the definition
	// says of the images below it: the new image says that itself.
	Paths map[string]string
	// Disks are those that are reached in another way from now on.
	Disks []RetargetDisk
	// Probe replaces where clients see whether the VM answers.
	Probe *drover.ProbeTarget
	// Network replaces what the kernel's command line says of the guest's
	// addresses.
	Network *GuestNetwork
	// Clone makes the definition that of another VM.
	Clone *RetargetClone
}

// RetargetNIC is a network card's change; what is empty stays.
type RetargetNIC struct {
	MAC string
	// Network is the bridge or network it is attached to from now on, in the
	// same way as it was.
	Network string
	// NewMAC is its address from now on. A running VM cannot be moved with it.
	NewMAC string
}

// RetargetDisk says where a disk is from now on: in a file, or at a socket.
type RetargetDisk struct {
	Target string // "vda"
	// Path and Format are the image's; empty Path: it is at Socket.
	Path, Format string
	// Socket is the path of a unix socket at which the disk's content is served
	// over NBD, under the name of its target. A guest whose requests are not
	// answered there waits, for a week at most.
	Socket string
}

// RemoteDiskWait is how long a guest waits for a disk at a socket at which nobody
// listens: longer than whoever looks after it is away, and no longer than anybody
// would wait for it.
const RemoteDiskWait = 7 * 24 * time.Hour

// RemoteDiskPath is how a disk at a socket is observed: drover.Disk's Path. Its
// format is raw, and it is shared.
func RemoteDiskPath(target string) string { return "nbd:" + target }

// RetargetClone is what makes a VM another one. Of a clone, every network card
// needs a new MAC, and every disk that can be written and is not shared another
// path; the probe of the original is left out unless Retarget has one.
type RetargetClone struct {
	Name, UUID string
}

// Validate reports what is wrong with a rule as far as it alone can tell; the
// kind is drover.Invalid.
func (r Retarget) Validate() error {
	const op = "retarget"
	seen := map[string]bool{}
	for _, n := range r.NICs {
		mac, err := GuestMAC(n.MAC)
		if err != nil {
			return err
		}
		if n.Network != "" && !networkName(n.Network) {
			return drover.Errorf(drover.Invalid, op, "network %q: want the name of a bridge or network", n.Network)
		}
		if seen[mac] {
			return drover.Errorf(drover.Invalid, op, "network card %s is named twice", mac)
		}
		seen[mac] = true
		if n.NewMAC == "" {
			continue
		}
		if mac, err = GuestMAC(n.NewMAC); err != nil {
			return err
		}
		if seen["new "+mac] {
			return drover.Errorf(drover.Invalid, op, "the new MAC %s is named twice", mac)
		}
		seen["new "+mac] = true
	}
	to := map[string]bool{}
	for from, path := range r.Paths {
		if !strings.HasPrefix(from, "/") || !strings.HasPrefix(path, "/") {
			return drover.Errorf(drover.Invalid, op, "path %q to %q: want absolute ones", from, path)
		}
		if to[path] {
			return drover.Errorf(drover.Invalid, op, "path %q for two files", path)
		}
		to[path] = true
	}
	if err := checkRetargetDisks(r.Disks); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	if r.Clone == nil {
		return nil
	}
	if err := drover.CheckName("vm", r.Clone.Name); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	if !isUUID(r.Clone.UUID) {
		return drover.E(drover.Invalid, op, fmt.Errorf("uuid %q: want one such as 6b1ab2ba-0d1c-4b1e-9b57-5c5b0a6d1f10", r.Clone.UUID))
	}
	return nil
}

func checkRetargetDisks(disks []RetargetDisk) error {
	seen := map[string]bool{}
	for _, d := range disks {
		if err := drover.CheckName("disk target", d.Target); err != nil {
			return err
		}
		switch {
		case seen[d.Target]:
			return fmt.Errorf("disk %s is named twice", d.Target)
		case (d.Path == "") == (d.Socket == ""):
			return fmt.Errorf("disk %s: path %q and socket %q: want one of the two", d.Target, d.Path, d.Socket)
		case !strings.HasPrefix(d.Path+d.Socket, "/"):
			return fmt.Errorf("disk %s: %q: want an absolute path", d.Target, d.Path+d.Socket)
		case d.Path != "" && d.Format != "qcow2" && d.Format != "raw":
			return fmt.Errorf("disk %s: format %q: want qcow2 or raw", d.Target, d.Format)
		}
		seen[d.Target] = true
	}
	return nil
}

// networkName reports whether a name can be a bridge's or a network's.
func networkName(s string) bool {
	return len(s) <= 255 && !strings.ContainsAny(s, " \t\r\n/\"'<>&") && s != "." && s != ".."
}

// isUUID reports whether s is a UUID in its usual form.
func isUUID(s string) bool {
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if !strings.ContainsRune("0123456789abcdefABCDEF", rune(c)) {
				return false
			}
		}
	}
	return len(s) == 36
}
