package trial_test

import (
	"context"
	"errors"
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/trial"
)

var (
	mixedMoves = flag.Int("moves", 50, "how many moves TestMixedMoves makes")
	mixedSeed  = flag.Uint64("seed", 1, "what TestMixedMoves draws its moves from")
)

// mixed is the lab world, whose guests are moved by any method.
type mixed struct {
	*trial.Scene
	t   *testing.T
	rng *rand.Rand
	// web is the VM of the service now.
	web string
	n   int
	// faulty are the moves that have not kept what their method promises.
	faulty int
}

// maxFaulty ends the trial: the rest would tell no more.
const maxFaulty = 3

// draw makes up a move. What cannot be is refused, and drawn again.
func (m *mixed) draw() trial.Journey {
	j := trial.Journey{
		Memory: control.Memory{WorkingSetBytes: 8 << 20, RateBytesPerS: 1e6, Compressible: 0.5}, Disk: control.Disk{RateBytesPerS: 100e3},
	}
	pick := func(list ...string) string { return list[m.rng.IntN(len(list))] }
	sites := []string{"frankfurt", "virginia", "singapore"}
	j.VM, j.To = pick("db1", "api1", "batch1", m.web), pick(append(sites, "frankfurt/fra1", "frankfurt/fra2")...)
	switch j.VM {
	case "batch1":
		j.Method = drover.Method(pick("live", "warm", "cold"))
	case m.web:
		j.Method, j.To = drover.Method(pick("redirect", "redirect", "spawn")), pick(sites...)
		if j.As = map[bool]string{true: "next1", false: "web1"}[m.web == "web1"]; j.Method == drover.Spawn {
			j.As = "more1"
		}
	default:
		j.Method = drover.Method(pick("live", "stretch", "stretch", "route", "route", "renumber"))
	}
	j.Flags = m.flags(j.Method)
	return j
}

func (m *mixed) flags(method drover.Method) []string {
	switch {
	case method == drover.Redirect:
		return []string{"--weight-steps", "50,100", "--step-time", "1s", "--drain-cap", "1m"}
	case method == drover.Renumber:
		return []string{"--old-limit", "1m"}
	case method == drover.Stretch && m.rng.IntN(2) == 0:
		return []string{"--local-egress"}
	}
	return nil
}

