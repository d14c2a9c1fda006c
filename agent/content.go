package agent

import (
	"context"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/wan"
)

// imagesEvery is how often the backing files of the VMs here are looked at: they
// change when a VM is made or has come.
const imagesEvery = 15 * time.Second

// contentFolder is where the data path keeps what it knows, below the state's.
const contentFolder = "content"

// subject is whose content a move carries.
func (r *record) subject() wan.Subject {
	return wan.Subject{Move: r.Move, VM: r.VMUUID, Tenant: r.Tenant}
}

// knowImages tells the data path of the backing files that the VMs here stand
// on, until ctx ends: both ends of a move having one, its blocks need not cross.
func (a *Agent) knowImages(ctx context.Context) {
	if a.edge() {
		return
	}
	for {
		// Taken before looking, so that what changes meanwhile is looked at next.
		changed := a.observer.next()
		if err := a.knowImagesOnce(ctx); err != nil && ctx.Err() == nil {
			a.log.Debug("backing files are not all known", "err", err)
		}
		// Events come in bursts.
		if sleep(ctx, time.Second, nil) != nil || sleep(ctx, imagesEvery, changed) != nil {
			return
		}
	}
}

func (a *Agent) knowImagesOnce(ctx context.Context) error {
	all, err := a.hyp.List(ctx)
	if err != nil {
		return err
	}
	for _, vm := range all {
		tenant := vm.Labels[a.config.tenantLabel()]
		for _, d := range vm.Disks {
			for _, b := range d.Backing {
				if err := a.knowImage(ctx, tenant, b.Path); err != nil {
					a.log.Debug("backing file is not known", "vm", vm.Name, "path", b.Path, "err", err)
				}
			}
		}
	}
	return nil
}

// knowImage tells the data path of one image that nothing writes to.
func (a *Agent) knowImage(ctx context.Context, tenant, path string) error {
	v, err := a.volumes.Volume(ctx, path)
	if err != nil {
		return err
	}
	id, err := a.volumes.Identify(ctx, path)
	if err != nil {
		return err
	}
	return a.wan.AddImage(ctx, tenant, id, v.VirtualBytes, func(ctx context.Context) (driver.ImageReader, error) {
		return a.volumes.OpenRead(ctx, path, false)
	})
}

// offer is what a source may refer to here.
func (a *Agent) offer(ctx context.Context, s wan.Subject, disks []*droverv1.DiskPlan) []wan.Source {
	for _, d := range disks {
		if d.GetBackingPath() == "" {
			continue
		}
		if err := a.knowImage(ctx, s.Tenant, d.GetBackingPath()); err != nil {
			// Its content crosses then.
			a.log.Warn("backing file is of no use to the data path", "path", d.GetBackingPath(), "err", err)
		}
	}
	return a.wan.Offer(s)
}

func sourcesToProto(all []wan.Source) []*droverv1.ContentSource {
	out := make([]*droverv1.ContentSource, 0, len(all))
	for _, s := range all {
		out = append(out, &droverv1.ContentSource{Id: s.ID[:], Kind: uint32(s.Kind), Blocks: s.Blocks})
	}
	return out
}

func sourcesFromProto(all []*droverv1.ContentSource) ([]wan.Source, error) {
	out := make([]wan.Source, 0, len(all))
	for i, s := range all {
		if len(s.GetId()) != 32 || s.GetKind() > 255 {
			return nil, drover.Errorf(drover.Invalid, "sources", "source %d has an id of %d bytes and kind %d, want 32 and a byte", i, len(s.GetId()), s.GetKind())
		}
		out = append(out, wan.Source{ID: [32]byte(s.GetId()), Kind: uint8(s.GetKind()), Blocks: s.GetBlocks()})
	}
	return out, nil
}

// knowRemains tells the data path of the disks that are kept aside, as they
// come and go.
func (a *Agent) knowRemains() error {
	return a.remains.hooks(
		func(r remain) {
			s := wan.Subject{Move: r.Move, VM: r.VMUUID, Tenant: r.Tenant}
			err := a.wan.AddRemains(context.Background(), s, r.Target, r.VirtualBytes, func(ctx context.Context) (driver.ImageReader, error) {
				return a.volumes.OpenRead(ctx, r.Path, false)
			})
			if err != nil {
				a.log.Warn("what is kept of a vm is of no use to the data path", "vm", r.VM, "disk", r.Target, "err", err)
			}
		},
		func(r remain) { a.wan.ForgetRemains(r.Move, r.VMUUID, r.Target) },
	)
}

// library is what the metrics tell of the data path's content.
func (a *Agent) library() libraryFigures {
	s := a.wan.LibraryStats()
	return libraryFigures{
		Bytes: drover.Bytes(s.Bytes), LimitBytes: drover.Bytes(s.LimitBytes),
		Sources:       map[string]int{"image": s.Images, "memory": s.Memories, "disk": s.Disks},
		IndexedBlocks: s.IndexedBlocks, BacklogBlocks: s.BacklogBlocks, Evicted: s.Evicted,
	}
}
