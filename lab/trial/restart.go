package trial

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/probe"
)

// Restart shuts a guest down and starts it again at its host, as an operator does
// by hand, and returns how long a client missed it, in milliseconds.
func (s *Scene) Restart(ctx context.Context, vm, host string) (float64, error) {
	witness, err := s.watch(ctx, vm)
	if err != nil {
		return 0, err
	}
	defer witness.Stop()
	line := `virsh shutdown "$1" && for i in $(seq 600); do [ "$(virsh domstate "$1")" = "shut off" ] && exec virsh start "$1"; sleep 0.05; done; exit 1`
	if _, err := s.Exec(ctx, host, "sh", "-c", line, "sh", vm); err != nil {
		return 0, err
	}
	if err := heard(ctx, witness); err != nil {
		return 0, err
	}
	return witness.Stop().OutageMS, nil
}

// reload saves the memory of a VM and restores it where it is, and then lets it
// wait for so long that its clients have sent again what was lost while it had no
// tap: their timers, which double from some 0.2 s, are due by 3.5 s. What it
// waits for them is part of the pause.
const reload = `set -e
f=$(mktemp) e=$(mktemp)
virsh event --event lifecycle --timestamp --loop >$e & p=$!
sleep 1
virsh save "$1" $f >&2
virsh restore --paused $f >&2
sleep 3
virsh resume "$1" >&2
sleep 1
kill $p
cat $e
rm -f $f $e`

// Reload saves a guest at its host and restores it there, with nothing of
// Drover's, and returns how much longer than its processors stood still a client
// missed it, in milliseconds. The guest is in a new emulator then, as after a
// migration: this is what no way to migrate it can go below here.
func (s *Scene) Reload(ctx context.Context, vm, host string, mem control.Memory, disk control.Disk) (float64, error) {
	guest := s.guestAt(s.at[vm])
	load, err := StartLoad(ctx, guest, mem, disk)
	if err != nil {
		return 0, err
	}
	defer load.End()
	witness, err := probe.Start(ctx, probe.Config{Target: fmt.Sprintf("%s:%d", s.at[vm], control.SessionPort), Dial: s.dialOutside})
	if err != nil {
		return 0, err
	}
	defer witness.Stop()
	out, err := s.Exec(ctx, host, "sh", "-c", reload, "sh", vm)
	if err != nil {
		return 0, err
	}
	if err := heard(ctx, witness); err != nil {
		return 0, err
	}
	stood, err := stoodStill(string(out), vm)
	if err != nil {
		return 0, err
	}
	r := witness.Stop()
	if r.SessionsLost > 0 {
		return 0, fmt.Errorf("a session was lost: %s", r.Lost[0].Reason)
	}
	if _, err := load.Stop(ctx); err != nil {
		return 0, err
	}
	return r.OutageMS - float64(stood)/float64(time.Millisecond), nil
}

// stoodStill is the time from the first suspension to the last resumption of a VM,
// in what virsh event has printed.
func stoodStill(events, vm string) (time.Duration, error) {
	const layout = "2006-01-02 15:04:05.000-0700"
	var from, to time.Time
	for line := range strings.Lines(events) {
		stamp, event, _ := strings.Cut(line, ": ")
		at, err := time.Parse(layout, stamp)
		if err != nil || !strings.Contains(event, "'"+vm+"'") {
			continue
		}
		switch {
		case from.IsZero() && strings.Contains(event, "Suspended"):
			from = at
		case strings.Contains(event, "Resumed"):
			to = at
		}
	}
	if from.IsZero() || !to.After(from) {
		return 0, errors.New("no suspension and resumption among the events: " + strings.TrimSpace(events))
	}
	return to.Sub(from), nil
}
