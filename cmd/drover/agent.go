package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/agent"
	"github.com/drover-vm/drover/driver/disk"
	"github.com/drover-vm/drover/driver/icmp"
	"github.com/drover-vm/drover/driver/libvirt"
	"github.com/drover-vm/drover/driver/tap"
	"github.com/drover-vm/drover/lab/wanem"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/probe"
)

// agentGC keeps an agent small beside the guests whose memory it shares: windows,
// queues and the index are bounded, and with Go's own setting as much again would
// be garbage.
const agentGC = 50

func newAgentCommand(a *app) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "agent --config FILE",
		Short: "Run a host's or an edge's agent",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := readAgentConfig(path)
			if err != nil {
				return err
			}
			return a.runAgent(c.Context(), path, cfg)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "the agent's file")
	_ = cmd.MarkFlagFilename("config", "yaml")
	return cmd
}

// readAgentConfig reads and checks the agent's file. The paths of certificates
// begin at its folder.
func readAgentConfig(path string) (agent.Config, error) {
	var cfg agent.Config
	if path == "" {
		return cfg, drover.Errorf(drover.Invalid, "", "missing --config: want drover agent --config FILE")
	}
	if err := readYAML(path, &cfg); err != nil {
		return cfg, err
	}
	cfg.TLS = beside(path, cfg.TLS)
	return cfg, inFile(path, cfg.Validate())
}

// runAgent opens the drivers that the file names and serves until ctx ends.
func (a *app) runAgent(ctx context.Context, path string, cfg agent.Config) (err error) {
	log := a.logger()
	tls, err := pki.Config(cfg.TLS)
	if err != nil {
		return inFile(path, err)
	}
	deps := agent.Deps{TLS: tls, Log: log, Links: linkCounters{}, Prober: prober{log}, Pings: icmp.Pings{}}
	deps.SocketUID, deps.SocketGID = hypervisorUser()
	if cfg.Libvirt != "" {
		hyp := libvirt.New(log, cfg.Libvirt)
		defer func() { err = errors.Join(err, hyp.Close()) }()
		volumes, err := disk.New(log, disk.Config{
			Dirs: cfg.Volumes, RunDir: filepath.Join(cfg.Run, "images"), CacheDir: filepath.Join(cfg.State, "identities"),
		})
		if err != nil {
			return inFile(path, err)
		}
		defer func() { _ = volumes.Close() }()
		guests := libvirt.NewGuests(log, cfg.Libvirt)
		defer func() { err = errors.Join(err, guests.Close()) }()
		deps.Hypervisor, deps.Volumes, deps.Guests, deps.Catcher = hyp, volumes, guests, tap.New(log)
		signals := libvirt.NewSignals(log, cfg.Libvirt, libvirt.SignalsConfig{})
		defer func() { err = errors.Join(err, signals.Close()) }()
		deps.Signals = signals
	}
	if cfg.Edge != nil {
		edge, err := openEdge(ctx, log, cfg)
		if err != nil {
			return inFile(path, err)
		}
		defer func() { _ = edge.Close() }()
		deps.Edge = edge.EdgeDrivers
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(agentGC)
	}
	ag, err := agent.New(deps, cfg)
	if err != nil {
		return inFile(path, err)
	}
	return ag.Serve(ctx)
}

// hypervisorUser is whom distributions run QEMU as: Debian, then Fedora and
// others. Root where there is none of them.
func hypervisorUser() (uid, gid int) {
	for _, name := range []string{"libvirt-qemu", "qemu"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uerr := strconv.Atoi(u.Uid)
		gid, gerr := strconv.Atoi(u.Gid)
		if uerr == nil && gerr == nil {
			return uid, gid
		}
	}
	return 0, 0
}

// linkCounters reads a WAN emulator's counters, or a network interface's.
type linkCounters struct{}

func (linkCounters) Counters(ctx context.Context, l agent.EdgeLink) (agent.LinkCount, error) {
	if socket, ok := strings.CutPrefix(l.Counters, "unix://"); ok {
		s, err := wanem.Client{Path: socket}.Status(ctx, l.Name)
		return agent.LinkCount{
			ABBytes: s.Forward.Bytes, ABPackets: s.Forward.Packets,
			BABytes: s.Reverse.Bytes, BAPackets: s.Reverse.Packets,
		}, err
	}
	device := strings.TrimPrefix(l.Counters, "interface:")
	var c agent.LinkCount
	for name, into := range map[string]*uint64{
		"tx_bytes": &c.ABBytes, "tx_packets": &c.ABPackets, "rx_bytes": &c.BABytes, "rx_packets": &c.BAPackets,
	} {
		n, err := readCounter(device, name)
		if err != nil {
			return agent.LinkCount{}, drover.E(drover.Unavailable, "read counters of link "+l.Name, err)
		}
		*into = n
	}
	return c, nil
}

func readCounter(device, name string) (uint64, error) {
	raw, err := os.ReadFile(filepath.Join("/sys/class/net", device, "statistics", name))
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", device, err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
}

// prober is package probe as an agent's Prober.
type prober struct{ log *slog.Logger }

func (p prober) Start(ctx context.Context, target drover.ProbeTarget) (agent.Probe, error) {
	r, err := probe.Start(ctx, probe.Config{
		Target: target.TCP, Kind: probe.Kind(target.Kind), URL: target.HTTP, Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	return runningProbe{r}, nil
}

type runningProbe struct{ *probe.Prober }

func (p runningProbe) Stop() agent.ProbeResult {
	r := p.Prober.Stop()
	span := func(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
	out := agent.ProbeResult{
		Outage: span(r.OutageMS), OutageHTTP: span(r.OutageHTTPMS),
		Sessions: int64(r.Sessions), SessionsLost: int64(r.SessionsLost),
		BeatsSent: r.BeatsSent, BeatsAnswered: r.BeatsAnswered,
		RTTMedian: span(r.RTT.Before.P50), HTTPOK: r.HTTPOK, HTTPFailed: r.HTTPFailed,
	}
	if stall := span(r.ProberStallMS); stall > stallFault {
		out.Fault = fmt.Sprintf("the prober itself was kept waiting for %s: an outage of that size may be its own", stall.Round(time.Millisecond))
	}
	return out
}

// stallFault is the prober's own delay from which on an outage is in doubt:
// ten beats.
const stallFault = 100 * time.Millisecond
