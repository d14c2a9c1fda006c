package lab

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover/lab/topology"
)

// Left is the phase of a lab that was left half way: it has processes or a
// folder, and can only be taken down.
const Left Phase = "left half way"

// List returns all labs, each with where its guests are now.
func List(ctx context.Context, o Options) ([]State, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	all := []State{}
	for _, name := range names(o) {
		l, err := Open(o, name)
		if err != nil {
			all = append(all, State{Name: name, Phase: Left, Nodes: []Node{}, Links: []Link{}, Guests: []Guest{}})
			continue
		}
		if l.Phase == Running && !l.complete() {
			l.Phase = Left
		}
		if l.Phase != Starting {
			l.locate(ctx)
		}
		all = append(all, l.State)
	}
	return all, ctx.Err()
}

// complete reports whether all holders and the emulator live.
func (l *Lab) complete() bool {
	alive := map[string]bool{}
	for _, p := range processes() {
		if p.lab == l.Dir {
			alive[p.node] = true
		}
	}
	return (len(l.Links) == 0 || alive[""]) &&
		!slices.ContainsFunc(l.Nodes, func(n Node) bool { return !alive[n.Name] })
}

// locate asks the hosts where the lab's guests are. A guest that two hosts have,
// as in the middle of a move, is where it runs.
func (l *Lab) locate(ctx context.Context) {
	type place struct{ host, state string }
	found := map[string]place{}
	for _, n := range l.Nodes {
		if n.Role != topology.Host || ctx.Err() != nil {
			continue
		}
		conn, err := l.Libvirt(n.Name)
		if err != nil {
			l.opt.Log.Warn("cannot ask a host", "err", err)
			continue
		}
		domains, _, err := conn.ConnectListAllDomains(1, 0)
		if err != nil {
			l.opt.Log.Warn("cannot list a host's guests", "host", n.Name, "err", err)
		}
		for _, d := range domains {
			s, _, err := conn.DomainGetState(d, 0)
			if err != nil { // it was undefined just now
				continue
			}
			if _, known := found[d.Name]; !known || libvirt.DomainState(s) == libvirt.DomainRunning {
				found[d.Name] = place{n.Name, string(domainState(s))}
			}
		}
		_ = conn.Disconnect() // nothing depends on a clean goodbye
	}
	for i := range l.Guests {
		at := found[l.Guests[i].Name]
		l.Guests[i].Host, l.Guests[i].State = at.host, at.state
	}
}

// Transport is an HTTP transport whose connections begin in a node.
func (l *Lab) Transport(name string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return l.Dial(ctx, name, network, address)
	}}
}

// lastLine is the last line of a log file, "" when there is none.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return strings.TrimSpace(string(lines[len(lines)-1]))
}
