package agent

import (
	"context"
	"fmt"
	"sync"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/wan"
)

// replicaContent is what the data path knows of replicas. A replica changes with
// each round, so it is made known when a move needs it, and forgotten before its
// images change or get another name.
type replicaContent struct {
	mu sync.Mutex
	// known are the disks made known, by replica and target, under the names of
	// their rounds.
	known map[string]map[string]knownDisk
}

type knownDisk struct {
	name string // stands for the move in the data path's ids
	uuid string
}

// know makes one image known and waits until the data path can refer to it.
func (c *replicaContent) know(ctx context.Context, a *Agent, r *record, v volumeRecord, tenant string) error {
	d := knownDisk{name: fmt.Sprintf("%s@%d", r.Move, v.Round), uuid: r.VMUUID}
	c.mu.Lock()
	if c.known == nil {
		c.known = make(map[string]map[string]knownDisk)
	}
	if c.known[r.Move] == nil {
		c.known[r.Move] = make(map[string]knownDisk)
	}
	old, was := c.known[r.Move][v.Target]
	c.known[r.Move][v.Target] = d
	c.mu.Unlock()
	if was && old != d {
		a.wan.ForgetRemains(old.name, old.uuid, v.Target)
	}
	if !was || old != d {
		s := wan.Subject{Move: d.name, VM: d.uuid, Tenant: tenant}
		err := a.wan.AddRemains(ctx, s, v.Target, v.Spec.VirtualBytes, func(ctx context.Context) (driver.ImageReader, error) {
			return a.volumes.OpenRead(ctx, v.Spec.Path, v.Spec.Backing.Path != "")
		})
		if err != nil {
			return err
		}
	}
	return a.wan.AwaitRemains(ctx, d.name, d.uuid, v.Target)
}

// forgetReplica has the data path forget what it knows of a replica.
func (a *Agent) forgetReplica(replica string) {
	a.replicas.mu.Lock()
	disks := a.replicas.known[replica]
	delete(a.replicas.known, replica)
	a.replicas.mu.Unlock()
	for target, d := range disks {
		a.wan.ForgetRemains(d.name, d.uuid, target)
	}
}
