package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// listing is one kind of thing in the inventory: how it is asked for, what
// names one, and the columns it is shown in.
type listing[T any] struct {
	noun, one, short string
	fetch            func(context.Context, *api.Client) ([]T, error)
	// get asks for one; nil looks for it among all.
	get func(ctx context.Context, c *api.Client, name string) (T, error)
	// getCommand makes a "get" of its own; nil: the usual one.
	getCommand func(*app, listing[T]) *cobra.Command
	name       func(T) string
	head       []string
	row        func(T) []string
	// words say more about one than its row does; nil: nothing.
	words func(T) []string
}

// newListCommand makes "drover NOUN" and "drover NOUN get NAME".
func newListCommand[T any](a *app, l listing[T]) *cobra.Command {
	var flags clientFlags
	cmd := &cobra.Command{
		Use:   l.noun,
		Short: l.short,
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return flags.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				all, err := l.fetch(ctx, cl)
				if err != nil {
					return err
				}
				return show(a, l, all)
			})
		},
	}
	flags.register(cmd)
	if l.getCommand != nil {
		cmd.AddCommand(l.getCommand(a, l))
	} else {
		cmd.AddCommand(newGetCommand(a, l))
	}
	return cmd
}

func newGetCommand[T any](a *app, l listing[T]) *cobra.Command {
	var flags clientFlags
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Show one " + l.one,
		Args:  oneArg("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return flags.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				v, err := l.find(ctx, cl, args[0])
				if err != nil {
					return err
				}
				if a.output == formatJSON {
					return a.json(v)
				}
				if err := show(a, l, []T{v}); err != nil || l.words == nil {
					return err
				}
				for _, line := range l.words(v) {
					if _, err := fmt.Fprintln(a.out, line); err != nil {
						return err
					}
				}
				return nil
			})
		},
		ValidArgsFunction: complete(&flags, func(ctx context.Context, cl *api.Client) ([]string, error) {
			all, err := l.fetch(ctx, cl)
			names := make([]string, len(all))
			for i, v := range all {
				names[i] = l.name(v)
			}
			return names, err
		}),
	}
	flags.register(cmd)
	return cmd
}

// find returns the one thing of that name.
func (l listing[T]) find(ctx context.Context, c *api.Client, name string) (found T, err error) {
	if l.get != nil {
		return l.get(ctx, c, name)
	}
	all, err := l.fetch(ctx, c)
	if err != nil {
		return found, err
	}
	n := 0
	for _, v := range all {
		if l.name(v) == name {
			found, n = v, n+1
		}
	}
	switch n {
	case 1:
		return found, nil
	case 0:
		return found, drover.Errorf(drover.NotFound, l.one+" "+name, "there is none of that name (see drover %s)", l.noun)
	default:
		return found, drover.Errorf(drover.Refused, l.one+" "+name, "there are %d of that name (see drover %s)", n, l.noun)
	}
}

func show[T any](a *app, l listing[T], all []T) error {
	if a.output == formatJSON {
		return a.json(all)
	}
	rows := make([][]string, len(all))
	for i, v := range all {
		rows[i] = l.row(v)
	}
	return a.table(l.head, rows)
}

func newSitesCommand(a *app) *cobra.Command {
	return newListCommand(a, listing[drover.Site]{
		noun: "sites", one: "site", short: "List the sites", fetch: fetchSites,
		name: func(s drover.Site) string { return s.Name },
		head: []string{"SITE", "HOSTS", "LATITUDE", "LONGITUDE"},
		row: func(s drover.Site) []string {
			var lat, lon string
			if s.Latitude != 0 || s.Longitude != 0 {
				lat, lon = fmt.Sprintf("%.4f", s.Latitude), fmt.Sprintf("%.4f", s.Longitude)
			}
			return []string{s.Name, list(s.Hosts), lat, lon}
		},
	})
}

