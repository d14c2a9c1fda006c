package agent

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver/memory"
)

// SetLink implements driver.Guests: a killed agent changes nothing any more.
func (g guestGate) SetLink(ctx context.Context, vm, mac string, up bool) error {
	if g.life.dead.Load() {
		return drover.E(drover.NotFound, "", errDead) // so that nobody goes on trying
	}
	return g.Guests.SetLink(ctx, vm, mac, up)
}

const (
	guestNIC         = "52:54:00:00:00:01"
	oldHome, newHome = "10.50.0.11", "10.60.0.21"
)

func (w *world) change(c *droverv1.GuestChange, undo bool) *droverv1.ChangeGuest {
	c.Mac = guestNIC
	return &droverv1.ChangeGuest{Change: c, Undo: undo}
}

// renumbered is a world with the VM and its guest, before a transfer.
func renumbered(t *testing.T) *world {
	w := newWorld(t)
	w.addVM()
	w.inside.SetAddresses(vmUUID, guestNIC, netip.MustParsePrefix(oldHome+"/24"))
	w.begin()
	return w
}

func (w *world) primaryChange() *droverv1.GuestChange {
	return &droverv1.GuestChange{Mac: guestNIC, Add: []string{newHome + "/24"}, Gateways: []string{"10.60.0.1"}, Primary: true}
}

// has reports which addresses the guest has, and from which it begins sessions.
func (w *world) guestHas(host string) (list string, source string) {
	w.t.Helper()
	all, err := w.inside.Guests(host).Interfaces(w.t.Context(), vmName)
	must(w.t, err)
	var words []string
	for _, i := range all {
		for _, p := range i.Addresses {
			words = append(words, p.Addr().String())
		}
	}
	return strings.Join(words, " "), w.inside.Sources(vmUUID, guestNIC)[0].String()
}

func (w *world) wantGuest(host, list, source string) {
	w.t.Helper()
	for range 100 {
		if l, s := w.guestHas(host); l == list && (source == "" || s == source) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	l, s := w.guestHas(host)
	w.t.Errorf("the guest has %q and begins sessions from %s; want %q, from %s", l, s, list, source)
}

func (w *world) intoGreen() *droverv1.Transfer {
	a := w.transferAction()
	a.Retarget = &droverv1.Retarget{Mac: guestNIC, Network: "green", Probe: &droverv1.ProbeTarget{Tcp: newHome + ":7"}}
	a.Guest = w.primaryChange()
	return a
}

// A VM gets into another segment: by the word of its source, the destination's
// host attaches it there, for its next start too, and changes its addresses as
// soon as it runs.
func TestRenumberedGuest(t *testing.T) {
	w := renumbered(t)
	r := w.ask("north1", "add-address", 1, w.change(&droverv1.GuestChange{Add: []string{newHome + "/24"}}, false))
	if !r.GetHealthy() {
		t.Fatalf("add-address: %v", r)
	}
	w.wantGuest("north1", oldHome+" "+newHome, "")
	w.ask("north1", "transfer", 1, w.intoGreen())
	w.wantGuest("south1", newHome+" "+oldHome, newHome)
	if r := w.ask("south1", "new-address", 1, w.change(w.primaryChange(), false)); !r.GetHealthy() {
		t.Errorf("new-address: %v", r)
	}
	hyp := w.hosts["south1"].hyp
	for _, when := range []string{"now", "after its next start"} {
		vm, err := hyp.VM(t.Context(), vmName)
		must(t, err)
		if vm.NICs[0].Network != "green" || vm.Probe == nil || vm.Probe.TCP != newHome+":7" {
			t.Errorf("%s it is attached to %s, probe %+v", when, vm.NICs[0].Network, vm.Probe)
		}
		if when == "now" {
			if r := w.ask("south1", "drop-address", 1, w.change(&droverv1.GuestChange{Drop: []string{oldHome}}, false)); !r.GetHealthy() {
				t.Errorf("drop-address: %v", r)
			}
			w.wantGuest("south1", newHome, newHome)
			must(t, hyp.Destroy(t.Context(), vmName))
		}
	}
}

// What was done in the guest is taken back; where the guest does not run, there
// is nothing to be taken back.
func TestRenumberedGuestUndone(t *testing.T) {
	w := renumbered(t)
	w.ask("north1", "add-address", 1, w.change(&droverv1.GuestChange{Add: []string{newHome + "/24"}}, false))
	drop := w.change(&droverv1.GuestChange{Drop: []string{newHome}}, true)
	for range 2 {
		if r := w.ask("north1", "undo-add-address", 1, drop); !r.GetHealthy() {
			t.Errorf("undo: %v", r)
		}
	}
	w.wantGuest("north1", oldHome, "")
	if r := w.ask("south1", "undo-add-address", 1, drop); !r.GetHealthy() {
		t.Errorf("undo where it is not: %v", r)
	}
	if _, err := w.run("south1", "add-address", 1, w.change(w.primaryChange(), false)); drover.KindOf(err) != drover.NotFound {
		t.Errorf("change it where it is not: %v, want not found", err)
	}
	for name, c := range map[string]*droverv1.GuestChange{
		"address": {Add: []string{"10.60.0.21"}}, "gateway": {Add: []string{newHome + "/24"}, Gateways: []string{"x"}, Primary: true},
		"drop": {Drop: []string{"fe80::1"}}, "gateway without primary": {Add: []string{newHome + "/24"}, Gateways: []string{"10.60.0.1"}},
	} {
		if _, err := w.run("north1", "bad", 1, w.change(c, false)); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v, want it invalid", name, err)
		}
	}
}

