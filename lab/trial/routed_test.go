package trial_test

import (
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/topology"
	"github.com/drover-vm/drover/lab/trial"
)

// routedFile is the lab of TestRouted.
const routedFile = "testdata/routed.yaml"

// routedTrial is a lab whose sites are behind routers, with guests that are each the
// matter of some trials: sheep1, which has an agent, sheep2, which asks DHCP, and
// web1, which is behind a load balancer.
type routedTrial struct {
	*trial.Lab
	t   *testing.T
	lab *lab.Lab
	// services are those of a site.
	services func(site string) lab.EdgeServices
}

// TestRouted are the trials of what moves between networks need, in one lab, one after
// the other: each leaves guests and components as the next expects them.
func TestRouted(t *testing.T) {
	t.Parallel()
	l := &trial.Lab{Bin: shared.Bin, Name: *labName + "-net", Log: shared.Log}
	bringUp(t, l, routedFile)
	f, err := labfile.Load(routedFile)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := topology.New(f)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := lab.Open(lab.Options{Exe: l.Bin}, l.Name)
	if err != nil {
		t.Fatal(err)
	}
	services := func(site string) lab.EdgeServices { return lab.Services(f, plan, site) }
	for _, sub := range []struct {
		name string
		run  func(*routedTrial)
	}{
		{"Edge", testEdge},
		{"Methods", testMethods},
		{"Renumber", testRenumber},
		{"Redirects", testRedirects},
	} {
		t.Run(sub.name, func(t *testing.T) { sub.run(&routedTrial{Lab: l, t: t, lab: opened, services: services}) })
	}
}

// shell runs a line in a node and returns what it wrote.
func (r *routedTrial) shell(node, line string) (string, error) {
	out, err := r.Exec(timeout(r.t, 30*time.Second), node, "sh", "-c", line)
	return strings.TrimSpace(string(out)), err
}

// soon waits for what comes by itself.
func (r *routedTrial) soon(ok func() error) {
	r.t.Helper()
	r.within(30*time.Second, ok)
}

func (r *routedTrial) within(d time.Duration, ok func() error) {
	r.t.Helper()
	var err error
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	r.t.Error(err)
}

// tidy wants nothing left over.
func (r *routedTrial) tidy() {
	r.t.Helper()
	var d drover.Diagnosis
	if err := r.Drover(timeout(r.t, time.Minute), &d, "doctor"); err != nil || !d.OK {
		r.t.Errorf("doctor: %v, %+v", err, d.Findings)
	}
}
