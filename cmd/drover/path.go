package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/drover-vm/drover"
)

// pathLines show what the data path did, a line for each phase that carried
// something and one for the whole.
func pathLines(f *drover.PathFigures) []string {
	if f == nil {
		return nil
	}
	var lines []string
	for _, p := range []struct {
		name  string
		phase drover.PathPhase
	}{{"disk", f.Disk}, {"memory", f.Memory}, {"switchover", f.Switchover}} {
		if p.phase.GuestBytes > 0 {
			lines = append(lines, phaseLine(p.name, p.phase))
		}
	}
	if len(lines) > 0 {
		lines = append(lines, "path "+strings.Join(pathParts(*f), ", "))
	}
	return lines
}

// phaseLine is "memory 512 MiB → 31 MiB on the wire: 62 % known at the
// destination, …", by the guest's bytes.
func phaseLine(name string, p drover.PathPhase) string {
	k := p.Kinds
	var parts []string
	for _, e := range []struct {
		what  string
		bytes drover.Bytes
	}{
		{"zeros", k.Zero.GuestBytes},
		{"known at the destination", k.Same.GuestBytes + k.Reference.GuestBytes},
		{"sent as differences", k.Delta.GuestBytes},
		{"compressed", k.Compressed.GuestBytes},
		{"raw", k.Raw.GuestBytes},
		{"opaque", k.Opaque.GuestBytes},
	} {
		if e.bytes > 0 {
			parts = append(parts, percent(float64(e.bytes)/float64(p.GuestBytes))+" "+e.what)
		}
	}
	line := fmt.Sprintf("%s %s → %s on the wire", name, p.GuestBytes, p.WireBytes)
	if len(parts) > 0 {
		line += ": " + strings.Join(parts, ", ")
	}
	return line
}

// pathParts say how the path did as a whole; what did not happen is left out.
func pathParts(f drover.PathFigures) []string {
	t := f.Total()
	parts := []string{fmt.Sprintf("%s of the bytes on the wire", percent(t.Ratio()))}
	if t.Seconds > 0 {
		parts = append(parts, fmt.Sprintf("%s/s of the guest's over %s", drover.Bytes(t.GuestRate()), t.WireRate()))
	}
	if t.Cuts > 0 {
		parts = append(parts, fmt.Sprintf("%s of %.1f s in all", plural(t.Cuts, "cut"), t.CutSeconds))
	}
	if t.RetransmittedBytes > 0 {
		parts = append(parts, fmt.Sprintf("%s sent again", t.RetransmittedBytes))
	}
	if t.MissedReferences > 0 {
		parts = append(parts, plural(t.MissedReferences, "reference")+" missed")
	}
	if t.CPUSeconds > 0 {
		parts = append(parts, fmt.Sprintf("%.1f s of CPU", t.CPUSeconds))
	}
	if f.ThrottlePercent > 0 {
		parts = append(parts, fmt.Sprintf("the guest held back by up to %d %%", f.ThrottlePercent))
	}
	return parts
}

func plural(n int64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// percent shows a ratio; what is there but small does not show as nothing.
func percent(ratio float64) string {
	switch p := 100 * ratio; {
	case p > 0 && p < 0.1:
		return "< 0.1 %"
	case p < 10 && p != math.Trunc(p):
		return fmt.Sprintf("%.1f %%", p)
	default:
		return fmt.Sprintf("%.0f %%", p)
	}
}
