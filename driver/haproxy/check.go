package haproxy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// dynamicAlgorithms are those that take servers and weights at run time; hash
// based ones do with "hash-type consistent", which HAProxy does not tell.
var dynamicAlgorithms = []string{"roundrobin", "leastconn", "random", "first"}

// Check implements driver.Balancer.
func (b *Balancer) Check(ctx context.Context, backend string) ([]drover.Check, error) {
	if err := driver.CheckServerNames(backend, ""); err != nil {
		return nil, drover.E(drover.Invalid, "check balancer", err)
	}
	answers := drover.Check{Name: "balancer answers", OK: true, Detail: "HAProxy at " + b.cfg.Socket}
	level, err := b.socket.run(ctx, "show cli level")
	if drover.KindOf(err) == drover.Canceled {
		return nil, err
	}
	if err != nil {
		answers.OK, answers.Detail = false, err.Error()
		answers.Fix = fmt.Sprintf("start HAProxy with \"stats socket %s level admin\" in its global section", b.cfg.Socket)
		return []drover.Check{answers}, nil
	}
	admin := drover.Check{Name: "balancer's socket may change servers", OK: level == "admin", Detail: "level " + level}
	if !admin.OK {
		admin.Fix = "add \"level admin\" to the stats socket in HAProxy's configuration"
		return []drover.Check{answers, admin}, nil
	}
	v, err := b.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer b.mu.Unlock()
	there := drover.Check{Name: "backend exists", OK: true, Detail: backend}
	found := v.backend(backend)
	if found == nil {
		var names []string
		for _, one := range v.backends {
			names = append(names, one.Name)
		}
		there.OK, there.Detail = false, fmt.Sprintf("no backend %s: HAProxy has %s", backend, strings.Join(names, ", "))
		there.Fix = "name one of them as the service's backend, or add it to HAProxy's configuration"
		return []drover.Check{answers, admin, there}, nil
	}
	return []drover.Check{answers, admin, there, checkAlgorithm(found.Algorithm)}, nil
}

func checkAlgorithm(algorithm string) drover.Check {
	c := drover.Check{Name: "backend takes servers at run time", OK: true, Detail: "balance " + algorithm}
	switch {
	case slices.Contains(dynamicAlgorithms, algorithm):
	case algorithm == "static-rr":
		c.OK, c.Fix = false, "change the backend to \"balance roundrobin\""
	default:
		c.Warning, c.OK = true, false
		c.Detail += ": only with \"hash-type consistent\", which HAProxy does not tell"
		c.Fix = "see that the backend has \"hash-type consistent\", or \"balance roundrobin\""
	}
	return c
}
