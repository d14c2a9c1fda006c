package server

import (
	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
)

// foretell makes a forecast for each method of a VM's way to the target.
func (o *overview) foretell(vm drover.VM, target drover.Host, to drover.Place, link *drover.Link) map[drover.Method]drover.Forecast {
	in := forecast.Input{
		Now: o.now, VM: vm, From: drover.Place{Site: vm.Site, Host: vm.Host}, To: drover.Place{Site: to.Site, Host: target.Name},
		Source: o.hosts[vm.Host], Target: target, Link: drover.LinkSignals{From: vm.Site, To: to.Site},
	}
	if o.seen != nil {
		o.seen.tell(&in, link)
	} else if link != nil {
		in.Link = forecast.MeasuredLink(*link, vm.Site, to.Site, o.now)
	}
	in.Terms.PricePerGiB = pricePerGiB(vm.Site, to.Site, link)
	all := make(map[drover.Method]drover.Forecast, len(drover.Methods()))
	for _, in.Method = range drover.Methods() {
		all[in.Method] = o.model.Forecast(in)
	}
	return all
}
