package executor_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/executor/executortest"
	"github.com/drover-vm/drover/network"
)

const (
	renumberedName = "web1.example.net"
	renumberedMAC  = "52:54:00:00:00:01"
	// quietWithoutAgent ends in the guest what only an agent can.
	quietWithoutAgent = "drop-address"
)

var (
	oldAddress = netip.MustParseAddr("10.50.0.11")
	// newAddress is what the World's DHCP service gives.
	newAddress = netip.MustParsePrefix("10.60.0.21/24")
)

// quietAt reports whether the step asks nobody, and so cannot fail.
func (sc scenario) quietAt(step string) bool {
	return step == sc.quiet || sc.dhcp && step == quietWithoutAgent
}

func withRenumber(sc scenario, r *executor.Request) {
	if sc.method != drover.Renumber {
		return
	}
	r.VM.NICs = []drover.NIC{{MAC: renumberedMAC, Network: "br-blue", Addresses: []netip.Addr{oldAddress}}}
	r.VM.Probe = &drover.ProbeTarget{TCP: "10.50.0.11:7000"}
	r.Renumber = &network.Renumber{
		MAC: renumberedMAC, VM: r.VM.UUID, Old: []netip.Addr{oldAddress}, Name: renumberedName, Limit: time.Hour, Agent: !sc.dhcp,
		From: drover.Segment{
			Name: "blue", Home: "west", Sites: []string{"west"}, Bridge: "br-blue",
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.50.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.50.0.1")},
		},
		To: drover.Segment{
			Name: "green", Home: "east", Sites: []string{"east"}, Bridge: "br-green",
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.60.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.60.0.1")},
		},
		Source: network.Edge{Site: "west", Host: "west-edge", Address: "10.0.1.1:7000"},
		Target: network.Edge{Site: "east", Host: "east-edge", Address: "10.0.2.1:7000"},
	}
}

func setRenumber(w *executortest.World, sc scenario, r executor.Request) {
	if sc.method != drover.Renumber {
		return
	}
	w.SetEdge("west-edge")
	w.SetEdge("east-edge")
	w.SetName("east-edge", renumberedName, oldAddress)
	w.SetGuest(r.VM.UUID, false, []netip.Prefix{newAddress}, oldAddress)
}

// checkRenumber looks at what the move has left at edges and in the guest.
func checkRenumber(w *executortest.World, sc scenario, r executor.Request, m drover.Move) []string {
	if sc.method != drover.Renumber {
		return nil
	}
	answers, guest := oldAddress, []string{"primary 10.50.0.11"}
	var east []string
	if m.State == drover.MoveDone {
		answers, guest = newAddress.Addr(), []string{"primary 10.60.0.21"}
		if sc.dhcp {
			guest = []string{"old 10.50.0.11", "primary 10.60.0.21"}
		}
		east = append(east, fmt.Sprintf("lease green %s = vm/%s", renumberedMAC, r.VM.UUID))
	}
	east = append(east, fmt.Sprintf("answers %s = %s", renumberedName, answers))
	slices.Sort(east)
	var wrong []string
	for _, x := range []struct {
		what      string
		got, want []string
	}{
		{"west-edge has", w.Facts("west-edge"), nil},
		{"east-edge has", w.Facts("east-edge"), east},
		{"the guest has", w.GuestAddresses(r.VM.UUID), guest},
	} {
		if !slices.Equal(x.got, x.want) {
			wrong = append(wrong, fmt.Sprintf("%s %q, want %q", x.what, x.got, x.want))
		}
	}
	return wrong
}

// The sites' own calls may be late or lost: the steps after the transfer do the
// same.
func TestRenumberUncalled(t *testing.T) {
	for _, dhcp := range []bool{false, true} {
		for _, step := range []string{"call-out", "call-guest"} {
			for _, late := range []time.Duration{0, 3 * time.Second} {
				name := fmt.Sprintf("%s lost, %v late, dhcp %v", step, late, dhcp)
				sc := scenario{method: drover.Renumber, dhcp: dhcp}
				sc.fault = func(_ *executortest.World, c executortest.Call) error {
					if c.Step != step {
						return nil
					}
					time.Sleep(late)
					if late == 0 {
						return drover.Errorf(drover.Unavailable, "test", "lost")
					}
					return nil
				}
				want(t, name, bubble(t, name, sc), drover.MoveDone)
			}
		}
	}
}

// renumbering is a move by renumber under way in a bubble.
type renumbering struct {
	site
	r    executor.Request
	name string
}

func beginRenumber(t *testing.T, sc scenario, sessions int) *renumbering {
	s := open(t, executor.Config{}, "west1", "east1", "west-edge", "east-edge")
	r := request(sc)
	s.world.AddVM(r.VM)
	setRenumber(s.world, sc, r)
	s.world.SetOldSessions(sessions)
	return &renumbering{s, r, ""}
}

