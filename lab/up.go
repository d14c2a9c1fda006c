package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
)

// Limits of Up.
const (
	// startParallel bounds how many holders start at once; each is a process
	// with five namespaces.
	startParallel = 8
	// readyLimit is how long libvirtd, an agent or the server may take to answer.
	// Alone each does within three seconds; a big lab starts many at once.
	readyLimit = 90 * time.Second
	readyPoll  = 50 * time.Millisecond
	// undoLimit bounds the taking down of a lab that failed to start.
	undoLimit = time.Minute
)

// Check checks a lab file against the machine, as Up does before it starts
// anything. The error is of kind drover.Invalid for what is wrong with the file.
func Check(ctx context.Context, o Options, f *labfile.File) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	_, err = check(ctx, o, f)
	return err
}

func check(ctx context.Context, o Options, f *labfile.File) (*topology.Plan, error) {
	if err := checkMachine(o, f); err != nil {
		return nil, err
	}
	var problems labfile.Problems
	plan, err := topology.New(f)
	if err != nil && !errors.As(err, &problems) {
		return nil, err
	}
	problems = append(problems, checkImages(ctx, f)...)
	problems = append(problems, checkRoom(o, f)...)
	return plan, drover.E(drover.Invalid, "", problems.OrNil())
}

// Up makes a lab real and returns it when everything in it answers. When
// anything fails, or ctx ends, it takes down what it started.
func Up(ctx context.Context, o Options, f *labfile.File) (l *Lab, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return nil, err
	}
	plan, err := check(ctx, o, f)
	if err != nil {
		return nil, err
	}
	op := "lab up " + f.Name
	dir := filepath.Join(o.Dir, f.Name)
	release, err := claim(o, f.Name, dir)
	if err != nil {
		return nil, drover.E(drover.KindOf(err), op, err)
	}
	defer release()
	l = &Lab{opt: o, State: State{Name: f.Name, Dir: dir, Phase: Starting, Links: []Link{}, Guests: []Guest{}}}
	began := time.Now()
	if err = l.up(ctx, f, plan); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		o.Log.Info("start failed, taking the lab down", "lab", l.Name)
		kind := drover.KindOf(err)
		if ctx.Err() != nil {
			kind, err = drover.Canceled, fmt.Errorf("interrupted: %w", ctx.Err())
		}
		return nil, drover.E(kind, op, errors.Join(l.explain(err), remove(undo, o, dir)))
	}
	l.locate(ctx)
	o.Log.Info("lab is up", "lab", l.Name, "seconds", fmt.Sprintf("%.1f", time.Since(began).Seconds()))
	return l, nil
}

