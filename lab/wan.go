package lab

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
	"github.com/drover-vm/drover/lab/wanem"
)

// WANSubcommand is the hidden subcommand of the drover binary that runs a lab's
// WAN emulator.
const WANSubcommand = "lab-wan"

// wanConfig is what the emulator's process is told.
type wanConfig struct {
	Links []wanLink `json:"links"`
}

type wanLink struct {
	Name  string      `json:"name"`
	MTU   int         `json:"mtu"`
	Ends  [2]wanEnd   `json:"ends"`
	Shape wanem.Shape `json:"shape"`
}

type wanEnd struct {
	Name      string `json:"name"`
	Holder    int    `json:"holder"` // process id
	Interface string `json:"interface"`
	MAC       string `json:"mac"`
}

func (e wanEnd) end() (wanem.End, error) {
	mac, err := net.ParseMAC(e.MAC)
	return wanem.End{Name: e.Name, NetNS: fmt.Sprintf("/proc/%d/ns/net", e.Holder), Interface: e.Interface, MAC: mac}, err
}

// startWAN starts the emulator and returns when all links are open.
func (l *Lab) startWAN(ctx context.Context, plan *topology.Plan, pids map[string]int) error {
	var c wanConfig
	for _, k := range plan.Links {
		w := wanLink{Name: k.Name, MTU: k.MTU, Shape: k.Shape}
		for i, end := range k.Ends {
			w.Ends[i] = wanEnd{Name: k.Sites[i], Holder: pids[end.Node], Interface: end.Interface, MAC: k.MACs[i].String()}
		}
		c.Links = append(c.Links, w)
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.Dir, wanFile), b, 0o644); err != nil {
		return err
	}
	out, err := os.OpenFile(filepath.Join(l.Dir, wanLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(l.opt.Exe, WANSubcommand, "--lab", l.Dir)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := node.StartAndWait(ctx, cmd); err != nil {
		return fmt.Errorf("WAN emulator: %w", err)
	}
	return nil
}

// WANMain is the emulator's process: the entry of the hidden subcommand. args
// are the arguments after the subcommand's name. It returns the exit status.
func WANMain(args []string) int {
	if err := runWAN(args); err != nil {
		node.NotReady(err)
		fmt.Fprintln(os.Stderr, "drover lab-wan:", err)
		return 1
	}
	return 0
}

func runWAN(args []string) error {
	fs := flag.NewFlagSet(WANSubcommand, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the error says it
	dir := fs.String("lab", "", "folder of the lab")
	if err := fs.Parse(args); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(*dir, wanFile))
	if err != nil {
		return err
	}
	var c wanConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("%s: %w", wanFile, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	// A link that gets no processor time is slower than it was set to be.
	if err := wanem.RaisePriority(); err != nil {
		log.Warn("the emulator keeps its priority", "err", err)
	}
	var links []*wanem.Link
	defer func() {
		for _, l := range links {
			if err := l.Close(); err != nil {
				log.Error("close link", "link", l.Name(), "err", err)
			}
		}
	}()
	for _, k := range c.Links {
		a, errA := k.Ends[0].end()
		b, errB := k.Ends[1].end()
		if errA != nil || errB != nil {
			return fmt.Errorf("%s: link %s has a bad hardware address", wanFile, k.Name)
		}
		link, err := wanem.Open(ctx, log, k.Name, k.MTU, a, b, k.Shape)
		if err != nil {
			return err
		}
		links = append(links, link)
	}
	served := make(chan error, 1)
	go func() {
		served <- wanem.Serve(ctx, log, filepath.Join(*dir, sharedDir, wanSocket), links)
	}()
	if err := waitSocket(ctx, filepath.Join(*dir, sharedDir, wanSocket)); err != nil {
		stop()
		<-served
		return err
	}
	if err := node.Ready(); err != nil {
		return err
	}
	return <-served
}

// wan is a client of the lab's emulator.
func (l *Lab) wan() wanem.Client {
	return wanem.Client{Path: filepath.Join(l.Dir, sharedDir, wanSocket)}
}

// LinkNamed finds a link by its name, or by its two sites in either order.
func (l *Lab) LinkNamed(ends ...string) (*Link, error) {
	var have []string
	for i := range l.Links {
		k := &l.Links[i]
		switch {
		case len(ends) == 1 && ends[0] == k.Name,
			len(ends) == 2 && slices.Contains(ends, k.A) && slices.Contains(ends, k.B) && ends[0] != ends[1]:
			return k, nil
		}
		have = append(have, fmt.Sprintf("%s (%s %s)", k.Name, k.A, k.B))
	}
	if len(have) == 0 {
		have = []string{"(there is none)"}
	}
	return nil, drover.Errorf(drover.NotFound, "lab "+l.Name, "no link %q, want one of %s",
		strings.Join(ends, " "), strings.Join(have, ", "))
}

// LinkStatus returns how a link is and what it has carried.
func (l *Lab) LinkStatus(ctx context.Context, name string) (wanem.Status, error) {
	return l.wan().Status(ctx, name)
}

// SetLink changes a link while it runs.
func (l *Lab) SetLink(ctx context.Context, name string, change wanem.ShapeChange) (wanem.Status, error) {
	return l.wan().Set(ctx, name, change)
}
