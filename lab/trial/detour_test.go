package trial_test

import (
	"fmt"
	"math"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// What the client sends while the meters are read: packets, and how far they are
// apart. The rate is taken over twelve seconds, so where there is one to be seen
// they last for longer.
const (
	sentMany, sentFew = 800, 150
	sentEvery         = "0.02" // seconds
	sentBytes         = 1428   // each, with its headers
)

// detour sends sheep1 a known number of bytes from outside while it is away, and
// expects to be told how many of them took the way through its home: all, or none.
func (m *methodTrial) detour(trombone bool) {
	m.t.Helper()
	packets := sentFew
	if trombone {
		packets = sentMany
	}
	total := float64(packets * sentBytes)
	before := m.carried()
	type sent struct {
		out string
		err error
	}
	done := make(chan sent, 1)
	go func() {
		out, err := m.Exec(timeout(m.t, time.Minute), "c1", "ping", "-q", "-i", sentEvery, "-s", strconv.Itoa(sentBytes-28), "-c", strconv.Itoa(packets), "10.50.0.11")
		done <- sent{string(out), err}
	}()
	var seen []int64
	var s sent
	for s.out == "" && s.err == nil {
		select {
		case s = <-done:
		case <-time.After(time.Second):
			if v := m.vm(); v.HairpinBPS != nil {
				seen = append(seen, *v.HairpinBPS)
			}
		}
	}
	if s.err != nil {
		m.t.Fatalf("%v: %s", s.err, s.out)
	}
	carried := float64(m.carried() - before)
	v := m.vm()
	if v.HairpinBPS == nil || v.NeighborsBPS == nil || v.ExtraRTT == nil || v.RemoteIOBPS == nil || len(v.Ways) != 1 || v.Ways[0].Site != "north" {
		m.t.Fatalf("not known: %+v", v.Detour)
	}
	seen = append(seen, *v.HairpinBPS)
	m.t.Logf("sent %.0f bytes, carried %.0f by way of its home; meters said %v; %+v, extra round trip %.1f ms", total, carried, seen, v.Ways[0], *v.ExtraRTT)
	if !trombone {
		if carried != 0 || slices.Max(seen) != 0 || *v.ExtraRTT != 0 {
			m.t.Errorf("something went through its home: %.0f bytes, %v bit/s, extra round trip %v ms", carried, seen, *v.ExtraRTT)
		}
		return
	}
	if off := carried/total - 1; math.Abs(off) > 0.2 {
		m.t.Errorf("of %.0f bytes that were sent its home's edge has counted %.0f", total, carried)
	}
	// ping says how long it took.
	_, rest, _ := strings.Cut(s.out, "time ")
	var millis float64
	if _, err := fmt.Sscanf(rest, "%fms", &millis); err != nil {
		m.t.Fatalf("%v: %s", err, s.out)
	}
	if off := float64(slices.Max(seen))/(total*8/(millis/1000)) - 1; math.Abs(off) > 0.2 {
		m.t.Errorf("%.0f bytes were sent in %.0f ms, the meters said %v", total, millis, seen)
	}
	if *v.ExtraRTT < 1 || !v.Ways[0].Ingress || v.Ways[0].Egress {
		m.t.Errorf("extra round trip %v, %+v", *v.ExtraRTT, v.Ways[0])
	}
	words, err := exec.CommandContext(timeout(m.t, time.Minute), m.Bin, "vms", "get", "sheep1", "--lab", m.Name).Output()
	if err != nil || !strings.Contains(string(words), "trombone through north") || !strings.Contains(string(words), "--local-egress") {
		m.t.Errorf("in words: %v: %s", err, words)
	}
}

func (m *methodTrial) vm() drover.VM {
	m.t.Helper()
	var v drover.VM
	if err := m.Drover(timeout(m.t, time.Minute), &v, "vms", "get", "sheep1"); err != nil {
		m.t.Fatal(err)
	}
	return v
}

// carried is what the edge of sheep1's home has counted of what was sent to it
// from outside.
func (m *methodTrial) carried() (sum drover.Bytes) {
	m.t.Helper()
	m.soon(func() error {
		sum = 0
		var all []drover.EdgeState
		if err := m.Drover(timeout(m.t, time.Minute), &all, "edges"); err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(e drover.EdgeState) bool { return e.Site == "north" })
		if i < 0 || len(all[i].Traffic) != 2 {
			return fmt.Errorf("edges: %+v", all)
		}
		for _, t := range all[i].Traffic {
			sum += t.To.RouterBridge + t.To.RouterRouter
		}
		return nil
	})
	return sum
}
