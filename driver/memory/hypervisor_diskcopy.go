package memory

import (
	"context"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var _ driver.DiskCopier = (*Hypervisor)(nil)

// diskOf returns a running guest's disk; the fleet's lock is held.
func (h *Hypervisor) diskOf(op, name, target string) (*guest, *drover.Disk, error) {
	g, err := h.find(op+" of "+name, name)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(g.vm.Disks, func(d drover.Disk) bool { return d.Target == target })
	if i < 0 {
		return nil, nil, drover.Errorf(drover.NotFound, op+" of "+name, "it has no disk %s", target)
	}
	return g, &g.vm.Disks[i], nil
}

// CopyDisk begins a copy, which is ready at once.
func (h *Hypervisor) CopyDisk(ctx context.Context, name string, c driver.DiskCopy) error {
	const op = "copy disk"
	return h.call(ctx, op, name, func() error {
		g, d, err := h.diskOf(op, name, c.Target)
		if err != nil {
			return err
		}
		old, copying := g.copies[c.Target]
		switch {
		case !active(g.state):
			return drover.Errorf(drover.Refused, op, "%s is off", name)
		case copying && old.Path != c.Path:
			return drover.Errorf(drover.Refused, op, "%s is being copied to %s", c.Target, old.Path)
		case copying:
			return nil
		}
		if g.copies == nil {
			g.copies = map[string]driver.DiskCopy{}
		}
		g.copies[c.Target] = c
		h.fleet.disks[image{h.host.Name, c.Path}] = h.fleet.disks[imageOf(h.host.Name, g.vm, *d)]
		return nil
	})
}

func (g *guest) copyOf(op, target string) (driver.DiskCopy, error) {
	c, ok := g.copies[target]
	if !ok {
		return c, drover.Errorf(drover.NotFound, op, "%s is not being copied", target)
	}
	return c, nil
}

// DiskCopyState observes a copy.
func (h *Hypervisor) DiskCopyState(ctx context.Context, name, target string) (driver.DiskCopyState, error) {
	const op = "observe disk copy"
	var s driver.DiskCopyState
	return s, h.call(ctx, op, name, func() error {
		g, d, err := h.diskOf(op, name, target)
		if err != nil {
			return err
		}
		c, err := g.copyOf(op, target)
		if err == nil {
			s = driver.DiskCopyState{Path: c.Path, DoneBytes: d.VirtualBytes, TotalBytes: d.VirtualBytes, Ready: true}
		}
		return err
	})
}

// SetDiskCopyRate changes nothing: a copy takes no time.
func (h *Hypervisor) SetDiskCopyRate(ctx context.Context, name, target string, _ drover.BitRate) error {
	const op = "pace disk copy"
	return h.call(ctx, op, name, func() error {
		g, _, err := h.diskOf(op, name, target)
		if err == nil {
			_, err = g.copyOf(op, target)
		}
		return err
	})
}

// EndDiskCopy ends a copy.
func (h *Hypervisor) EndDiskCopy(ctx context.Context, name, target string, pivot bool) error {
	const op = "end disk copy"
	err := h.call(ctx, op, name, func() error {
		g, d, err := h.diskOf(op, name, target)
		if err != nil {
			return err
		}
		c, err := g.copyOf(op, target)
		if err != nil {
			return err
		}
		delete(g.copies, target)
		if !pivot {
			return nil
		}
		h.fleet.disks[image{h.host.Name, c.Path}] = h.fleet.disks[imageOf(h.host.Name, g.vm, *d)]
		was := d.Path
		disks := []*drover.Disk{d}
		if g.next != nil {
			for i := range g.next.Disks {
				if n := &g.next.Disks[i]; n.Target == target && n.Path == was {
					disks = append(disks, n)
				}
			}
		}
		for _, d := range disks {
			d.Path, d.Format, d.Shared, d.Backing = c.Path, c.Format, false, nil
		}
		h.occupy(g)
		return nil
	})
	if !pivot && err != nil && drover.KindOf(err) == drover.NotFound {
		return nil
	}
	return err
}