// until waits for the move to show something.
func (b *renumbering) until(t *testing.T, what string, ok func(drover.Move) bool) drover.Move {
	t.Helper()
	for range 10_000 {
		m, err := b.Get(t.Context(), b.name)
		if err != nil {
			t.Fatal(err)
		}
		if ok(m) {
			return m
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("it never comes to this: %s", what)
	return drover.Move{}
}

func draining(n int64) func(drover.Move) bool {
	return func(m drover.Move) bool {
		return m.Renumber != nil && m.Renumber.OldSessions != nil && *m.Renumber.OldSessions == n
	}
}

// Old sessions are waited for until they have ended, their limit is over, or an
// operator has ended them; what is cut then is counted as lost. Other moves do
// not wait for them.
func TestOldSessions(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *renumbering){
		"they end": func(_ *testing.T, b *renumbering) { b.world.SetOldSessions(0) },
		"limit":    func(*testing.T, *renumbering) { time.Sleep(2 * time.Hour) },
		"operator": func(t *testing.T, b *renumbering) {
			for range 2 {
				if err := b.EndOld(t.Context(), b.name); err != nil {
					t.Error(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := beginRenumber(t, scenario{method: drover.Renumber}, 3)
				b.name = b.start(t, b.r).Name
				if err := b.EndOld(t.Context(), b.name); drover.KindOf(err) != drover.Refused {
					t.Errorf("end before the move: %v, want it refused", err)
				}
				m := b.until(t, "three sessions are waited for", draining(3))
				if m.State != drover.MoveRunning || m.Measured.TotalSeconds == nil || m.Renumber.Until.IsZero() || m.Renumber.New[0] != newAddress.Addr() {
					t.Errorf("while it waits: %+v, %+v", m, m.Renumber)
				}
				b.world.SetOldSessions(2)
				m = b.until(t, "one has ended", draining(2))
				total := *m.Measured.TotalSeconds
				time.Sleep(30 * time.Minute)
				end(t, b)
				m = b.end(t, b.name)
				lost := int64(2)
				if name == "they end" {
					lost = 0
				}
				if m.State != drover.MoveDone || *m.Measured.TotalSeconds != total || (m.Measured.SessionsLost != nil) != (lost > 0) || lost > 0 && *m.Measured.SessionsLost != lost {
					t.Errorf("the move is %s (%s), measured %+v: want %d sessions lost in %v s", m.State, m.Fault, m.Measured, lost, total)
				}
				if took := m.Ended.Sub(m.Created); name != "limit" && took > 40*time.Minute || took > 65*time.Minute {
					t.Errorf("it took %v", took)
				}
				if wrong := checkRenumber(b.world, scenario{method: drover.Renumber}, b.r, m); len(wrong) > 0 {
					t.Error(wrong)
				}
				if err := b.EndOld(t.Context(), b.name); drover.KindOf(err) != drover.Refused {
					t.Errorf("end after the move: %v, want it refused", err)
				}
			})
		})
	}
}

// A guest that does not take its new addresses stays in reach by its old ones, and
// the move goes on once somebody has helped it, whatever becomes of the server.
func TestGuestIsDeaf(t *testing.T) {
	for _, dhcp := range []bool{false, true} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("dhcp %v, restart %v", dhcp, restart), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { deaf(t, dhcp, restart) })
			})
		}
	}
}

func deaf(t *testing.T, dhcp, restart bool) {
	sc := scenario{method: drover.Renumber, dhcp: dhcp}
	b := beginRenumber(t, sc, 1)
	asked := 0
	var mu sync.Mutex
	b.world.SetFault(func(c executortest.Call) error {
		mu.Lock()
		defer mu.Unlock()
		if change, ok := c.Action.(executor.ChangeGuest); ok && change.Ask && !c.After && c.Step != "call-guest" {
			asked++
		}
		if c.Step == "call-guest" || c.Step == "transfer" && !c.After {
			b.world.SetGuestDeaf(b.r.VM.UUID)
		}
		return nil
	})
	b.name = b.start(t, b.r).Name
	m := b.until(t, "its old addresses are held", func(m drover.Move) bool { return m.Renumber != nil && m.Renumber.Held != "" })
	if m.State != drover.MoveRunning || m.Fault == "" {
		t.Errorf("held: %s (%q)", m.State, m.Fault)
	}
	owner := "move/" + b.name
	open := []string{fmt.Sprintf("answers %s = %s", renumberedName, oldAddress), fmt.Sprintf("placed %s accept-old %s = all", owner, oldAddress)}
	for _, f := range open {
		if got := b.world.Facts("east-edge"); !slices.Contains(got, f) {
			t.Errorf("east-edge has %q, want %q among it", got, f)
		}
	}
	if got, f := b.world.Facts("west-edge"), fmt.Sprintf("placed %s forward-old %s = all", owner, oldAddress); !slices.Contains(got, f) {
		t.Errorf("west-edge has %q, want %q among it", got, f)
	}
	if err := b.EndOld(t.Context(), b.name); drover.KindOf(err) != drover.Refused {
		t.Errorf("end what alone leads to it: %v, want it refused", err)
	}
	time.Sleep(time.Hour)
	if restart {
		if err := b.Executor.Close(); err != nil {
			t.Fatal(err)
		}
		b.Executor = executor.New(executor.Config{Journal: b.journal, Agents: b.world, Log: testLog()})
		defer b.Executor.Close()
		if err := b.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
	}
	mu.Lock()
	if want := map[bool]int{true: 2, false: 0}[dhcp]; asked != want {
		t.Errorf("its cable was taken out %d times, want %d", asked, want)
	}
	mu.Unlock()
	b.world.SetFault(nil)
	b.world.Help(b.r.VM.UUID)
	m = b.until(t, "one session is waited for", draining(1))
	if m.Renumber.Held != "" || m.Fault != "" {
		t.Errorf("helped, but held: %q, %q", m.Renumber.Held, m.Fault)
	}
	if got, f := b.world.Facts("west-edge"), fmt.Sprintf("placed %s forward-old %s = known", owner, oldAddress); !slices.Contains(got, f) {
		t.Errorf("west-edge has %q, want %q among it", got, f)
	}
	b.world.SetOldSessions(0)
	m = b.end(t, b.name)
	if wrong := checkRenumber(b.world, sc, b.r, m); m.State != drover.MoveDone || len(wrong) > 0 {
		t.Errorf("%s (%s): %q", m.State, m.Fault, wrong)
	}
}