// TestMixedMoves makes many moves by all methods, brings the guests home, and
// looks at every component itself: it holds what it held before, and beyond that
// only what the guests' new addresses need.
func TestMixedMoves(t *testing.T) {
	if !*soak {
		t.Skip("half an hour: with -soak")
	}
	ctx := timeout(t, 75*time.Minute)
	l := &trial.Lab{Bin: shared.Bin, Name: "mixed", Log: shared.Log}
	t.Cleanup(func() {
		if err := l.Down(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	if err := trial.Up(ctx, l, "world"); err != nil {
		t.Fatal(err)
	}
	s, err := trial.OpenScene(l, "world", "c-fra")
	if err != nil {
		t.Fatal(err)
	}
	m := &mixed{Scene: s, t: t, rng: rand.New(rand.NewPCG(*mixedSeed, 0)), web: "web1"}
	m.doctor(ctx)
	before, err := look(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	for tries := 0; m.n < *mixedMoves && m.faulty < maxFaulty; tries++ {
		if tries > 20**mixedMoves {
			t.Fatal("too many of the moves drawn are refused")
		}
		m.move(ctx, m.draw())
	}
	m.doctor(ctx)
	m.home(ctx)
	m.doctor(ctx)
	m.compare(ctx, before)
}

// move makes one move, unless it is refused.
func (m *mixed) move(ctx context.Context, j trial.Journey) {
	m.t.Helper()
	began := time.Now()
	seen, err := m.Go(ctx, j)
	var exit *trial.ExitError
	if errors.As(err, &exit) && exit.Status == 3 && seen.Move.Name == "" {
		return
	}
	m.n++
	m.t.Logf("%d: %s by %s to %s %v, %s", m.n, j.VM, j.Method, j.To, j.Flags, time.Since(began).Round(time.Second))
	if err != nil {
		m.faulty++
		m.t.Errorf("%d: %s by %s to %s: %v", m.n, j.VM, j.Method, j.To, err)
	}
	if seen.Move.State != drover.MoveDone {
		return
	}
	switch j.Method {
	case drover.Redirect:
		m.web = j.As
	case drover.Spawn:
		if err := m.Dismiss(ctx, j.As, seen.Move.To.Host); err != nil {
			m.t.Errorf("%d: %v", m.n, err)
		}
	}
}

// homes are where the guests are at first, and where they end.
var homes = map[string]drover.Place{
	"db1": {Site: "frankfurt", Host: "fra1"}, "api1": {Site: "frankfurt", Host: "fra1"},
	"web1": {Site: "frankfurt", Host: "fra2"}, "batch1": {Site: "frankfurt", Host: "fra2"},
}

// home brings all guests to where they were. A service may need two moves, since
// each gives its VM the other name.
func (m *mixed) home(ctx context.Context) {
	for _, vm := range slices.Sorted(maps.Keys(homes)) {
		name, to := vm, homes[vm]
		if vm == "web1" {
			name = m.web
		}
		v, err := m.VM(ctx, name)
		if err != nil {
			m.t.Fatal(err)
		}
		j := trial.Journey{VM: name, To: to.String()}
		switch {
		case name != vm: // the service's VM has the other name
			j.Method, j.As = drover.Redirect, vm
			if v.Host == to.Host {
				// One that is where it belongs gets its name at the other host first.
				m.move(ctx, trial.Journey{VM: name, To: otherHost(to).String(), Method: drover.Redirect, As: vm, Flags: m.flags(drover.Redirect)})
				j = trial.Journey{VM: vm, To: to.String(), Method: drover.Live}
			}
		case v.Host == to.Host:
			continue
		case vm == "batch1" || v.Site == to.Site || vm == "web1":
			j.Method = drover.Live
		case strings.HasPrefix(m.Address(vm).String(), "10.50."):
			j.Method = drover.Route
		default:
			j.Method = drover.Renumber
		}
		if vm == "web1" && name == vm && v.Site != to.Site {
			m.move(ctx, trial.Journey{VM: name, To: to.Site, Method: drover.Redirect, As: "next1", Flags: m.flags(drover.Redirect)})
			j = trial.Journey{VM: "next1", To: to.String(), Method: drover.Redirect, As: "web1"}
		}
		j.Flags = m.flags(j.Method)
		n := m.n
		if m.move(ctx, j); m.n == n {
			m.t.Errorf("%s is refused to go home by %s", name, j.Method)
		}
	}
}

// otherHost is the other host of the site that has two.
func otherHost(home drover.Place) drover.Place {
	if home.Host == "fra1" {
		return drover.Place{Site: home.Site, Host: "fra2"}
	}
	return drover.Place{Site: home.Site, Host: "fra1"}
}

func (m *mixed) doctor(ctx context.Context) {
	m.t.Helper()
	var d drover.Diagnosis
	if err := m.Drover(ctx, &d, "doctor"); err != nil || !d.OK || len(d.Findings) > 0 {
		m.t.Errorf("doctor after %d moves: %v, %+v", m.n, err, d.Findings)
	}
}

// compare wants every component as it was, but for what the new addresses of
// guests need: a lease, a name, a server. Routers and tunnels take a moment.
func (m *mixed) compare(ctx context.Context, before map[string][]string) {
	m.t.Helper()
	var left []string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Second) {
		after, err := look(ctx, m.Scene)
		if err != nil {
			m.t.Fatal(err)
		}
		left = slices.DeleteFunc(differences(before, after), m.needed)
		if len(left) == 0 {
			return
		}
	}
	m.t.Errorf("after %d moves, with all guests at home:\n%s", m.n, strings.Join(left, "\n"))
}

// needed says whether a difference is what a guest needs that has an address
// other than at first.
func (m *mixed) needed(difference string) bool {
	at, line, _ := strings.Cut(difference, ": ")
	_, what, _ := strings.Cut(at, ", ")
	for vm, first := range map[string]string{"db1": "10.50.0.11", "api1": "10.50.0.12", "web1": "10.50.0.13"} {
		now := m.Address(vm).String()
		if now == first {
			continue
		}
		fields := strings.Fields(line[2:])
		switch {
		case what == "Kea's leases" && line[0] == '+' && slices.Contains(fields, now):
			return true
		// The name, and the mark beside it that says whose it is.
		case what == "DNS" && strings.Contains(line, vm+"."+m.Zone):
			return true
		// The service's VM has become another: its own server is drained, a second serves.
		case what == "HAProxy" && vm == "web1" && (slices.Contains(fields, now) || slices.Contains(fields, first)):
			return true
		}
	}
	return false
}