func newHostsCommand(a *app) *cobra.Command {
	return newListCommand(a, listing[drover.Host]{
		noun: "hosts", one: "host", short: "List the hosts as their agents observe them", fetch: fetchHosts,
		name: func(h drover.Host) string { return h.Name },
		head: []string{"HOST", "SITE", "STATE", "CPUS", "MEMORY", "FREE", "DISK FREE", "HYPERVISOR", "NETWORKS", "FAULT"},
		row: func(h drover.Host) []string {
			state := "up"
			switch {
			case !h.Up:
				state = "down"
			case h.Edge:
				state = "up, no VMs"
			}
			var cpus string
			if h.CPUs > 0 {
				cpus = strconv.Itoa(h.CPUs)
			}
			return []string{
				h.Name, h.Site, state, cpus, size(h.MemoryBytes), size(h.MemoryFreeBytes),
				size(h.VolumesFreeBytes), h.HypervisorVersion, list(h.Networks), h.Fault,
			}
		},
	})
}

func newLinksCommand(a *app) *cobra.Command {
	return newListCommand(a, listing[drover.Link]{
		noun: "links", one: "link", short: "List the WAN links and the bytes they carried", fetch: fetchLinks,
		getCommand: newGetLinkCommand,
		name:       func(l drover.Link) string { return l.Name },
		head:       []string{"LINK", "A", "B", "RATE", "RTT", "A TO B", "B TO A"},
		row: func(l drover.Link) []string {
			var rtt string
			if l.RTTMillis > 0 {
				rtt = strconv.FormatFloat(l.RTTMillis, 'g', 4, 64) + " ms"
			}
			return []string{l.Name, l.A, l.B, rate(l.Rate), rtt, l.ABBytes.String(), l.BABytes.String()}
		},
	})
}

func newServicesCommand(a *app) *cobra.Command {
	return newListCommand(a, listing[drover.Service]{
		noun: "services", one: "service", short: "List the addresses that clients use, and the VMs behind them", fetch: fetchServices,
		name: func(s drover.Service) string { return s.Name },
		head: []string{"SERVICE", "VM", "SITE", "TCP", "KIND", "HTTP"},
		row: func(s drover.Service) []string {
			return []string{s.Name, s.VM, s.Site, s.Probe.TCP, s.Probe.Kind, s.Probe.HTTP}
		},
	})
}

func fetchSites(ctx context.Context, c *api.Client) ([]drover.Site, error) {
	r, err := c.ListSites(ctx, &droverv1.ListSitesRequest{})
	return api.ListFromProto(r.GetSites(), api.SiteFromProto), err
}

func fetchHosts(ctx context.Context, c *api.Client) ([]drover.Host, error) {
	r, err := c.ListHosts(ctx, &droverv1.ListHostsRequest{})
	return api.ListFromProto(r.GetHosts(), api.HostFromProto), err
}

func fetchLinks(ctx context.Context, c *api.Client) ([]drover.Link, error) {
	r, err := c.ListLinks(ctx, &droverv1.ListLinksRequest{})
	return api.ListFromProto(r.GetLinks(), api.LinkFromProto), err
}

func fetchVMs(ctx context.Context, c *api.Client) ([]drover.VM, error) {
	r, err := c.ListVMs(ctx, &droverv1.ListVMsRequest{})
	return api.ListFromProto(r.GetVms(), api.VMFromProto), err
}

func fetchServices(ctx context.Context, c *api.Client) ([]drover.Service, error) {
	r, err := c.ListServices(ctx, &droverv1.ListServicesRequest{})
	return api.ListFromProto(r.GetServices(), api.ServiceFromProto), err
}

func fetchMoves(ctx context.Context, c *api.Client) ([]drover.Move, error) {
	r, err := c.ListMoves(ctx, &droverv1.ListMovesRequest{})
	return api.ListFromProto(r.GetMoves(), api.MoveFromProto), err
}
