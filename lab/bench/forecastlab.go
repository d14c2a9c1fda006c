package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/trial"
)

// forecastBench is a run of the benchmark.
type forecastBench struct {
	Options
	lab     *wanLab
	guests  map[string]*control.Client
	hosts   map[string]drover.Host // by site
	links   []drover.Link
	out     *json.Encoder // nil: nothing is recorded
	records []forecastRecord
	faults  []string
}

// forecastLab is one lab for all settings, so that none has to be started anew.
func forecastLab() string {
	var w strings.Builder
	fmt.Fprintf(&w, "name: %s\nserver: a\nsites:\n", forecastLabName)
	for i, site := range []string{"a", "b", "c", "d"} {
		access := ""
		if i == 0 {
			access = ", access: 10.1.9.0/24"
		}
		fmt.Fprintf(&w, "  - {name: %s, transport: 10.%d.0.0/24%s, hosts: [{name: %s1}]}\n", site, i+1, access, site)
	}
	w.WriteString("links:\n")
	for _, l := range forecastLinks {
		fmt.Fprintf(&w, "  - {a: %s, b: %s, rate: %dMbit, rtt: %v}\n", l.a, l.b, l.mbit, l.rtt)
	}
	w.WriteString("segments:\n  - {name: blue, subnet: 10.50.0.0/24, sites: [a, b, c, d]}\n")
	w.WriteString("clients:\n  - {name: client, site: a, address: 10.1.9.10}\nguests:\n")
	for i, g := range forecastGuests {
		fmt.Fprintf(&w, "  - {name: %s, host: a1, image: sheep, memory: %d, segment: blue, address: 10.50.0.%d, disk: {size: %d}}\n",
			g.name, g.memory, 11+i, g.disk)
	}
	return w.String()
}

func (b *forecastBench) up(ctx context.Context) error {
	f, err := labfile.Parse("forecast.yaml", []byte(forecastLab()))
	if err != nil {
		return err
	}
	l, err := lab.Up(ctx, lab.Options{Exe: b.Bin, WaitGuests: true}, f)
	if err != nil {
		return err
	}
	b.lab = &wanLab{Lab: l, exe: b.Bin, trial: &trial.Lab{Bin: b.Bin, Name: forecastLabName}, file: f, client: "client"}
	b.guests, b.hosts = map[string]*control.Client{}, map[string]drover.Host{}
	for _, g := range forecastGuests {
		if b.guests[g.name], err = b.lab.trial.Guest(b.lab.client, g.name); err != nil {
			return err
		}
	}
	hosts, err := b.lab.trial.Hosts(ctx)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		b.hosts[h.Site] = h
	}
	return b.lab.trial.Drover(ctx, &b.links, "links")
}

func (b *forecastBench) down(ctx context.Context) error {
	if b.lab == nil {
		return nil
	}
	w := b.lab
	b.lab = nil
	return w.down(ctx)
}

// one makes a move.
func (b *forecastBench) one(ctx context.Context, s forecastSetting) (forecastRecord, error) {
	guest := b.guests[s.Guest]
	r := forecastRecord{Setting: s}
	load, err := trial.StartLoad(ctx, guest, s.Load, control.Disk{RateBytesPerS: 50e3})
	if err != nil {
		return r, err
	}
	defer func() { _, _ = load.Stop(context.WithoutCancel(ctx)) }()
	if err := sleep(ctx, forecastSettle); err != nil {
		return r, err
	}
	if err := b.look(ctx, &r); err != nil {
		return r, err
	}
	return r, b.move(ctx, &r)
}

// look has the guest looked at and takes down what the server knows then.
func (b *forecastBench) look(ctx context.Context, r *forecastRecord) error {
	var vm drover.VM
	var seen drover.ObservedVM
	d := b.lab.trial
	if err := errors.Join(d.Drover(ctx, &seen, "signals", r.Setting.Guest, "--fresh"), d.Drover(ctx, &vm, "vms", "get", r.Setting.Guest)); err != nil {
		return err
	}
	to, err := r.Setting.to(vm.Site)
	if err != nil {
		return err
	}
	var copied drover.Bytes
	for _, v := range vm.Disks {
		copied += v.AllocatedBytes
	}
	in := forecast.Input{
		Now: time.Now(), Method: drover.Live, VM: vm, Signals: seen.Signals, Sender: seen.OnHost,
		From: drover.Place{Site: vm.Site, Host: vm.Host}, To: drover.Place{Site: to, Host: b.hosts[to].Name},
		Source: b.hosts[vm.Site], Target: b.hosts[to], Terms: forecast.Terms{CopyBytes: &copied},
	}
	for _, l := range b.links {
		if !l.Joins(vm.Site, to) {
			continue
		}
		r.Bought = l
		var link struct {
			Signals []drover.LinkSignals `json:"signals"`
		}
		if err := d.Drover(ctx, &link, "links", "get", l.Name); err != nil {
			return err
		}
		in.Link = forecast.MeasuredLink(l, vm.Site, to, in.Now)
		for _, s := range link.Signals {
			if s.From == vm.Site && s.CapacityBPS.Known() && s.RTTMillis.Known() {
				in.Link = s
			}
		}
	}
	r.Input = in
	return nil
}

// to is the other end of one of the half's links at a site.
func (s forecastSetting) to(site string) (string, error) {
	var ends []string
	for _, l := range forecastLinks {
		switch {
		case l.heldOut != s.HeldOut || !l.joins(site):
		case l.a == site:
			ends = append(ends, l.b)
		default:
			ends = append(ends, l.a)
		}
	}
	if len(ends) == 0 {
		return "", fmt.Errorf("no link leads away from site %q", site)
	}
	return ends[int(s.Way*float64(len(ends)))], nil
}

// move makes the move; where the guest is held back it is cancelled: what was
// asked of the forecast is known then, and how long an operator's patience lasts is
// not.
func (b *forecastBench) move(ctx context.Context, r *forecastRecord) error {
	d, m := b.lab.trial, &r.Move
	err := d.Drover(ctx, m, "move", r.Setting.Guest, "--to", r.Input.To.String(), "--method", string(drover.Live), "--detach")
	if err != nil {
		return err
	}
	for until := time.Now().Add(forecastMove); !m.State.Final(); {
		if err := sleep(ctx, forecastPoll); err != nil {
			return err
		}
		name := m.Name
		*m = drover.Move{}
		if err := d.Drover(ctx, m, "moves", "get", name); err != nil {
			return err
		}
		if p := m.Progress; p != nil && p.Path != nil {
			r.Throttle = max(r.Throttle, p.Path.ThrottlePercent)
		}
		if m.State == drover.MoveRunning && (r.Throttle > 0 || time.Now().After(until)) && m.Measured.PauseMillis == nil {
			// One that has passed its pivot meanwhile ends as it would have.
			_ = d.Drover(ctx, m, "move", "cancel", name)
			if *m, err = d.Settled(ctx, name); err != nil {
				return err
			}
		}
	}
	if p := m.Measured.Path; p != nil {
		r.Throttle = max(r.Throttle, p.ThrottlePercent)
	}
	switch {
	case m.Forecast == nil || m.Forecast.Convergence == nil:
		return fmt.Errorf("move %s: it has no forecast", m.Name)
	case m.State != drover.MoveDone && r.Throttle == 0 && !strings.Contains(m.Fault, "cancel"):
		return fmt.Errorf("move %s is %s: %s", m.Name, m.State, m.Fault)
	}
	return nil
}
