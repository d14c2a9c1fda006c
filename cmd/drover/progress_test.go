package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

func TestProgressLine(t *testing.T) {
	begun := time.Date(2025, 1, 1, 12, 0, 0, 0, time.UTC)
	running := func(step string, p *drover.Progress) drover.Move {
		return drover.Move{State: drover.MoveRunning, Created: begun, Progress: p, Steps: []drover.StepRecord{
			{Name: "reserve-target", State: drover.StepDone}, {Name: step, State: drover.StepRunning},
		}}
	}
	memory := &drover.Progress{Step: "transfer", Phase: "memory", DoneBytes: 212 * drover.MiB, TotalBytes: 271 * drover.MiB, Rate: 181 * drover.Mbps, ETASeconds: 2.6}
	for _, tt := range []struct {
		name string
		move drover.Move
		want string
	}{
		{"all of it", running("transfer", memory), "transfer  memory  212 MiB of 271 MiB  181 Mbit/s  ETA 3 s  elapsed 12 s"},
		{"no ETA", running("transfer", &drover.Progress{Step: "transfer", Phase: "disk", DoneBytes: 1, TotalBytes: 2, ETASeconds: -1}), "transfer  disk  1 B of 2 B  elapsed 12 s"},
		{"the data path", running("transfer", &drover.Progress{Step: "transfer", Phase: "memory", ETASeconds: -1, Path: &drover.PathProgress{
			WireBytes: 31 * drover.MiB, CutSeconds: 12.2, ThrottlePercent: 30,
		}}), "transfer  memory  31 MiB on the wire  WAN cut for 12 s  guest held back by 30 %  elapsed 12 s"},
		{"a step without progress", running("verify", nil), "verify  elapsed 12 s"},
		{"progress of the step before", running("verify", memory), "verify  elapsed 12 s"},
		{"waiting", drover.Move{State: drover.MovePending, Created: begun}, "waiting for its turn  elapsed 12 s"},
		{"after the last step", drover.Move{
			State: drover.MoveRunning, Created: begun, Steps: []drover.StepRecord{{Name: "release", State: drover.StepDone}},
		}, "waiting until clients are answered again  elapsed 12 s"},
		{"on the way back", drover.Move{
			State: drover.MoveUndoing, Created: begun, Fault: "no space",
			Steps: []drover.StepRecord{{Name: "create-volumes", State: drover.StepUndoing}},
		}, "undo create-volumes  no space  elapsed 12 s"},
		{"a clock that is behind", drover.Move{State: drover.MoveRunning, Created: begun.Add(time.Hour)}, "running"},
	} {
		if got := progressText(tt.move, begun.Add(12*time.Second)); got != tt.want {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.name, got, tt.want)
		}
	}

	// On a terminal it is one line, no wider than that; elsewhere each change
	// is a line, and the same again only after a while.
	now := begun
	var out bytes.Buffer
	line := &progressLine{w: &out, terminal: true, width: func() int { return 20 }, now: func() time.Time { return now }}
	line.show(running("transfer", memory))
	line.again()
	line.end()
	if got, want := out.String(), "\r\x1b[Ktransfer  memory  2\r\x1b[Ktransfer  memory  2\r\x1b[K"; got != want {
		t.Errorf("terminal: %q, want %q", got, want)
	}
	out.Reset()
	plain := &progressLine{w: &out, width: func() int { return 0 }, now: func() time.Time { return now }}
	plain.show(running("transfer", memory))
	plain.show(running("transfer", memory))
	now = now.Add(plainEvery)
	plain.show(running("transfer", memory))
	plain.show(running("verify", nil))
	plain.show(running("verify", &drover.Progress{Step: "verify"}))
	plain.show(drover.Move{State: drover.MoveRunning, Steps: []drover.StepRecord{{Name: "verify", State: drover.StepDone}, {Name: "release", State: drover.StepPending}}})
	plain.show(drover.Move{State: drover.MoveDone})
	if got := strings.Count(out.String(), "\n"); got != 3 {
		t.Errorf("no terminal: %d lines, want 3:\n%s", got, &out)
	}
}
