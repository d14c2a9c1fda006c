package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
)

func TestPathLines(t *testing.T) {
	f := drover.PathFigures{
		Memory: drover.PathPhase{
			Seconds: 10, GuestBytes: 512 * drover.MiB, WireBytes: 31 * drover.MiB, CPUSeconds: 1.25,
			RetransmittedBytes: drover.MiB, Cuts: 1, CutSeconds: 30, MissedReferences: 2,
			Kinds: drover.PathKinds{
				Zero: drover.PathCount{GuestBytes: 128 * drover.MiB}, Same: drover.PathCount{GuestBytes: 64 * drover.MiB},
				Reference: drover.PathCount{GuestBytes: 256 * drover.MiB}, Delta: drover.PathCount{GuestBytes: 1},
				Compressed: drover.PathCount{GuestBytes: 64 * drover.MiB},
			},
		},
		Switchover:      drover.PathPhase{GuestBytes: drover.MiB, WireBytes: drover.MiB, Kinds: drover.PathKinds{Raw: drover.PathCount{GuestBytes: drover.MiB}}},
		ThrottlePercent: 20,
	}
	want := []string{
		"memory 512 MiB → 31 MiB on the wire: 25 % zeros, 62 % known at the destination, < 0.1 % sent as differences, 12 % compressed",
		"switchover 1 MiB → 1 MiB on the wire: 100 % raw",
		"path 6.2 % of the bytes on the wire, 51.3 MiB/s of the guest's over 26.8 Mbit/s, 1 cut of 30.0 s in all, " +
			"1 MiB sent again, 2 references missed, 1.2 s of CPU, the guest held back by up to 20 %",
	}
	if diff := cmp.Diff(want, pathLines(&f)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := pathLines(&drover.PathFigures{}); got != nil {
		t.Errorf("nothing carried: %q", strings.Join(got, "\n"))
	}
	if got := pathLines(nil); got != nil {
		t.Errorf("not measured: %q", got)
	}
}
