package agent

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// CheckTarget is the target's end of a preflight.
func (a agentService) CheckTarget(ctx context.Context, req *droverv1.CheckTargetRequest) (*droverv1.CheckTargetResponse, error) {
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	vm, source := api.VMFromProto(req.GetVm()), api.HostFromProto(req.GetSource())
	if err := drover.CheckName("vm.name", vm.Name); err != nil {
		return nil, err
	}
	if err := drover.CheckName("source.name", source.Name); err != nil {
		return nil, err
	}
	reached, stop := a.reachAside(ctx, "target-reaches-source", "clock", req.GetSourceAddress(), source.Name)
	defer stop()
	host, vms, err := a.observe(ctx)
	if err != nil {
		return nil, err
	}
	def := driver.Definition(req.GetDefinition())
	if c := req.GetClone(); c != nil {
		if def, err = a.cloneDefinition(vm.Name, vm.UUID, c); err != nil {
			return nil, err
		}
	}
	compatible, err := a.hyp.Compatible(ctx, def, source)
	if err != nil {
		return nil, err
	}
	same, backing := a.sameBacking(ctx, vm, req.GetBackingIds())
	checks := compatible
	checks = append(checks, clashChecks(a.config.Name, vm, vms)...)
	if !req.GetDisksStay() {
		checks = append(checks, backing, a.spaceCheck(ctx, vm, same), a.pathsCheck(ctx, vm))
	}
	checks = append(checks, a.freeCheck("no-other-move-target", vm.Name, vm.UUID),
		a.certificateCheck("certificate-target"))
	if req.GetClone() != nil && drover.Method(req.GetMethod()) == drover.Spawn {
		checks = append(checks, baseCheck(a.config.Name, vm, same))
	}
	checks = append(checks, reached()...)
	return &droverv1.CheckTargetResponse{Checks: api.ChecksToProto(checks), Host: api.HostToProto(host), SameBacking: same}, nil
}

// clashChecks look for the VM's name, identity and addresses among those here.
func clashChecks(here string, vm drover.VM, vms []drover.VM) []drover.Check {
	name := drover.Check{Name: "name-free", OK: true, Detail: fmt.Sprintf("no vm on %s is called %s", here, vm.Name)}
	uuid := drover.Check{Name: "uuid-free", OK: true, Detail: fmt.Sprintf("no vm on %s has UUID %s", here, vm.UUID)}
	mac := drover.Check{Name: "mac-free", OK: true, Detail: fmt.Sprintf("no vm on %s has one of its MAC addresses", here)}
	for _, other := range vms {
		if other.Name == vm.Name {
			name.OK, name.Detail = false, fmt.Sprintf("%s has a vm called %s (%s)", here, other.Name, other.State)
			name.Fix = "remove or rename that vm, or choose another host"
		}
		if other.UUID == vm.UUID {
			uuid.OK, uuid.Detail = false, fmt.Sprintf("vm %s on %s has the same UUID", other.Name, here)
			uuid.Fix = "give one of the two a UUID of its own: one was cloned from the other"
		}
		for _, n := range other.NICs {
			if slices.ContainsFunc(vm.NICs, func(m drover.NIC) bool { return strings.EqualFold(m.MAC, n.MAC) }) {
				mac.OK, mac.Detail = false, fmt.Sprintf("vm %s on %s has MAC address %s too", other.Name, here, n.MAC)
				mac.Fix = "give one of the two NICs a MAC address of its own"
			}
		}
	}
	return []drover.Check{name, uuid, mac}
}

