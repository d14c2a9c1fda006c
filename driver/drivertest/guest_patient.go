package drivertest

import (
	"context"
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// patientGuests asks one VM's agent again as long as it is unavailable, as who moves
// the VM does: on a machine with much else to do a guest may not get to run for as
// long as an agent has to answer. Everything asked of guests is repeatable.
type patientGuests struct {
	driver.Guests
	vm string
}

func (g patientGuests) insist(vm string, ask func() error) error {
	for end := time.Now().Add(suiteLimit); ; {
		err := ask()
		if err == nil || vm != g.vm || drover.KindOf(err) != drover.Unavailable || time.Now().After(end) {
			return err
		}
	}
}

func (g patientGuests) Agent(ctx context.Context, vm string) (a driver.GuestAgent, err error) {
	err = g.insist(vm, func() error {
		a, err = g.Guests.Agent(ctx, vm)
		if vm == g.vm && err == nil && !a.Answers {
			return drover.Errorf(drover.Unavailable, "agent "+vm, "%s", a.Fault)
		}
		return err
	})
	return a, err
}

func (g patientGuests) Interfaces(ctx context.Context, vm string) (list []driver.GuestInterface, err error) {
	err = g.insist(vm, func() error {
		list, err = g.Guests.Interfaces(ctx, vm)
		return err
	})
	return list, err
}

func (g patientGuests) AddAddress(ctx context.Context, vm, mac string, change driver.GuestAddresses) error {
	return g.insist(vm, func() error { return g.Guests.AddAddress(ctx, vm, mac, change) })
}

func (g patientGuests) DropAddress(ctx context.Context, vm, mac string, address netip.Addr) error {
	return g.insist(vm, func() error { return g.Guests.DropAddress(ctx, vm, mac, address) })
}

func (g patientGuests) SetHostname(ctx context.Context, vm, hostname string) error {
	return g.insist(vm, func() error { return g.Guests.SetHostname(ctx, vm, hostname) })
}

func (g patientGuests) Freeze(ctx context.Context, vm string) error {
	return g.insist(vm, func() error { return g.Guests.Freeze(ctx, vm) })
}

func (g patientGuests) Thaw(ctx context.Context, vm string) error {
	return g.insist(vm, func() error { return g.Guests.Thaw(ctx, vm) })
}
