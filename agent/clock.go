package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
)

const (
	// pings for one measurement at most: the quickest of them is the least disturbed. When one is not
	// quicker than those before by pingGain of them, more would not tell more.
	pings    = 5
	pingGain = 0.05
	// The difference of two hosts' clocks beyond which figures that compare
	// them mislead (warn), and certificates and logs do (fail).
	clockWarn = 2 * time.Second
	clockFail = 5 * time.Second
	// certWarn before a certificate's end is time to replace it; with less than
	// certFail left a long move might not end before it does.
	certWarn = 14 * 24 * time.Hour
	certFail = 24 * time.Hour
)

// reach is what pinging a peer has shown.
type reach struct {
	name string
	rtt  time.Duration
	// offset is how far the peer's clock is ahead, give or take half of rtt.
	offset time.Duration
}

// measure pings the peer as NTP does: the peer's time is taken to be that of
// the middle of the exchange, and the quickest exchange counts. After the first,
// which may have had to connect, two go side by side: so one of them tells
// whether the other was disturbed, and takes no more time.
func (a *Agent) measure(ctx context.Context, address, host string) (reach, error) {
	c := a.peers.at(address, host)
	best, err := a.exchange(ctx, c)
	for n := 1; err == nil && n < pings; n += 2 {
		var two [2]reach
		var errs [2]error
		var group sync.WaitGroup
		for i := range two {
			group.Go(func() { two[i], errs[i] = a.exchange(ctx, c) })
		}
		group.Wait()
		if err = errors.Join(errs[:]...); err != nil {
			break
		}
		enough := false
		for _, r := range two {
			enough = enough || r.rtt > best.rtt-time.Duration(pingGain*float64(best.rtt))
			if r.rtt < best.rtt {
				best = r
			}
		}
		if enough {
			break
		}
	}
	if err != nil {
		return reach{}, err
	}
	a.peers.reached(address, host, best.rtt)
	return best, nil
}

// exchange is one ping.
func (a *Agent) exchange(ctx context.Context, c *api.PeerClient) (reach, error) {
	sent, sentWall := time.Now(), a.clock()
	resp, err := ping(ctx, c)
	if err != nil {
		return reach{}, err
	}
	rtt := time.Since(sent)
	theirs := time.Unix(0, resp.GetClockUnixNanos())
	return reach{resp.GetName(), rtt, theirs.Sub(sentWall.Add(rtt / 2))}, nil
}

// reachChecks are the findings about a peer: that it answers, and its clock.
func (a *Agent) reachChecks(ctx context.Context, name, clockName, address, host string) []drover.Check {
	r, err := a.measure(ctx, address, host)
	if err != nil {
		return []drover.Check{{
			Name: name, Detail: err.Error(),
			Fix: fmt.Sprintf("let host %s connect to TCP %s, start the agent there, and check that both trust the same certificate authority", a.config.Name, address),
		}}
	}
	return []drover.Check{
		{Name: name, OK: true, Detail: fmt.Sprintf("agent %s answers from %s in %s", host, address, roundRTT(r.rtt))},
		clockCheck(clockName, a.config.Name, host, r),
	}
}

// reachAside begins reachChecks, which take a few round trips. found waits for them; stop, to be called in any case,
// ends them.
func (a *Agent) reachAside(ctx context.Context, name, clockName, address, host string) (found func() []drover.Check, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var checks []drover.Check
	var group sync.WaitGroup
	group.Go(func() { checks = a.reachChecks(ctx, name, clockName, address, host) })
	return func() []drover.Check { group.Wait(); return checks }, func() { cancel(); group.Wait() }
}

func roundRTT(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

func clockCheck(name, here, there string, r reach) drover.Check {
	// What cannot be told from the path's asymmetry does not count.
	sure := r.offset.Abs() - r.rtt/2
	c := drover.Check{
		Name: name, OK: true,
		Detail: fmt.Sprintf("the clock of %s is %+.3f s off that of %s, within %.3f s", there, r.offset.Seconds(), here, (r.rtt / 2).Seconds()),
	}
	if sure > clockWarn {
		c.OK, c.Warning = false, sure <= clockFail
		c.Fix = fmt.Sprintf("set the clocks of %s and %s by NTP; %s is the most they may differ", here, there, clockFail)
	}
	return c
}

// certificateCheck is about this host's own certificate.
func (a *Agent) certificateCheck(name string) drover.Check {
	leaf := a.tls.Certificates[0].Leaf
	left := leaf.NotAfter.Sub(a.clock())
	c := drover.Check{
		Name: name, OK: true,
		Detail: fmt.Sprintf("the certificate of %s is valid until %s", a.config.Name, leaf.NotAfter.UTC().Format(time.RFC3339)),
	}
	if left < certWarn {
		c.OK, c.Warning = false, left >= certFail
		c.Fix = fmt.Sprintf("issue a new certificate for host %s and restart its agent", a.config.Name)
	}
	return c
}
