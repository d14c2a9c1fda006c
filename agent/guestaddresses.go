package agent

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// askGuestEvery is how often a guest is asked for its addresses at most: the
	// question is work inside the guest, and addresses change seldom.
	askGuestEvery = 30 * time.Second
	// askGuestFirst is the wait after a guest's first failure to answer, which
	// doubles from then on: one that boots is known soon after.
	askGuestFirst = 2 * time.Second
	// askGuestLimit bounds one question.
	askGuestLimit = 5 * time.Second
	// askGuestsAtOnce bounds the questions at a time.
	askGuestsAtOnce = 4
)

// guestAddresses knows the addresses of the host's guests, as their agents said
// last.
type guestAddresses struct {
	guests driver.Guests
	clock  func() time.Time

	mu    sync.Mutex
	known map[string]*guestKnown // by UUID
	slots chan struct{}
	work  sync.WaitGroup
}

type guestKnown struct {
	asking bool
	// next is when it may be asked again, wait how long after the last failure.
	next  time.Time
	wait  time.Duration
	byMAC map[string][]netip.Addr
}

func newGuestAddresses(g driver.Guests, clock func() time.Time) *guestAddresses {
	return &guestAddresses{guests: g, clock: clock, known: map[string]*guestKnown{}, slots: make(chan struct{}, askGuestsAtOnce)}
}

// fill adds what is known to the VMs' NICs. What is older than askGuestEvery is
// asked for in the background: nobody waits for a guest.
func (g *guestAddresses) fill(ctx context.Context, vms []drover.VM) {
	for i := range vms {
		labelled(&vms[i])
	}
	if g.guests == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	present := map[string]bool{}
	for i := range vms {
		vm := &vms[i]
		present[vm.UUID] = true
		k := g.known[vm.UUID]
		if vm.State != drover.VMRunning {
			delete(g.known, vm.UUID)
			continue
		}
		if k == nil {
			k = &guestKnown{}
			g.known[vm.UUID] = k
		}
		for n := range vm.NICs {
			if mac, err := driver.NormalMAC(vm.NICs[n].MAC); err == nil && len(k.byMAC[mac]) > 0 {
				vm.NICs[n].Addresses = slices.Clone(k.byMAC[mac])
			}
		}
		if !k.asking && !g.clock().Before(k.next) {
			k.asking = true
			g.work.Go(func() { g.ask(context.WithoutCancel(ctx), vm.Name, k) })
		}
	}
	for uuid := range g.known {
		if !present[uuid] {
			delete(g.known, uuid)
		}
	}
}

// addressesLabel is the label of a VM whose guest has no agent: the addresses of
// its first NIC, with commas between them.
const addressesLabel = "addresses"

// labelled takes over what the VM's metadata says. What cannot be read there is
// left out.
func labelled(vm *drover.VM) {
	text := vm.Labels[addressesLabel]
	if text == "" || len(vm.NICs) == 0 {
		return
	}
	for one := range strings.SplitSeq(text, ",") {
		if a, err := netip.ParseAddr(strings.TrimSpace(one)); err == nil && a.IsGlobalUnicast() {
			vm.NICs[0].Addresses = append(vm.NICs[0].Addresses, a.Unmap())
		}
	}
}

// ask asks one guest. One that does not answer keeps what it said before.
func (g *guestAddresses) ask(ctx context.Context, vm string, k *guestKnown) {
	g.slots <- struct{}{}
	defer func() { <-g.slots }()
	ctx, cancel := context.WithTimeout(ctx, askGuestLimit)
	defer cancel()
	list, err := g.guests.Interfaces(ctx, vm)
	g.mu.Lock()
	defer g.mu.Unlock()
	k.asking = false
	if err != nil {
		k.wait = min(max(2*k.wait, askGuestFirst), askGuestEvery)
		k.next = g.clock().Add(k.wait)
		return
	}
	k.wait, k.next = 0, g.clock().Add(askGuestEvery)
	k.byMAC = map[string][]netip.Addr{}
	for _, i := range list {
		for _, p := range i.Addresses {
			k.byMAC[i.MAC] = append(k.byMAC[i.MAC], p.Addr())
		}
	}
}

// close waits for the questions under way.
func (g *guestAddresses) close() { g.work.Wait() }
