package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/api/droverv1/droverv1connect"
	"github.com/drover-vm/drover/pki"
)

// fakeEdge is an edge as the hosts of its site see it.
type fakeEdge struct {
	droverv1connect.UnimplementedPeerServiceHandler
	name, address string

	mu    sync.Mutex
	calls []string // "caller move generation"
	fails []error  // of the next calls
}

// addEdge starts an edge that lives as long as the test.
func (w *world) addEdge(name string) *fakeEdge {
	e := &fakeEdge{name: name, address: freeAddress(w.t)}
	l, err := net.Listen("tcp", e.address)
	must(w.t, err)
	path, h := droverv1connect.NewPeerServiceHandler(e, api.HandlerOptions()...)
	mux := http.NewServeMux()
	mux.Handle(path, api.RequireRole(h, pki.Agent))
	server, served := api.NewHTTPServer(mux), make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(tls.NewListener(l, api.ServerTLS(w.issue(pki.Agent, name)))); !errors.Is(err, http.ErrServerClosed) {
			w.t.Error(err)
		}
	}()
	w.t.Cleanup(func() { _ = server.Close(); <-served })
	return e
}

func (e *fakeEdge) agent() *droverv1.EdgeAgent {
	return &droverv1.EdgeAgent{Host: e.name, Address: e.address}
}

func (e *fakeEdge) Ping(context.Context, *droverv1.PingRequest) (*droverv1.PingResponse, error) {
	return &droverv1.PingResponse{Name: e.name}, nil
}

func (e *fakeEdge) CutOver(ctx context.Context, r *droverv1.CutOverRequest) (*droverv1.CutOverResponse, error) {
	id, _ := api.Caller(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	call := fmt.Sprintf("%s %s %d", id.Name, r.GetRef().GetVm(), r.GetRef().GetGeneration())
	if r.GetRoutesOnly() {
		call += " routes"
	}
	e.calls = append(e.calls, call)
	if len(e.fails) > 0 {
		err := e.fails[0]
		e.fails = e.fails[1:]
		return nil, err
	}
	return &droverv1.CutOverResponse{AtUnixNanos: time.Now().UnixNano()}, nil
}

// told waits for as many calls, and returns them.
func (e *fakeEdge) told(n int) []string {
	for range 200 {
		e.mu.Lock()
		calls := slices.Clone(e.calls)
		e.mu.Unlock()
		if len(calls) >= n {
			return calls
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// Each host tells the edge of its own site, the destination's when the guest
// runs, the source's when it has left; a call that fails is repeated, and nothing
// waits for it.
func TestHostsCallTheCutOver(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	source, target := w.addEdge("edge-north"), w.addEdge("edge-south")
	target.fails = []error{drover.Errorf(drover.Unavailable, "edge", "not now"), drover.Errorf(drover.Unavailable, "edge", "nor now")}
	source.fails = []error{drover.Errorf(drover.NotFound, "edge", "nothing is staged")}
	w.begin()
	action := w.transferAction()
	action.SourceEdge, action.TargetEdge = source.agent(), target.agent()
	w.ask("north1", "transfer", 1, action)
	if got, want := target.told(3), []string{"south1 web1 1", "south1 web1 1", "south1 web1 1"}; !slices.Equal(got, want) {
		t.Errorf("the destination's edge was called %q, want %q", got, want)
	}
	if got, want := source.told(1), []string{"north1 web1 1"}; !slices.Equal(got, want) {
		t.Errorf("the source's edge was called %q, want %q", got, want)
	}
	w.checkOnce(w.finish(1, nil))
	if got := source.told(1); len(got) != 1 {
		t.Errorf("the source's edge was called again after it had said no: %q", got)
	}
}

// A guest that goes on at its source tells no edge.
func TestNoCutOverWithoutMove(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	source, target := w.addEdge("edge-north"), w.addEdge("edge-south")
	w.begin()
	w.setPoint(func(host, point string) error {
		if host == "south1" && point == "before hypervisor finish" {
			return drover.Errorf(drover.Internal, "test", "the guest does not run here")
		}
		return nil
	})
	action := w.transferAction()
	action.SourceEdge, action.TargetEdge = source.agent(), target.agent()
	_, err := w.insist("north1", "transfer", 1, action)
	if err == nil {
		t.Fatal("the guest ran at a destination that cannot run it")
	}
	w.checkOnce(w.finish(1, err))
	if got := append(source.told(0), target.told(0)...); len(got) > 0 {
		t.Errorf("edges were told %q of a cut-over that was none", got)
	}
}

// An edge that cannot be called is refused before anything begins.
func TestTransferWithoutEdgeAddress(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.begin()
	action := w.transferAction()
	action.TargetEdge = &droverv1.EdgeAgent{Host: "edge-south", Address: "somewhere"}
	if _, err := w.insist("north1", "transfer", 1, action); drover.KindOf(err) != drover.Invalid {
		t.Errorf("%v: want invalid", err)
	}
	w.checkOnce(w.finish(1, errors.New("not begun")))
}
