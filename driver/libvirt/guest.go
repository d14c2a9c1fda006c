package libvirt

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Guests reaches into a host's VMs: through QEMU's guest agent where one
// answers, and through the link state of their network cards. It has a
// connection to libvirtd of its own, so that an agent that hangs holds up
// nobody but other agents.
type Guests struct {
	h *Hypervisor
}

var _ driver.Guests = (*Guests)(nil)

// NewGuests returns the guests of the host whose manager listens at socket
// (empty: DefaultSocket). It connects on the first call, as New does.
func NewGuests(log *slog.Logger, socket string) *Guests { return &Guests{h: New(log, socket)} }

// Close drops the connection; calls that are running end with drover.Canceled
// or drover.Unavailable.
func (g *Guests) Close() error { return g.h.Close() }

// Agent asks the agent what it can do, and tries whether the guest has the
// programs that the other methods need.
func (g *Guests) Agent(ctx context.Context, vm string) (driver.GuestAgent, error) {
	var info struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	err := g.command(ctx, "ask agent of", vm, "guest-info", nil, &info, agentLimit)
	if fault, ok := agentFaultOf(err); ok {
		return driver.GuestAgent{Fault: fault.Error()}, nil
	}
	if err != nil {
		return driver.GuestAgent{}, err
	}
	can := func(names ...string) bool {
		for _, name := range names {
			found := false
			for _, c := range info.Commands {
				found = found || c.Name == name && c.Enabled
			}
			if !found {
				return false
			}
		}
		return true
	}
	agent := driver.GuestAgent{
		Answers:    true,
		Version:    info.Version,
		Interfaces: can("guest-network-get-interfaces"),
		Freeze:     can("guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"),
	}
	if !can("guest-exec", "guest-exec-status") {
		return agent, nil
	}
	runs := func(program string, args ...string) bool {
		if err == nil {
			err = g.run(ctx, vm, "", program, args...)
			if err == nil {
				return true
			}
			if _, ok := agentFaultOf(err); ok {
				err = nil // the guest does not have it
			}
		}
		return false
	}
	// A batch without commands: other programs of that name know no batches.
	agent.Addresses = agent.Interfaces && runs(ipProgram, "-batch", "-")
	agent.Hostname = runs(hostnameProgram)
	return agent, err
}

// Interfaces asks the agent.
func (g *Guests) Interfaces(ctx context.Context, vm string) ([]driver.GuestInterface, error) {
	var reply []agentInterface
	if err := g.command(ctx, "list interfaces of", vm, "guest-network-get-interfaces", nil, &reply, agentLimit); err != nil {
		return nil, err
	}
	list, err := interfacesOf(reply)
	if err != nil {
		return nil, drover.E(drover.Refused, "list interfaces of "+vm, err)
	}
	return list, nil
}

// AddAddress runs the guest's ip(8) once, with all changes in a batch.
func (g *Guests) AddAddress(ctx context.Context, vm, mac string, change driver.GuestAddresses) error {
	if err := change.Validate(); err != nil {
		return err
	}
	nic, err := g.nic(ctx, vm, mac)
	if err != nil {
		return err
	}
	return g.batch(ctx, "change addresses of", vm, addPlan(nic.Name, nic.Addresses, change))
}

// DropAddress runs ip(8) likewise.
func (g *Guests) DropAddress(ctx context.Context, vm, mac string, address netip.Addr) error {
	if err := driver.CheckGuestAddress(address); err != nil {
		return err
	}
	nic, err := g.nic(ctx, vm, mac)
	if err != nil {
		return err
	}
	if !hasAddress(nic.Addresses, address) {
		return nil
	}
	if !slices.ContainsFunc(nic.Addresses, func(p netip.Prefix) bool {
		return p.Addr() != address && p.Addr().Is4() == address.Is4()
	}) {
		return drover.Errorf(drover.Refused, "drop address of "+vm, "%s is the last one of its family on %s", address, nic.Name)
	}
	return g.batch(ctx, "drop address of", vm, dropPlan(nic.Name, nic.Addresses, address))
}

