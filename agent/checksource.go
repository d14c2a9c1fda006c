package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// CheckSource is the source's end of a preflight.
func (a agentService) CheckSource(ctx context.Context, req *droverv1.CheckSourceRequest) (*droverv1.CheckSourceResponse, error) {
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	if err := drover.CheckName("vm", req.GetVm()); err != nil {
		return nil, err
	}
	reached, stop := a.reachAside(ctx, "source-reaches-target", "clock-source", req.GetTargetAddress(), req.GetTargetHost())
	defer stop()
	vm, err := a.hyp.VM(ctx, req.GetVm())
	if err != nil {
		return nil, err
	}
	a.fillVM(ctx, &vm)
	host, _, err := a.observe(ctx)
	if err != nil {
		return nil, err
	}
	def, err := a.hyp.Definition(ctx, vm.Name)
	if err != nil {
		return nil, err
	}
	ids, backing := a.backingIDs(ctx, vm)
	checks := []drover.Check{
		stateCheck(vm, drover.Method(req.GetMethod())),
		a.disksCheck(ctx, vm),
		backing,
		a.freeCheck("no-other-move", vm.Name, vm.UUID),
		a.certificateCheck("certificate-source"),
	}
	if m := drover.Method(req.GetMethod()); m == drover.Warm || m == drover.Redirect {
		more, err := a.warmChecks(ctx, vm)
		if err != nil {
			return nil, err
		}
		if checks = append(checks, more...); m == drover.Redirect {
			checks = append(checks, a.freezeCheck(ctx, vm))
		}
	}
	checks = append(checks, reached()...)
	resp := &droverv1.CheckSourceResponse{Vm: api.VMToProto(vm), Host: api.HostToProto(host), BackingIds: ids}
	if drover.Method(req.GetMethod()) == drover.Renumber {
		resp.GuestAgent, resp.GuestFault = a.guestCheck(ctx, vm)
	}
	if def, err = a.retargeted(def, req.GetRetarget()); err != nil {
		return nil, err
	}
	resp.Checks, resp.Definition = api.ChecksToProto(checks), def
	return resp, nil
}

// stateCheck says whether the VM is in a state that the method can start from.
func stateCheck(vm drover.VM, m drover.Method) drover.Check {
	c := drover.Check{Name: "vm-state", OK: true, Detail: fmt.Sprintf("vm %s is %s", vm.Name, vm.State)}
	switch {
	case !vm.Persistent:
		c.OK, c.Detail = false, fmt.Sprintf("vm %s is transient: it is gone when it stops", vm.Name)
		c.Fix = fmt.Sprintf("define vm %s, so that it has a configuration to come back to", vm.Name)
	case slices.Contains([]drover.Method{drover.Live, drover.Stretch, drover.Route, drover.Renumber, drover.Warm}, m) && vm.State != drover.VMRunning:
		c.OK = false
		c.Fix = fmt.Sprintf("start or resume vm %s, or move it cold", vm.Name)
	case vm.State == drover.VMCrashed:
		c.OK = false
		c.Fix = fmt.Sprintf("look into why vm %s crashed, and restart it", vm.Name)
	}
	return c
}

// disksCheck says whether every disk can be carried.
func (a *Agent) disksCheck(ctx context.Context, vm drover.VM) drover.Check {
	c := drover.Check{Name: "disk-formats", OK: true}
	var said, faults []string
	for _, d := range vm.Disks {
		switch {
		case d.Shared:
			said = append(said, d.Target+" is shared and stays where it is")
			continue
		case d.ReadOnly:
			said = append(said, d.Target+" is read-only and has to be at the target already")
			continue
		case d.Format != "qcow2" && d.Format != "raw":
			faults = append(faults, fmt.Sprintf("%s has format %q", d.Target, d.Format))
			continue
		}
		if _, err := a.volumes.Volume(ctx, d.Path); err != nil {
			faults = append(faults, fmt.Sprintf("%s: %v", d.Target, err))
			continue
		}
		said = append(said, fmt.Sprintf("%s: %s, %s of %s", d.Target, d.Format, d.AllocatedBytes, d.VirtualBytes))
	}
	if len(faults) > 0 {
		c.OK, c.Detail = false, strings.Join(faults, "; ")
		c.Fix = fmt.Sprintf("keep the disks as qcow2 or raw images in %s", strings.Join(a.config.Volumes, ", "))
		return c
	}
	if len(said) == 0 {
		said = append(said, "no disks")
	}
	c.Detail = strings.Join(said, "; ")
	return c
}

// backingIDs identifies the nearest backing file of each disk. Its content as
// the guest sees it includes what lies below.
func (a *Agent) backingIDs(ctx context.Context, vm drover.VM) (map[string][]byte, drover.Check) {
	ids := make(map[string][]byte)
	c := drover.Check{Name: "backing-source", OK: true, Detail: "no backing files"}
	var said []string
	for _, d := range vm.Disks {
		if len(d.Backing) == 0 || d.Shared || d.ReadOnly {
			continue
		}
		path := d.Backing[0].Path
		id, err := a.volumes.Identify(ctx, path)
		if err != nil {
			c.OK, c.Detail = false, fmt.Sprintf("%s: %v", d.Target, err)
			c.Fix = fmt.Sprintf("make %s readable and keep it in %s", path, strings.Join(a.config.Volumes, ", "))
			return ids, c
		}
		ids[path] = id[:]
		said = append(said, fmt.Sprintf("%s: %s is %x", d.Target, path, id[:6]))
	}
	if len(said) > 0 {
		c.Detail = strings.Join(said, "; ")
	}
	return ids, c
}

// freeCheck says whether a move has the VM.
func (a *Agent) freeCheck(name, vm, uuid string) drover.Check {
	err := a.journal.db.View(func(tx *bbolt.Tx) error {
		return vacant(tx, moveRef{vm: vm, uuid: uuid})
	})
	if err != nil {
		return drover.Check{Name: name, Detail: err.Error(), Fix: "wait for that move to end, or cancel it"}
	}
	return drover.Check{Name: name, OK: true, Detail: fmt.Sprintf("no move has vm %s on host %s", vm, a.config.Name)}
}
