package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// cloneFlags say what VM spawn or redirect makes.
type cloneFlags struct {
	as, backend, probe string
	fresh              bool
	steps              []int
	stepTime, drainCap durationFlag
	segment, name      *string // those of newPlaceFlags
}

// register adds the flags of both methods.
func (f *cloneFlags) register(cmd *cobra.Command, place *newPlaceFlags) {
	f.segment, f.name = &place.segment, &place.name
	fl := cmd.Flags()
	fl.StringVar(&f.as, "as", "", "for spawn and redirect: the new VM's name (default: VM-SITE, made unique)")
	fl.StringVar(&f.backend, "backend", "", "for spawn and redirect: backend of a load balancer that the new VM becomes a server of")
	fl.BoolVar(&f.fresh, "fresh", false, "for redirect: begin with fresh disks above the golden images, instead of with copies of the VM's")
	fl.IntSliceVar(&f.steps, "weight-steps", nil, "for redirect: shares of new sessions in percent that the new VM gets, one after the other (default: 10,50,100)")
	fl.Var(&f.stepTime, "step-time", "for redirect: how long each share holds (default: "+drover.DefaultStepTime.String()+")")
	fl.Var(&f.drainCap, "drain-cap", "for redirect: how long the old VM's sessions may go on (default: "+drover.DefaultDrainCap.String()+")")
	fl.StringVar(&f.probe, "service", "", "for redirect: where clients reach the service, http://ADDRESS/PATH, to measure what they see of the move")
}

// wish is what is wished of the new VM; the zero value when nothing is.
func (f *cloneFlags) wish(m drover.Method) (drover.CloneWish, error) {
	w := drover.CloneWish{
		Name: f.as, Backend: f.backend, Fresh: f.fresh, WeightSteps: f.steps,
		StepTime: time.Duration(f.stepTime), DrainCap: time.Duration(f.drainCap),
	}
	if f.probe != "" {
		if u, err := url.Parse(f.probe); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return w, drover.Errorf(drover.Invalid, "", "--service %q: want http://ADDRESS/PATH", f.probe)
		}
		w.Probe = &drover.ProbeTarget{HTTP: f.probe}
	}
	if !m.Makes() {
		if !w.IsZero() {
			return w, drover.Errorf(drover.Invalid, "", "--as, --backend, --fresh, --weight-steps, --step-time, --drain-cap and --service are for --method %s and %s", drover.Spawn, drover.Redirect)
		}
		return w, nil
	}
	w.Segment, w.DNSName = *f.segment, *f.name
	return w, w.Validate(m)
}

// check says what cannot be right before anything is asked of a server.
func (f *cloneFlags) check(m drover.Method) error {
	_, err := f.wish(m)
	return err
}

// proto is the wish as the API has it.
func (f *cloneFlags) proto(m drover.Method) *droverv1.CloneWish {
	w, _ := f.wish(m) // checked before
	return api.CloneWishToProto(w)
}

func newSpawnCommand(a *app) *cobra.Command {
	var f moveFlags
	var like string
	var remove, force bool
	cmd := &cobra.Command{
		Use:   "spawn NAME --like VM --to SITE | --remove",
		Short: "Make a new VM like another, from the golden image at a site",
		Long: "Makes a new VM at a site: with the definition of another one, fresh disks above the golden images that the site holds,\n" +
			"and a name, MACs and addresses of its own. Nothing stops, and the other VM is not touched. A new VM that is not well is\n" +
			"taken back. The same as: drover move VM --to SITE --method spawn --as NAME\n\n" +
			"With --remove it takes a VM away again that spawn, or a move by redirect, has made: with its disks, its reservations, its\n" +
			"name and its place in the load balancer, where its sessions have to have ended first. Any other VM is refused.",
		Example: "drover spawn web2 --like web1 --to south\n" +
			"drover spawn web2 --like web1 --to south --backend web --name web2.example.net --health tcp:8080\n" +
			"drover spawn web2 --remove",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return drover.Errorf(drover.Invalid, "", "want NAME, got %d arguments (see %s --help)", len(args), c.CommandPath())
			}
			if remove {
				return checkRemove(c, args[0])
			}
			if force {
				return drover.Errorf(drover.Invalid, "", "--force is for --remove")
			}
			if like == "" {
				return drover.Errorf(drover.Invalid, "", "missing --like: want --like VM")
			}
			f.method, f.clone.as = methodFlag(drover.Spawn), args[0]
			return errors.Join(drover.CheckName("NAME", args[0]), f.check(c, []string{like}), f.gate.check())
		},
		RunE: func(c *cobra.Command, args []string) error {
			if remove {
				return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error { return a.removeVM(ctx, cl, args[0], force) })
			}
			return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				return a.move(ctx, cl, like, &f)
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&like, "like", "", "VM that the new one is like")
	fl.BoolVar(&remove, "remove", false, "remove a VM that was made, with all that stands for it")
	fl.BoolVar(&force, "force", false, "for --remove: end the sessions that the load balancer has with it")
	fl.Var(&f.to, "to", "where the new VM shall be: SITE or SITE/HOST; with a site alone the server picks the host")
	fl.BoolVar(&f.detach, "detach", false, "do not wait for the end")
	fl.StringVar(&f.clone.backend, "backend", "", "backend of a load balancer that the new VM becomes a server of")
	fl.StringVar(&f.place.segment, "segment", "", "segment at the site that the new VM gets into (default: the one at home there)")
	fl.StringVar(&f.place.name, "name", "", "DNS name that is made to answer with the new VM's addresses, such as web2.example.net")
	f.clone.segment, f.clone.name = &f.place.segment, &f.place.name
	fl.StringVar(&f.gate.health, "health", "", "how the new VM is seen to be well: tcp:PORT, http://0.0.0.0/PATH (which is the new VM's address)\nor command:NAME (default: what its backend or its probe says)")
	fl.StringVar(&f.gate.from, "health-from", "", "agent that checks (default: the load balancer's edge, or the one that gives the addresses)")
	fl.Var(&f.gate.limit, "health-timeout", "how long it may take to become well (default: "+drover.DefaultHealthLimit.String()+")")
	_ = cmd.RegisterFlagCompletionFunc("to", completeFlag(&f.clientFlags, places))
	_ = cmd.RegisterFlagCompletionFunc("like", completeFlag(&f.clientFlags, vmNames))
	f.clientFlags.register(cmd)
	return cmd
}

// cloneLine shows the VM that a move has made, or makes.
func cloneLine(m drover.Move) string {
	c := m.Clone
	if c == nil {
		return ""
	}
	if m.State == drover.MoveUndone {
		return fmt.Sprintf("nothing is left of the new VM %s", c.Name)
	}
	line := fmt.Sprintf("new VM: %s (%s)", c.Name, c.UUID)
	if len(c.Addresses) > 0 {
		line += " at " + strings.Join(api.AddressesToProto(c.Addresses), ", ")
	}
	return line
}

// ended says in a few words how a move that makes a VM has ended; empty for
// others.
func ended(m drover.Move) string {
	switch {
	case m.Clone == nil || m.State != drover.MoveDone:
		return ""
	case m.Method == drover.Spawn:
		return fmt.Sprintf("done: %s is at %s, like %s\n", m.Clone.Name, m.To, m.VM)
	case m.KeepSource:
		return fmt.Sprintf("done: %s at %s has the sessions of %s, which is off at %s\n", m.Clone.Name, m.To, m.VM, m.From)
	default:
		return fmt.Sprintf("done: %s at %s has taken the place of %s\n", m.Clone.Name, m.To, m.VM)
	}
}