// nic finds the guest's interface with that MAC. Where several have it (a bridge
// or a bond in the guest), it is the one with addresses.
func (g *Guests) nic(ctx context.Context, vm, mac string) (driver.GuestInterface, error) {
	var found driver.GuestInterface
	mac, err := driver.GuestMAC(mac)
	if err != nil {
		return found, err
	}
	all, err := g.Interfaces(ctx, vm)
	if err != nil {
		return found, err
	}
	for _, i := range all {
		if i.MAC == mac && (found.Name == "" || len(found.Addresses) == 0) {
			found = i
		}
	}
	if found.Name == "" {
		return found, drover.Errorf(drover.NotFound, "find interface of "+vm, "the guest has none with MAC %s", mac)
	}
	return found, nil
}

func (g *Guests) batch(ctx context.Context, op, vm string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	if err := g.run(ctx, vm, strings.Join(lines, "\n")+"\n", ipProgram, "-batch", "-"); err != nil {
		return wrap(op+" "+vm, err)
	}
	return nil
}

// SetHostname runs hostname(1).
func (g *Guests) SetHostname(ctx context.Context, vm, hostname string) error {
	if err := driver.CheckGuestHostname(hostname); err != nil {
		return err
	}
	return wrap("name guest of "+vm, g.run(ctx, vm, "", hostnameProgram, hostname))
}

// frozen is what the agent says of file systems that are.
const frozen = "frozen"

// Freeze asks the agent, which refuses to do it twice.
func (g *Guests) Freeze(ctx context.Context, vm string) error {
	const op = "freeze"
	var status string
	if err := g.command(ctx, op, vm, "guest-fsfreeze-status", nil, &status, agentLimit); err != nil || status == frozen {
		return err
	}
	return g.command(ctx, op, vm, "guest-fsfreeze-freeze", nil, nil, freezeLimit)
}

// Thaw asks the agent. A guest without file systems to freeze, or without a VM
// that runs, has nothing to thaw.
func (g *Guests) Thaw(ctx context.Context, vm string) error {
	const op = "thaw"
	var status string
	err := g.command(ctx, op, vm, "guest-fsfreeze-status", nil, &status, agentLimit)
	if err == nil && status == frozen {
		err = g.command(ctx, op, vm, "guest-fsfreeze-thaw", nil, nil, freezeLimit)
	}
	if notFound(err) {
		return nil
	}
	if err == nil {
		return nil
	}
	if active, stateErr := g.active(ctx, vm); notFound(stateErr) || stateErr == nil && !active {
		return nil
	}
	return err
}

func (g *Guests) active(ctx context.Context, vm string) (bool, error) {
	return askDomain(ctx, g.h, "observe", vm, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (bool, error) {
		active, err := rpc.DomainIsActive(dom)
		return active != 0, err
	})
}

// SetLink changes the link state of the running VM's network card. In its
// stored definition the link stays up, so that the next start heals it.
func (g *Guests) SetLink(ctx context.Context, vm, mac string, up bool) error {
	mac, err := driver.GuestMAC(mac)
	if err != nil {
		return err
	}
	return g.h.onDomain(ctx, "set link of", vm, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
		text, err := rpc.DomainGetXMLDesc(dom, golibvirt.DomainXMLSecure)
		if err != nil {
			return err
		}
		device, err := linkXML(text, mac, up)
		if err != nil || device == "" {
			return err
		}
		return rpc.DomainUpdateDeviceFlags(dom, device, golibvirt.DomainDeviceModifyLive)
	})
}

// linkXML returns the network card's element with the link state asked for, or
// "" when it has that already.
func linkXML(domain, mac string, up bool) (string, error) {
	root, err := parseXML([]byte(domain))
	if err != nil {
		return "", err
	}
	nic := interfaceByMAC(root, mac)
	if nic == nil {
		return "", drover.Errorf(drover.NotFound, "", "it has no network card with MAC %s", mac)
	}
	state := "down"
	if up {
		state = "up"
	}
	link := nic.child("link")
	switch {
	case link == nil && up, link != nil && link.attr("state") == state:
		return "", nil
	case link == nil:
		nic.add(fmt.Sprintf("<link state='%s'/>", state))
	default:
		link.setAttr("state", state)
	}
	return nic.String(), nil
}
