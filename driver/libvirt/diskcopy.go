package libvirt

import (
	"context"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// A copy is libvirt's block copy (virDomainBlockCopy), QEMU's mirror job. Libvirt
// takes it of a persistent VM as a transient job only, one that it does not take up
// again after the VM's execution has ended. On the pivot it rewrites the live
// definition, and the persistent one where that named the same source.

var _ driver.DiskCopier = (*Hypervisor)(nil)

// CopyDisk begins a block copy into an image that exists.
func (h *Hypervisor) CopyDisk(ctx context.Context, name string, c driver.DiskCopy) error {
	text, err := (&libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: c.Format},
		Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: c.Path}},
	}).Marshal()
	if err != nil {
		return drover.E(drover.Internal, "copy disk "+c.Target+" of "+name, err)
	}
	return h.onDomain(ctx, "copy disk "+c.Target+" of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
		disk, err := liveDisk(rpc, dom, c.Target)
		if err != nil {
			return err
		}
		if m := disk.Mirror; m != nil {
			if m.Job == "copy" && pathOf(m.Source) == c.Path {
				return nil
			}
			return drover.Errorf(drover.Refused, "", "it is being copied to %s", pathOf(m.Source))
		}
		var params []golibvirt.TypedParam
		if c.Rate > 0 {
			params = append(params, golibvirt.TypedParam{
				Field: golibvirt.DomainBlockCopyBandwidth, Value: *golibvirt.NewTypedParamValueUllong(bytesPerSecond(c.Rate)),
			})
		}
		return rpc.DomainBlockCopy(dom, c.Target, text, params, golibvirt.DomainBlockCopyReuseExt|golibvirt.DomainBlockCopyTransientJob)
	})
}

// bytesPerSecond rounds down, but not to zero, which is unlimited.
func bytesPerSecond(rate drover.BitRate) uint64 {
	if rate <= 0 {
		return 0
	}
	return max(1, uint64(rate)/8)
}

// liveDisk reads how a running VM has a disk.
func liveDisk(rpc *golibvirt.Libvirt, dom golibvirt.Domain, target string) (*libvirtxml.DomainDisk, error) {
	text, err := rpc.DomainGetXMLDesc(dom, 0)
	if err != nil {
		return nil, err
	}
	def, err := parseDomain(text)
	if err != nil {
		return nil, err
	}
	if def.Devices != nil {
		for i, d := range def.Devices.Disks {
			if d.Target != nil && d.Target.Dev == target {
				return &def.Devices.Disks[i], nil
			}
		}
	}
	return nil, drover.Errorf(drover.NotFound, "", "it has no disk %s", target)
}

// copyOf reads a disk's copy under way.
func copyOf(rpc *golibvirt.Libvirt, dom golibvirt.Domain, target string) (*libvirtxml.DomainDiskMirror, error) {
	disk, err := liveDisk(rpc, dom, target)
	if err != nil {
		return nil, err
	}
	if disk.Mirror == nil || disk.Mirror.Job != "copy" {
		return nil, errNoCopy(target)
	}
	return disk.Mirror, nil
}

func errNoCopy(target string) error {
	return drover.Errorf(drover.NotFound, "", "disk %s is not being copied", target)
}

// DiskCopyState asks libvirt for the job.
func (h *Hypervisor) DiskCopyState(ctx context.Context, name, target string) (driver.DiskCopyState, error) {
	return askDomain(ctx, h, "observe the copy of disk "+target+" of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (driver.DiskCopyState, error) {
		mirror, err := copyOf(rpc, dom, target)
		if err != nil {
			return driver.DiskCopyState{}, err
		}
		found, _, _, done, total, err := rpc.DomainGetBlockJobInfo(dom, target, 0)
		if err != nil {
			return driver.DiskCopyState{}, err
		}
		if found == 0 {
			return driver.DiskCopyState{}, errNoCopy(target)
		}
		return driver.DiskCopyState{
			Path: pathOf(mirror.Source), DoneBytes: drover.Bytes(done), TotalBytes: drover.Bytes(total), Ready: mirror.Ready == "yes",
		}, nil
	})
}

// SetDiskCopyRate sets the job's speed.
func (h *Hypervisor) SetDiskCopyRate(ctx context.Context, name, target string, rate drover.BitRate) error {
	return h.onDomain(ctx, "pace the copy of disk "+target+" of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
		if _, err := copyOf(rpc, dom, target); err != nil {
			return err
		}
		return rpc.DomainBlockJobSetSpeed(dom, target, bytesPerSecond(rate), golibvirt.DomainBlockJobSpeedBandwidthBytes)
	})
}

// EndDiskCopy ends the job; the call returns when it has ended.
func (h *Hypervisor) EndDiskCopy(ctx context.Context, name, target string, pivot bool) error {
	err := h.onDomain(ctx, "end the copy of disk "+target+" of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
		mirror, err := copyOf(rpc, dom, target)
		if err != nil {
			return err
		}
		var flags golibvirt.DomainBlockJobAbortFlags
		if pivot {
			if mirror.Ready != "yes" {
				return drover.E(drover.Refused, "", fmt.Errorf("the copy to %s is not ready", pathOf(mirror.Source)))
			}
			flags = golibvirt.DomainBlockJobAbortPivot
		}
		return rpc.DomainBlockJobAbort(dom, target, flags)
	})
	if !pivot && drover.KindOf(err) == drover.NotFound && err != nil {
		return nil
	}
	return err
}