// A guest that does not do as it is told is no error, and says why.
func TestGuestWillNot(t *testing.T) {
	for _, mode := range []memory.AgentMode{memory.AgentMissing, memory.AgentHangs} {
		w := renumbered(t)
		w.inside.SetAgent(vmUUID, mode)
		r := w.ask("north1", "add-address", 1, w.change(w.primaryChange(), false))
		if r.GetHealthy() || r.GetDetail() == "" {
			t.Errorf("agent mode %d: %v, want it not done, and why", mode, r)
		}
	}
}

// A guest without an agent asks DHCP when its cable was out.
func TestGuestAsksDHCP(t *testing.T) {
	w := renumbered(t)
	w.inside.SetAgent(vmUUID, memory.AgentMissing)
	w.inside.SetLease(func(string, drover.NIC) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(newHome + "/24")} })
	if r := w.ask("north1", "new-address", 1, w.change(&droverv1.GuestChange{Ask: true}, false)); !r.GetHealthy() {
		t.Errorf("ask: %v", r)
	}
	if got := w.inside.Sources(vmUUID, guestNIC)[0]; got.String() != newHome || !w.inside.Link(vmUUID, guestNIC) {
		t.Errorf("it begins sessions from %v, its cable is in: %v", got, w.inside.Link(vmUUID, guestNIC))
	}
}

// An agent that dies with the cable out puts it back when it starts again.
func TestCableIsPutBack(t *testing.T) {
	w := renumbered(t)
	w.supervise()
	var once sync.Once
	w.fleet.SetFault(func(host, op, _ string, moment memory.Moment) error {
		if op == "set link" && moment == memory.After {
			once.Do(func() {
				if w.inside.Link(vmUUID, guestNIC) {
					t.Error("the cable is in")
				}
				w.hosts[host].kill()
			})
		}
		return nil
	})
	_, _ = w.run("north1", "new-address", 1, w.change(&droverv1.GuestChange{Ask: true}, false))
	for end := time.Now().Add(20 * time.Second); !w.inside.Link(vmUUID, guestNIC) && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	if !w.inside.Link(vmUUID, guestNIC) {
		t.Error("the cable stays out")
	}
}
