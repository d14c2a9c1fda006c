package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// A VM that is made here out of another's definition is, to this host, the move's
// VM: reserved, given volumes, defined, started and committed under its own name
// and UUID, and taken back as any other. What differs is where the definition
// comes from (below), and at the source how its disks are read (clonecopy.go).

// needGuests refuses what cannot be done without a driver of guests.
func (a *Agent) needGuests() (driver.Guests, error) {
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	if a.guests.guests == nil {
		return nil, drover.Errorf(drover.Refused, "host "+a.config.Name, "its agent cannot rewrite definitions: it has no driver of guests")
	}
	return a.guests.guests, nil
}

// cloneDefinition makes a definition that of another VM.
func (a *Agent) cloneDefinition(name, uuid string, c *droverv1.CloneDefinition) (driver.Definition, error) {
	op := "make vm " + name
	guests, err := a.needGuests()
	if err != nil {
		return nil, err
	}
	if len(c.GetDefinition()) == 0 {
		return nil, drover.Errorf(drover.Invalid, op, "definition: missing")
	}
	to := driver.Retarget{
		Paths: c.GetPaths(), Probe: api.OptionalProbeFromProto(c.GetProbe()),
		Clone: &driver.RetargetClone{Name: name, UUID: uuid}, Network: &driver.GuestNetwork{Hostname: name},
	}
	for _, n := range c.GetNics() {
		to.NICs = append(to.NICs, driver.RetargetNIC{MAC: n.GetMac(), Network: n.GetNetwork(), NewMAC: n.GetNewMac()})
	}
	if to.Network.Addresses, err = api.ParsePrefixes("addresses", c.GetAddresses()); err != nil {
		return nil, err
	}
	if to.Network.Gateways, err = api.ParseAddresses("gateways", c.GetGateways()); err != nil {
		return nil, err
	}
	def, err := guests.Retarget(c.GetDefinition(), to)
	if err != nil {
		return nil, drover.E(drover.KindOf(err), op, err)
	}
	return def, nil
}

// defineClone makes the new VM's definition known here.
func (a *Agent) defineClone(ctx context.Context, j *job, ref moveRef, m *droverv1.DefineClone) (*droverv1.RunResult, error) {
	def, err := a.cloneDefinition(ref.vm, ref.uuid, m.GetClone())
	if err != nil {
		return nil, err
	}
	return a.define(ctx, j, ref, &droverv1.Define{Definition: def})
}

// freezeCheck says whether a copy of a running VM's disks will be one that its
// file systems know as whole.
func (a *Agent) freezeCheck(ctx context.Context, vm drover.VM) drover.Check {
	c := drover.Check{Name: "disk-freeze", OK: true, Detail: "its guest agent freezes its file systems for the moment that the copy is of"}
	if vm.State != drover.VMRunning {
		c.Detail = fmt.Sprintf("vm %s is %s", vm.Name, vm.State)
		return c
	}
	guests, err := a.needGuests()
	var known driver.GuestAgent
	if err == nil {
		known, err = guests.Agent(ctx, vm.Name)
	}
	switch {
	case err != nil:
		c.Detail = err.Error()
	case !known.Answers:
		c.Detail = "no guest agent answers: " + known.Fault
	case !known.Freeze:
		c.Detail = "its guest agent cannot freeze file systems"
	default:
		return c
	}
	c.OK, c.Warning = false, true
	c.Detail += ", so the copy is as after a power cut"
	c.Fix = "run a guest agent in it, or begin with fresh disks"
	return c
}

// baseCheck says whether the disks have golden images here to begin above. One
// without begins empty, where the VM begins from something else: another disk, or
// a kernel of its host's.
func baseCheck(here string, vm drover.VM, same map[string]bool) drover.Check {
	c := drover.Check{Name: "base-image", OK: true}
	boots := len(vm.Files) > 0 || slices.ContainsFunc(vm.Disks, func(d drover.Disk) bool { return len(d.Backing) > 0 })
	var said, faults, missing []string
	for _, d := range vm.Disks {
		switch {
		case d.Shared || d.ReadOnly:
		case len(d.Backing) == 0 && boots:
			c.OK, c.Warning = false, true
			c.Fix = "take redirect without fresh disks, if its content is needed"
			said = append(said, fmt.Sprintf("%s begins empty: it has no image below it", d.Target))
		case len(d.Backing) == 0:
			faults = append(faults, fmt.Sprintf("%s has no image below it to begin from", d.Target))
		case !same[d.Target]:
			faults = append(faults, fmt.Sprintf("%s: %s is not here with the same content", d.Target, d.Backing[0].Path))
			missing = append(missing, d.Backing[0].Path)
		default:
			said = append(said, fmt.Sprintf("%s begins above %s", d.Target, d.Backing[0].Path))
		}
	}
	if len(faults) == 0 {
		if len(said) == 0 {
			said = append(said, "no disks to make")
		}
		c.Detail = strings.Join(said, "; ")
		return c
	}
	c.OK, c.Warning, c.Detail = false, false, strings.Join(faults, "; ")
	c.Fix = "take redirect without fresh disks, or warm"
	if len(missing) > 0 {
		c.Fix = fmt.Sprintf("copy %s to host %s", strings.Join(missing, ", "), here)
	}
	return c
}
