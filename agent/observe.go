package agent

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

const (
	// observeEvery is the longest a watcher waits for news of what sends no
	// event: free memory and space, counters.
	observeEvery = 3 * time.Second
	// coalesce is how long events are gathered before the host is observed
	// again: a start or a move sends a handful within it.
	coalesce = 100 * time.Millisecond
	// observeLimit bounds one observation; libvirt may be stuck in one VM.
	observeLimit = 20 * time.Second
	// rewatch is the wait before listening again to a manager that went away.
	rewatch = time.Second
)

// observer listens to the hypervisor's events for all watchers.
type observer struct {
	a *Agent

	mu      sync.Mutex
	changed chan struct{} // closed at the next event
	paused  map[string]time.Time
	running map[string]time.Time
}

func newObserver(a *Agent) *observer {
	return &observer{
		a: a, changed: make(chan struct{}),
		paused: make(map[string]time.Time), running: make(map[string]time.Time),
	}
}

// run listens until ctx ends.
func (o *observer) run(ctx context.Context) error {
	if o.a.edge() {
		return nil
	}
	for {
		events, err := o.a.hyp.Watch(ctx)
		if err != nil {
			o.a.log.Debug("cannot watch the hypervisor", "err", err)
		} else {
			for e := range events {
				o.note(e.Name, e.What, e.At)
			}
		}
		if sleep(ctx, rewatch, nil) != nil {
			return nil
		}
	}
}

func (o *observer) note(vm, what string, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch what {
	case "suspended":
		o.paused[vm] = at
	case "resumed", "started":
		o.running[vm] = at
	case "undefined":
		delete(o.paused, vm)
		delete(o.running, vm)
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

// next is closed at the next event.
func (o *observer) next() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// stopped is when the VM was paused, as far as an event since has said so,
// else now.
func (o *observer) stopped(vm string, since time.Time) time.Time {
	return o.when(o.paused, vm, since)
}

// resumed is when the VM began to run, likewise.
func (o *observer) resumed(vm string, since time.Time) time.Time {
	return o.when(o.running, vm, since)
}

// pausedSince is when the VM was paused, if an event since has said so.
func (o *observer) pausedSince(vm string, since time.Time) (time.Time, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	at, ok := o.paused[vm]
	return at, ok && !at.Before(since)
}

func (o *observer) when(of map[string]time.Time, vm string, since time.Time) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	if at, ok := of[vm]; ok && !at.Before(since) {
		return at
	}
	return o.a.clock()
}

// Describe observes the host.
func (a agentService) Describe(ctx context.Context, _ *droverv1.DescribeRequest) (*droverv1.DescribeResponse, error) {
	return a.describe(ctx), nil
}

// Watch sends Describe answers.
func (a agentService) Watch(ctx context.Context, _ *droverv1.DescribeRequest, out *connect.ServerStream[droverv1.DescribeResponse]) error {
	for {
		// Taken before observing: what changes meanwhile is seen next time.
		next := a.observer.next()
		if err := out.Send(a.describe(ctx)); err != nil {
			return err
		}
		if err := sleep(ctx, observeEvery, next); err != nil {
			return nil // the caller has ended it, or the agent stops
		}
		if err := sleep(ctx, coalesce, nil); err != nil {
			return nil
		}
	}
}

// describe observes as much as can be; what cannot is said in the host's
// Fault.
func (a *Agent) describe(ctx context.Context) *droverv1.DescribeResponse {
	ctx, cancel := context.WithTimeout(ctx, observeLimit)
	defer cancel()
	host, vms, err := a.observe(ctx)
	if err != nil {
		host.Fault = err.Error()
	}
	resp := &droverv1.DescribeResponse{Vms: api.ListToProto(vms, api.VMToProto)}
	if a.siteedge != nil {
		if err := a.siteedge.describe(ctx, resp); err != nil {
			host.Fault = err.Error()
		}
		for _, l := range a.config.Edge.Links {
			c, err := a.links.Counters(ctx, l)
			if err != nil {
				host.Fault = err.Error()
				continue
			}
			resp.Links = append(resp.Links, &droverv1.LinkCounters{
				Name: l.Name, A: l.A, B: l.B,
				AbBytes: c.ABBytes, BaBytes: c.BABytes, AbPackets: c.ABPackets, BaPackets: c.BAPackets,
			})
		}
	}
	now := a.clock()
	host.LastSeen = now
	resp.Host, resp.ClockUnixNanos = api.HostToProto(host), now.UnixNano()
	return resp
}

// observe reads the host and its VMs. On an error what is known so far is
// returned too.
func (a *Agent) observe(ctx context.Context) (drover.Host, []drover.VM, error) {
	host := drover.Host{}
	var vms []drover.VM
	var err error
	if !a.edge() {
		if host, err = a.hyp.Host(ctx); err == nil {
			vms, err = a.hyp.List(ctx)
		}
		host.VolumesFreeBytes = a.volumesFree(ctx)
	}
	host.Name, host.Site, host.Address, host.Edge, host.Up = a.config.Name, a.config.Site, a.config.Listen, a.edge(), true
	for i := range vms {
		a.fillVM(ctx, &vms[i])
	}
	a.guests.fill(ctx, vms)
	return host, vms, err
}

// volumesFree is the space of the folder that has most: one volume has to fit
// into one folder.
func (a *Agent) volumesFree(ctx context.Context) drover.Bytes {
	var most drover.Bytes
	for _, dir := range a.config.Volumes {
		if free, err := a.volumes.FreeBytes(ctx, dir+"/any"); err == nil {
			// What is kept of moved VMs gives way to a disk that comes.
			most = max(most, free+a.remains.evictable(dir))
		}
	}
	return most
}

// fillVM adds where the VM is and what its images say of themselves.
func (a *Agent) fillVM(ctx context.Context, vm *drover.VM) {
	vm.Host, vm.Site = a.config.Name, a.config.Site
	a.remote.fill(vm)
	for i := range vm.Disks {
		d := &vm.Disks[i]
		v, err := a.volumes.Volume(ctx, d.Path)
		if err != nil {
			continue // outside of the volumes' folders: the hypervisor's word stands
		}
		d.Format, d.VirtualBytes, d.AllocatedBytes, d.Backing = v.Format, v.VirtualBytes, v.AllocatedBytes, v.Backing
	}
}