// claim makes the lab's folder and takes its lock. Of a lab of which nothing
// lives any more only the folder is left, which is emptied.
func claim(o Options, name, dir string) (release func(), err error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	fresh := true
	switch err := os.Mkdir(dir, 0o755); {
	case errors.Is(err, fs.ErrExist):
		fresh = false
	case err != nil:
		return nil, err
	case inUse(dir):
		_ = os.Remove(dir) // it was empty, and is not needed
		return nil, drover.Errorf(drover.Exists, "", "processes of an earlier lab of this name are left; end them with: drover lab down %s", name)
	}
	release, err = lock(dir)
	if err != nil {
		return nil, drover.E(drover.Exists, "", err)
	}
	if fresh {
		return release, nil
	}
	if inUse(dir) {
		release()
		return nil, drover.Errorf(drover.Exists, "", "a lab of this name is up or was left half way; take it down with: drover lab down %s", name)
	}
	o.Log.Info("a lab of this name is dead, what is left of it goes", "lab", name)
	if err := empty(dir); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// empty removes what a lab of which no process lives has left in its folder, as
// after the machine's restart; the lock stays, which the caller holds.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != lockFile {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// inUse reports whether a process of the lab lives.
func inUse(dir string) bool {
	return slices.ContainsFunc(processes(), func(p process) bool { return p.lab == dir })
}

// explain adds to a failure what the node's holder or service wrote last, since
// the logs go with the lab.
func (l *Lab) explain(err error) error {
	var se *serviceError
	if !errors.As(err, &se) {
		return err
	}
	if tail := lastLine(node.ServiceLog(node.Dir(l.Dir, se.node), se.service)); tail != "" {
		return fmt.Errorf("%w; its log ends with: %s", err, tail)
	}
	return err
}

func (l *Lab) up(ctx context.Context, f *labfile.File, plan *topology.Plan) error {
	log := l.opt.Log
	for _, d := range []string{sharedDir, pkiDir} {
		if err := os.MkdirAll(filepath.Join(l.Dir, d), 0o755); err != nil {
			return err
		}
	}
	images, err := l.prepareImages(ctx, f)
	if err != nil {
		return err
	}
	byName := map[string]image{}
	for _, img := range images {
		byName[img.name] = img
	}
	if err := drover.E(drover.Invalid, "", diskSizes(f, byName).OrNil()); err != nil {
		return err
	}
	if err := l.accelerate(ctx, f, images); err != nil {
		return err
	}
	pids, err := l.startNodes(ctx, f, plan, images)
	if err != nil {
		return err
	}
	// The hosts' daemons start while the networks are built.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.startHosts(gctx, plan) })
	g.Go(func() error { return l.connect(gctx, f, plan, pids) })
	if err := g.Wait(); err != nil {
		return err
	}
	log.Info("hosts and links are up", "nodes", len(plan.Nodes), "links", len(plan.Links))
	g, gctx = errgroup.WithContext(ctx)
	g.Go(func() error { return l.startGuests(gctx, f, byName) })
	if !l.opt.Bare {
		g.Go(func() error { return l.startDrovers(gctx, f, plan) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if l.opt.WaitGuests {
		if err := l.waitGuests(ctx, f); err != nil {
			return err
		}
	}
	l.Phase = Running
	return l.save()
}

// accelerate decides how guests are run and says so.
func (l *Lab) accelerate(ctx context.Context, f *labfile.File, images []image) error {
	if len(f.Guests) == 0 {
		return nil
	}
	i := slices.IndexFunc(images, func(i image) bool { return i.kernel != "" })
	var kernel, initrd string
	if i >= 0 {
		kernel, initrd = images[i].kernel, images[i].initrd
	}
	accel, why, err := chooseAccel(ctx, l.opt.Log, l.opt.CacheDir, f.Accel, kernel, initrd)
	if err != nil {
		return err
	}
	l.opt.Log.Info("guests run under "+accel, "why", why)
	l.Accel = accel
	return nil
}

// startNodes writes what the nodes are told, starts their holders and returns
// the holders' process ids.
func (l *Lab) startNodes(ctx context.Context, f *labfile.File, plan *topology.Plan, images []image) (map[string]int, error) {
	w := world{hosts: hostsFile(plan), dnsSecret: newDNSKey()}
	configs := make([]*node.Config, len(plan.Nodes))
	for i := range plan.Nodes {
		n := &plan.Nodes[i]
		c, err := l.nodeConfig(f, plan, n, w, images)
		if err == nil {
			err = c.Write()
		}
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", n.Name, err)
		}
		configs[i] = c
		known := Node{Name: n.Name, Role: n.Role, Site: n.Site, Address: n.Address.String(), Dir: c.Dir, Services: []string{}}
		for _, s := range c.Services {
			known.Services = append(known.Services, s.Name)
		}
		l.Nodes = append(l.Nodes, known)
	}
	for _, k := range plan.Links {
		l.Links = append(l.Links, Link{Name: k.Name, A: k.Sites[0], B: k.Sites[1]})
	}
	for i := range f.Guests {
		l.Guests = append(l.Guests, newGuest(&f.Guests[i]))
	}
	if !l.opt.Bare {
		if err := l.drovers(f, plan); err != nil {
			return nil, err
		}
	}
	// Saved before anything runs, so that a lab left half way can be looked at.
	if err := l.save(); err != nil {
		return nil, err
	}
	pids := make([]int, len(configs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(startParallel)
	for i, c := range configs {
		g.Go(func() (err error) {
			pids[i], err = node.Run(gctx, l.opt.Exe, l.Dir, c.Name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	byName := map[string]int{}
	for i, c := range configs {
		byName[c.Name] = pids[i]
	}
	return byName, nil
}

func newGuest(g *labfile.Guest) Guest {
	out := Guest{Name: g.Name, Image: g.Image, Segment: g.Segment, Address: g.Address.String(), MAC: string(g.MAC), Host: g.Host}
	if p := g.Probe; p != nil {
		out.Probe = &drover.ProbeTarget{TCP: p.TCP, Kind: p.Kind, HTTP: p.HTTP}
	}
	return out
}

// connect builds the networks and the WAN links between them.
// Then it starts the servers that run on them.
func (l *Lab) connect(ctx context.Context, f *labfile.File, plan *topology.Plan, pids map[string]int) error {
	if err := plan.Build(ctx, pids); err != nil {
		return err
	}
	if len(plan.Links) > 0 {
		if err := l.startWAN(ctx, plan, pids); err != nil {
			return err
		}
	}
	if err := plan.Connect(ctx, pids); err != nil {
		return err
	}
	if err := l.startRouters(ctx, plan, pids); err != nil {
		return err
	}
	return l.startEdges(ctx, f, plan)
}

// startHosts starts the hosts' libvirtds and waits until they answer.
func (l *Lab) startHosts(ctx context.Context, plan *topology.Plan) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range plan.Nodes {
		if n.Role != topology.Host {
			continue
		}
		g.Go(func() error {
			if err := l.startService(ctx, n.Name, libvirtService); err != nil {
				return err
			}
			return l.awaitService(ctx, n.Name, libvirtService, func(context.Context) error {
				conn, err := l.Libvirt(n.Name)
				if err != nil {
					return err
				}
				return conn.Disconnect()
			})
		})
	}
	return g.Wait()
}

// startDrovers starts agents and server and waits until they listen.
func (l *Lab) startDrovers(ctx context.Context, f *labfile.File, plan *topology.Plan) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range plan.Nodes {
		if n.Role == topology.RouterRole {
			continue
		}
		g.Go(func() error {
			service, network, address := agentService, "tcp", agentAddress(n.Address)
			if n.Role == topology.Server {
				service, network, address = serverService, "unix", l.serverSocket()
			}
			if err := l.startService(ctx, n.Name, service); err != nil {
				return err
			}
			return l.awaitService(ctx, n.Name, service, func(ctx context.Context) error {
				conn, err := l.Dial(ctx, n.Name, network, address)
				if err != nil {
					return err
				}
				return conn.Close()
			})
		})
	}
	return g.Wait()
}

// serviceError is a failure of a service, whose log may say more.
type serviceError struct {
	node, service string
	err           error
}

func (e *serviceError) Error() string { return e.service + " of " + e.node + ": " + e.err.Error() }
func (e *serviceError) Unwrap() error { return e.err }

func (l *Lab) startService(ctx context.Context, name, service string) error {
	if _, err := node.Ask(ctx, node.Dir(l.Dir, name), node.Start, service); err != nil {
		return &serviceError{name, service, err}
	}
	return nil
}

// maxEarlyDeaths is how often a service may die while Up waits for it. One that
// does so again and again will not come up; once may be a race at boot.
const maxEarlyDeaths = 3

// awaitService waits until a service answers, and gives up early on one that
// keeps dying.
func (l *Lab) awaitService(ctx context.Context, name, service string, answers func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := poll(ctx, readyPoll, readyLimit, func(ctx context.Context) error {
		err := answers(ctx)
		if err == nil {
			return nil
		}
		states, askErr := node.Ask(ctx, node.Dir(l.Dir, name), node.List, "")
		if askErr != nil {
			return errors.Join(err, askErr)
		}
		for _, s := range states {
			if s.Name == service && s.Starts >= maxEarlyDeaths && s.State != node.Running {
				cancel(fmt.Errorf("died %d times, at last with %s", s.Starts, s.LastExit))
			}
		}
		return err
	})
	if err == nil {
		return nil
	}
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		err = c
	}
	return &serviceError{name, service, err}
}

// waitSocket waits until a unix socket takes connections.
func waitSocket(ctx context.Context, path string) error {
	return poll(ctx, readyPoll, readyLimit, func(ctx context.Context) error { return dialSocket(ctx, path) })
}

// dialSocket returns nil when a unix socket takes a connection.
func dialSocket(ctx context.Context, path string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}