// sameBacking says for each disk with a backing file whether this host holds
// the same content under the same path.
func (a *Agent) sameBacking(ctx context.Context, vm drover.VM, ids map[string][]byte) (map[string]bool, drover.Check) {
	same := make(map[string]bool)
	c := drover.Check{Name: "backing-files", OK: true, Detail: "no backing files"}
	var said []string
	for _, d := range vm.Disks {
		if len(d.Backing) == 0 || d.Shared || d.ReadOnly {
			continue
		}
		path := d.Backing[0].Path
		id, err := a.volumes.Identify(ctx, path)
		switch want := ids[path]; {
		case err != nil && drover.KindOf(err) == drover.NotFound:
			said = append(said, fmt.Sprintf("%s: %s is not here, so the whole content crosses (%s)", d.Target, path, d.VirtualBytes))
		case err != nil:
			said = append(said, fmt.Sprintf("%s: %v, so the whole content crosses (%s)", d.Target, err, d.VirtualBytes))
		case len(want) == 0 || !bytes.Equal(want, id[:]):
			said = append(said, fmt.Sprintf("%s: %s has another content here, so the whole content crosses (%s)", d.Target, path, d.VirtualBytes))
		default:
			same[d.Target] = true
			said = append(said, fmt.Sprintf("%s: %s is here too, so only what is above it crosses (%s)", d.Target, path, d.AllocatedBytes))
		}
	}
	if len(said) > 0 {
		c.Detail = strings.Join(said, "; ")
	}
	return same, c
}

// spaceCheck compares what the disks need with what their folders have: at
// least what is allocated now, and at most their virtual size.
func (a *Agent) spaceCheck(ctx context.Context, vm drover.VM, same map[string]bool) drover.Check {
	type need struct{ least, most drover.Bytes }
	needs := make(map[string]need)
	for _, d := range vm.Disks {
		if d.Shared || d.ReadOnly {
			continue
		}
		n := needs[filepath.Dir(d.Path)]
		least := d.AllocatedBytes
		if len(d.Backing) > 0 && !same[d.Target] {
			// How much of the backing file's content is not zeros is not known.
			least = d.VirtualBytes
		}
		n.least, n.most = n.least+least, n.most+max(least, d.VirtualBytes)
		needs[filepath.Dir(d.Path)] = n
	}
	c := drover.Check{Name: "disk-space", OK: true, Detail: "no disks to carry"}
	var said []string
	for dir, n := range needs {
		free, err := a.volumes.FreeBytes(ctx, filepath.Join(dir, "any"))
		if err != nil {
			return drover.Check{Name: c.Name, Detail: err.Error(), Fix: fmt.Sprintf("make %s a folder of host %s's volumes", dir, a.config.Name)}
		}
		free += a.remains.evictable(dir)
		said = append(said, fmt.Sprintf("%s has %s free; needed are %s, at most %s", dir, free, n.least, n.most))
		switch {
		case free < n.least:
			c.OK, c.Warning = false, false
			c.Fix = fmt.Sprintf("free %s in %s on host %s, or choose another host", n.least-free, dir, a.config.Name)
		case free < n.most && c.OK:
			c.OK, c.Warning = false, true
			c.Fix = fmt.Sprintf("the guest could fill its disks: %s more in %s on host %s would be safe", n.most-free, dir, a.config.Name)
		}
	}
	if len(said) > 0 {
		slices.Sort(said)
		c.Detail = strings.Join(said, "; ")
	}
	return c
}

// pathsCheck says whether the places of the new images are free.
func (a *Agent) pathsCheck(ctx context.Context, vm drover.VM) drover.Check {
	c := drover.Check{Name: "volume-paths", OK: true}
	var faults, said []string
	for _, d := range vm.Disks {
		_, err := a.volumes.Volume(ctx, d.Path)
		there := err == nil || fileThere(d.Path)
		switch {
		case d.Shared || d.ReadOnly:
			if !there {
				faults = append(faults, fmt.Sprintf("%s (%s) is not here, and is not carried because it is shared or read-only", d.Path, d.Target))
			}
		case there:
			faults = append(faults, fmt.Sprintf("%s (%s) is there already", d.Path, d.Target))
		case drover.KindOf(err) != drover.NotFound:
			faults = append(faults, fmt.Sprintf("%s (%s): %v", d.Path, d.Target, err))
		default:
			said = append(said, d.Path+" is free")
		}
	}
	if len(faults) > 0 {
		c.OK, c.Detail = false, strings.Join(faults, "; ")
		c.Fix = fmt.Sprintf("on host %s move or remove what is in the way, and put in place what is missing", a.config.Name)
		return c
	}
	if len(said) == 0 {
		said = append(said, "no disks to carry")
	}
	c.Detail = strings.Join(said, "; ")
	return c
}
