package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

const cardMAC = "52:54:00:00:00:01"

// frameTo is a frame to the VM's card with a text.
func frameTo(text string) []byte {
	mac, _ := net.ParseMAC(cardMAC)
	f := append(slices.Clone(mac), 0x52, 0x54, 0, 0, 0, 9)
	return append(binary.BigEndian.AppendUint16(f, 0x88b5), text...)
}

// given is what a host has given the VM's card so far, as texts.
func (w *world) given(host string) []string {
	frames, _ := w.hosts[host].ports.Given(cardMAC)
	var texts []string
	for _, f := range frames {
		texts = append(texts, string(f.Data[14:]))
	}
	return texts
}

// plugged has the VM's card plugged in at both hosts, as it is while a move is
// under way.
func (w *world) plugged() {
	for _, h := range w.hosts {
		h.ports.Plug(cardMAC)
	}
}

// settledCatches waits until nobody listens any more.
func (w *world) settledCatches() {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if w.hosts["north1"].ports.Listening()+w.hosts["south1"].ports.Listening() == 0 {
			return
		}
	}
	w.t.Error("somebody still listens")
}

// What arrives at the source from the guest's stop on is given to it at the
// destination, in order, and what was there before is not; what still arrives
// afterwards follows it. The source's edge is told of routes at once, and of the
// rest when the old way is quiet.
func TestCatch(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.plugged()
	source, target := w.addEdge("edge-north"), w.addEdge("edge-south")
	w.fleet.SetTransfer(func(ctx context.Context, from, to, vm string) error {
		w.hosts["north1"].ports.Send(frameTo("while it runs"))
		time.Sleep(2 * catchLead)
		return w.carryBytes(ctx, from, to, vm)
	})
	w.setPoint(func(host, point string) error {
		switch host + " " + point {
		case "north1 after journal given-up":
			w.hosts["north1"].ports.Send(frameTo("paused"))
			w.hosts["north1"].ports.Send(frameTo("paused, too"))
		case "south1 after hypervisor finish":
			w.hosts["north1"].ports.Send(frameTo("by the old way"))
		}
		return nil
	})
	w.begin()
	action := w.transferAction()
	action.SourceEdge, action.TargetEdge = source.agent(), target.agent()
	w.ask("north1", "transfer", 1, action)
	if got, want := source.told(2), []string{"north1 web1 1 routes", "north1 web1 1"}; !slices.Equal(got, want) {
		t.Errorf("the source's edge was called %q, want %q", got, want)
	}
	if got, want := target.told(1), []string{"south1 web1 1"}; !slices.Equal(got, want) {
		t.Errorf("the destination's edge was called %q, want %q", got, want)
	}
	w.settledCatches()
	want := []string{"paused", "paused, too", "by the old way"}
	if got := w.given("south1"); !slices.Equal(got, want) {
		t.Errorf("the guest was given %q, want %q", got, want)
	}
	w.checkOnce(w.finish(1, nil))
}

// Where old sessions go on through the mesh the source's edge is told of all at
// once: the answers that come out of the mesh do not wait for the old way to be
// quiet. What still comes by it is handed over all the same.
func TestCatchBesideTheMesh(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.plugged()
	source, target := w.addEdge("edge-north"), w.addEdge("edge-south")
	w.setPoint(func(host, point string) error {
		switch host + " " + point {
		case "north1 after journal given-up":
			w.hosts["north1"].ports.Send(frameTo("paused"))
		case "south1 after hypervisor finish":
			w.hosts["north1"].ports.Send(frameTo("by the old way"))
		}
		return nil
	})
	w.begin()
	action := w.transferAction()
	action.SourceEdge, action.TargetEdge = source.agent(), target.agent()
	action.Guest = &droverv1.GuestChange{Mac: cardMAC, Add: []string{"10.60.0.9/24"}}
	w.ask("north1", "transfer", 1, action)
	w.settledCatches()
	if got, want := source.told(1), []string{"north1 web1 1"}; !slices.Equal(got, want) {
		t.Errorf("the source's edge was called %q, want %q", got, want)
	}
	if got, want := w.given("south1"), []string{"paused", "by the old way"}; !slices.Equal(got, want) {
		t.Errorf("the guest was given %q, want %q", got, want)
	}
	w.checkOnce(w.finish(1, nil))
}

// What was caught for a guest that goes on at its source is dropped.
func TestCatchUndone(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.plugged()
	w.begin()
	w.setPoint(func(host, point string) error {
		switch host + " " + point {
		case "north1 after journal given-up":
			w.hosts["north1"].ports.Send(frameTo("paused"))
		case "south1 before journal in-accepted":
			return drover.Errorf(drover.Internal, "test", "no room in the journal")
		}
		return nil
	})
	_, err := w.insist("north1", "transfer", 1, w.transferAction())
	if err == nil {
		t.Fatal("the guest moved")
	}
	w.settledCatches()
	w.checkOnce(w.finish(1, err))
	if got := w.given("south1"); len(got) != 0 {
		t.Errorf("a guest that does not run there was given %q", got)
	}
	w.hosts["north1"].ports.Send(frameTo("again"))
	if got, want := w.given("north1"), []string{"paused", "again"}; !slices.Equal(got, want) {
		t.Errorf("at the source it was given %q, want %q", got, want)
	}
}

