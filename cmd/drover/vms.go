package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
)

func newVMsCommand(a *app) *cobra.Command {
	return newListCommand(a, listing[drover.VM]{
		noun: "vms", one: "vm", short: "List the virtual machines, where they are, and what that costs them", fetch: fetchVMs,
		name: func(v drover.VM) string { return v.Name },
		head: []string{"VM", "STATE", "SITE", "HOST", "VCPUS", "MEMORY", "DISKS", "NETWORKS", "ACCEL", "TROMBONE", "EXTRA RTT", "REMOTE I/O"},
		row: func(v drover.VM) []string {
			var disks drover.Bytes
			for _, d := range v.Disks {
				disks += d.VirtualBytes
			}
			nets := make([]string, len(v.NICs))
			for i, n := range v.NICs {
				nets[i] = n.Network
			}
			return []string{
				v.Name, string(v.State), v.Site, v.Host, strconv.Itoa(v.VCPUs), size(v.MemoryBytes),
				size(disks), list(nets), v.Accelerator, rateOf(v.HairpinBPS), millis(v.ExtraRTT), rateOf(v.RemoteIOBPS),
			}
		},
		words: detourWords,
	})
}

// detourWords say what a VM pays for where it is, and what would end that.
func detourWords(v drover.VM) []string {
	var lines []string
	for _, w := range v.Ways {
		lines = append(lines, wayWords(v, w))
	}
	if len(lines) > 0 && v.HairpinBPS == nil && !v.Metered.IsZero() {
		lines = append(lines, "not all of it is known: some was metered last at "+moment(v.Metered))
	}
	if io := v.RemoteIO; io != nil {
		line := "disks left behind at another site: " + unknownOr(rateOf(v.RemoteIOBPS)) + " over the WAN"
		if io.LatencyMillis > 0 {
			line += fmt.Sprintf(", %.1f ms for an operation", io.LatencyMillis)
		}
		lines = append(lines, line+fmt.Sprintf("; so far read %s, written %s", io.ReadBytes, io.WrittenBytes))
	}
	return lines
}

func unknownOr(text string) string {
	if text == "" {
		return "not known how much"
	}
	return text
}

func wayWords(v drover.VM, w drover.DetourWay) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s trombone through %s (%s)", unknownOr(rateOf(w.HairpinBPS)), w.Site, wayReason(w))
	if v.ExtraRTT != nil && *v.ExtraRTT > 0 && (w.Ingress || w.Egress) {
		fmt.Fprintf(&b, ", +%.3g ms", *v.ExtraRTT)
	}
	if w.NeighborsBPS != nil && *w.NeighborsBPS > 0 {
		fmt.Fprintf(&b, "; %s with neighbours there", rateOf(w.NeighborsBPS))
	}
	if remedy := wayRemedy(v, w); remedy != "" {
		b.WriteString("; " + remedy)
	}
	return b.String()
}

// wayReason says why traffic takes its way through a site.
func wayReason(w drover.DetourWay) string {
	switch {
	case w.Method == drover.Renumber:
		return "old sessions, by the addresses that it had there"
	case w.Method == drover.Route && w.Ingress:
		return "routers still send it there"
	case w.Ingress && w.Egress:
		return "gateway there"
	case w.Ingress:
		return "its addresses are announced there; what it sends leaves where it is"
	case w.Egress:
		return "its gateway is there"
	default:
		return "its home; nothing has to go that way"
	}
}

// wayRemedy says what would end it.
func wayRemedy(v drover.VM, w drover.DetourWay) string {
	home := fmt.Sprintf("drover move %s --to %s", v.Name, w.Site)
	switch {
	case w.Method == drover.Renumber:
		return "it ends with the last of them"
	case w.Method != drover.Stretch || !w.Ingress && !w.Egress:
		return ""
	case w.Egress:
		return "a gateway_mac for the segment at its edges lets what it sends leave where it is; `" + home + "` ends it"
	default:
		return "a move with --local-egress would have avoided it; `" + home + "` ends it"
	}
}
