package server

import (
	"context"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// refreshLimit bounds a look that somebody waits for: two of the agent's own, when
// another is being looked at, and the questions to other hosts.
const refreshLimit = 30 * time.Second

// refreshNamed is refresh for the VM of a name.
func (g *signals) refreshNamed(ctx context.Context, name string) error {
	moves, err := g.s.moving(ctx)
	if err != nil {
		return err
	}
	v, err := g.s.fleet.find(name, moves)
	if err != nil {
		return err
	}
	return g.refresh(ctx, v, moves)
}

// refresh has a VM's agent look at it now, and takes over what it saw.
func (g *signals) refresh(ctx context.Context, v drover.VM, moves movesByVM) error {
	op := "look at vm " + v.Name
	if m, ok := moves[v.UUID]; ok {
		return drover.Errorf(drover.Refused, op, "move %s is using it", m.Name)
	}
	if v.State != drover.VMRunning {
		return drover.Errorf(drover.Refused, op, "it is %s: want one that runs", v.State)
	}
	a, err := g.s.fleet.agent(v.Host)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, refreshLimit)
	defer cancel()
	if _, err := a.client.Survey(ctx, &droverv1.SurveyRequest{VmUuid: v.UUID}); err != nil {
		return drover.E(drover.KindOf(err), op, err)
	}
	return g.collectOnce(ctx, a)
}