// A move goes on where nothing can be caught, or given.
func TestCatchImpossible(t *testing.T) {
	for name, prepare := range map[string]func(*world){
		"no port at the source":      func(w *world) { w.hosts["south1"].ports.Plug(cardMAC) },
		"no port at the destination": func(w *world) { w.hosts["north1"].ports.Plug(cardMAC) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			prepare(w)
			source := w.addEdge("edge-north")
			w.begin()
			action := w.transferAction()
			action.SourceEdge = source.agent()
			w.ask("north1", "transfer", 1, action)
			calls := source.told(1)
			if len(calls) == 0 || strings.HasSuffix(calls[0], "routes") != (name == "no port at the destination") {
				t.Errorf("the source's edge was called %q", calls)
			}
			w.settledCatches()
			w.checkOnce(w.finish(1, nil))
		})
	}
}

// Frames are taken from the other end of the move alone, under its session.
func TestHandFramesRefused(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.plugged()
	w.begin()
	ref := func() *droverv1.MoveRef {
		return &droverv1.MoveRef{Move: moveName, Generation: 1, Vm: vmName, VmUuid: vmUUID}
	}
	hand := func(name string, m *droverv1.HandFramesRequest) error {
		c := api.NewPeerClient(w.hosts["south1"].address, w.hosts[name].tls, "south1")
		defer c.Close()
		s, err := c.HandFrames(t.Context())
		must(t, err)
		_ = s.Send(m)
		_, err = s.CloseAndReceive()
		return err
	}
	kind := func(what string, err error, want drover.Kind) {
		t.Helper()
		if err == nil || drover.KindOf(err) != want {
			t.Errorf("%s: %v, want an error of kind %v", what, err, want)
		}
	}
	kind("nothing prepared", hand("north1", &droverv1.HandFramesRequest{Ref: ref(), Macs: []string{cardMAC}}), drover.Refused)
	kind("no reference", hand("north1", &droverv1.HandFramesRequest{}), drover.Invalid)
	w.setPoint(func(host, point string) error {
		if host+" "+point != "north1 after journal given-up" {
			return nil
		}
		arr := w.hosts["south1"].current().agent.incoming.get(moveName)
		kind("another token", hand("north1", &droverv1.HandFramesRequest{Ref: ref(), Token: make([]byte, tokenBytes), Macs: []string{cardMAC}}), drover.Refused)
		kind("another agent", hand("south1", &droverv1.HandFramesRequest{Ref: ref(), Token: arr.token, Macs: []string{cardMAC}}), drover.Denied)
		kind("no card", hand("north1", &droverv1.HandFramesRequest{Ref: ref(), Token: arr.token}), drover.Invalid)
		kind("many cards", hand("north1", &droverv1.HandFramesRequest{Ref: ref(), Token: arr.token, Macs: make([]string, maxCards+1)}), drover.Invalid)
		kind("no such card", hand("north1", &droverv1.HandFramesRequest{Ref: ref(), Token: arr.token, Macs: []string{"52:54:00:00:00:77"}}), drover.NotFound)
		return nil
	})
	w.ask("north1", "transfer", 1, w.transferAction())
	w.settledCatches()
	w.checkOnce(w.finish(1, nil))
}

// What is held for a guest that does not run yet is bounded.
func TestHandingBounded(t *testing.T) {
	h := &handing{some: make(chan struct{}, 1), ended: make(chan struct{})}
	h.ports = append(h.ports, nil)
	for i := range maxHeld + 7 {
		h.put([]*droverv1.CaughtFrame{{Data: frameTo(fmt.Sprint(i))}})
	}
	h.put([]*droverv1.CaughtFrame{{Card: 1, Data: frameTo("of no card")}})
	if len(h.queue) != maxHeld || h.dropped != 8 {
		t.Errorf("%d held, %d dropped", len(h.queue), h.dropped)
	}
	if got := h.take(); len(got) != maxHeld || h.bytes != 0 {
		t.Errorf("%d taken, %d bytes left", len(got), h.bytes)
	}
	big := make([]byte, 1<<16)
	for range maxHeldBytes/len(big) + 1 {
		h.put([]*droverv1.CaughtFrame{{Data: big}})
	}
	if h.bytes > maxHeldBytes || h.dropped != 9 {
		t.Errorf("%d bytes held, %d dropped", h.bytes, h.dropped)
	}
}
