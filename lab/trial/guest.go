package trial

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/topology"
)

// Guest returns the control client of one of our guests, as seen from the
// node given: a client outside the data centers, say.
func (l *Lab) Guest(node, name string) (*control.Client, error) {
	running, err := lab.Open(lab.Options{Exe: l.Bin}, l.Name)
	if err != nil {
		return nil, err
	}
	for _, g := range running.Guests {
		if g.Name != name {
			continue
		}
		transport := &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return running.Dial(ctx, node, network, address)
			},
			// Longer than a cold move: the stream of acknowledgements stalls.
			ResponseHeaderTimeout: 2 * time.Minute,
		}
		return &control.Client{
			Base: fmt.Sprintf("http://%s:%d", g.Address, control.HTTPPort),
			HTTP: &http.Client{Transport: transport},
		}, nil
	}
	return nil, fmt.Errorf("the lab %s has no guest %s", l.Name, name)
}

// Client returns the name of the lab's first client node.
func (l *Lab) Client() (string, error) {
	running, err := lab.Open(lab.Options{Exe: l.Bin}, l.Name)
	if err != nil {
		return "", err
	}
	for _, n := range running.Nodes {
		if n.Role == topology.Client {
			return n.Name, nil
		}
	}
	return "", fmt.Errorf("the lab %s has no client", l.Name)
}

// Opposite returns the VM and a host at another site.
func (l *Lab) Opposite(ctx context.Context, vm string) (drover.VM, drover.Place, error) {
	var v drover.VM
	if err := l.Drover(ctx, &v, "vms", "get", vm); err != nil {
		return v, drover.Place{}, err
	}
	hosts, err := l.Hosts(ctx)
	if err != nil {
		return v, drover.Place{}, err
	}
	for _, h := range hosts {
		if h.Site != v.Site && h.Up {
			return v, drover.Place{Site: h.Site, Host: h.Name}, nil
		}
	}
	return v, drover.Place{}, fmt.Errorf("no host at a site other than %s is up", v.Site)
}
