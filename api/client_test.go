package api_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/api/droverv1/droverv1connect"
	"github.com/drover-vm/drover/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testAgent answers with what its functions say.
type testAgent struct {
	droverv1connect.UnimplementedAgentServiceHandler
	describe func(context.Context) (*droverv1.DescribeResponse, error)
	watch    func(context.Context, *connect.ServerStream[droverv1.DescribeResponse]) error
}

func (a testAgent) Describe(ctx context.Context, _ *droverv1.DescribeRequest) (*droverv1.DescribeResponse, error) {
	return a.describe(ctx)
}

func (a testAgent) Watch(ctx context.Context, _ *droverv1.DescribeRequest, out *connect.ServerStream[droverv1.DescribeResponse]) error {
	return a.watch(ctx, out)
}

// authority issues TLS configurations.
type authority struct {
	t  *testing.T
	ca *pki.CA
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	ca, err := pki.NewCA(filepath.Join(t.TempDir(), "ca"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return authority{t, ca}
}

func (a authority) config(role pki.Role, name string) *tls.Config {
	a.t.Helper()
	f, err := a.ca.Issue(pki.Identity{Role: role, Name: name}, nil, a.t.TempDir(), time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	cfg, err := pki.Config(f)
	if err != nil {
		a.t.Fatal(err)
	}
	return cfg
}

// serve runs an agent named h1 and returns its address, and what cuts every
// connection at once.
func (a authority) serve(h testAgent) (addr string, cut func()) {
	a.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	path, handler := droverv1connect.NewAgentServiceHandler(h, api.HandlerOptions()...)
	mux := http.NewServeMux()
	mux.Handle(path, api.RequireRole(handler, pki.Server))
	web := api.NewHTTPServer(mux)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := web.Serve(tls.NewListener(l, api.ServerTLS(a.config(pki.Agent, "h1")))); !errors.Is(err, http.ErrServerClosed) {
			a.t.Error(err)
		}
	}()
	cut = func() {
		web.Close()
		<-ended
	}
	a.t.Cleanup(cut)
	return l.Addr().String(), cut
}

func TestErrorsCrossTheWire(t *testing.T) {
	want := drover.Errorf(drover.Exhausted, "create volumes", "no space on %q", "/x")
	ca := newAuthority(t)
	addr, _ := ca.serve(testAgent{
		describe: func(ctx context.Context) (*droverv1.DescribeResponse, error) {
			if id, ok := api.Caller(ctx); !ok || id.String() != "server/s" {
				return nil, drover.Errorf(drover.Internal, "caller", "%v", id)
			}
			return nil, want
		},
		watch: func(_ context.Context, out *connect.ServerStream[droverv1.DescribeResponse]) error {
			if err := out.Send(&droverv1.DescribeResponse{}); err != nil {
				return err
			}
			return want
		},
	})
	c := api.NewAgentClient(addr, ca.config(pki.Server, "s"), "h1")
	defer c.Close()
	_, err := c.Describe(t.Context(), &droverv1.DescribeRequest{})
	if drover.KindOf(err) != drover.Exhausted || err.Error() != want.Error() {
		t.Errorf("unary: %v (%s), want %v", err, drover.KindOf(err), want)
	}
	stream, err := c.Watch(t.Context(), &droverv1.DescribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	n := 0
	for stream.Receive() {
		n++
	}
	if err := stream.Err(); n != 1 || drover.KindOf(err) != drover.Exhausted || err.Error() != want.Error() {
		t.Errorf("stream: %d messages, then %v, want 1 and %v", n, err, want)
	}
}

func TestWhoMayCallWhom(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	addr, _ := ca.serve(testAgent{describe: func(context.Context) (*droverv1.DescribeResponse, error) {
		return &droverv1.DescribeResponse{}, nil
	}})
	for _, tt := range []struct {
		name string
		cfg  *tls.Config
		peer string
		want drover.Kind
		text string
	}{
		{"an agent", ca.config(pki.Agent, "h2"), "h1", drover.Denied, "agent/h2 may not call"},
		{"an operator", ca.config(pki.Operator, "alice"), "h1", drover.Denied, "operator/alice may not call"},
		{"another host than meant", ca.config(pki.Server, "s"), "h9", drover.Unavailable, "the peer is agent/h1, want agent/h9"},
		{"another installation", other.config(pki.Server, "s"), "h1", drover.Unavailable, "certificate"},
	} {
		c := api.NewAgentClient(addr, tt.cfg, tt.peer)
		_, err := c.Describe(t.Context(), &droverv1.DescribeRequest{})
		if drover.KindOf(err) != tt.want || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v (%s), want %s with %q", tt.name, err, drover.KindOf(err), tt.want, tt.text)
		}
		c.Close()
	}
}

func TestPeerThatGoesAway(t *testing.T) {
	ca := newAuthority(t)
	begun := make(chan struct{}, 2)
	addr, cut := ca.serve(testAgent{
		describe: func(ctx context.Context) (*droverv1.DescribeResponse, error) {
			begun <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		},
		watch: func(ctx context.Context, out *connect.ServerStream[droverv1.DescribeResponse]) error {
			if err := out.Send(&droverv1.DescribeResponse{}); err != nil {
				return err
			}
			begun <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		},
	})
	c := api.NewAgentClient(addr, ca.config(pki.Server, "s"), "h1")
	defer c.Close()

	// The caller's own end is canceled, and still its context's.
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := c.Describe(ctx, &droverv1.DescribeRequest{}); drover.KindOf(err) != drover.Canceled || !errors.Is(err, context.Canceled) {
		t.Errorf("own end: %v (%s), want canceled", err, drover.KindOf(err))
	}

	// The other's is unavailable, in a call and in the middle of a stream.
	stream, err := c.Watch(t.Context(), &droverv1.DescribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	<-begun
	answer := make(chan error)
	go func() {
		_, err := c.Describe(t.Context(), &droverv1.DescribeRequest{})
		answer <- err
	}()
	<-begun
	cut()
	if err := <-answer; drover.KindOf(err) != drover.Unavailable || !strings.HasPrefix(err.Error(), "agent h1 at "+addr) || !api.Unanswered(err) {
		t.Errorf("call: %v (%s), want unavailable and unanswered, naming the agent", err, drover.KindOf(err))
	}
	for stream.Receive() {
	}
	if err := stream.Err(); drover.KindOf(err) != drover.Unavailable || !api.Unanswered(err) {
		t.Errorf("stream: %v (%s), want unavailable and unanswered", err, drover.KindOf(err))
	}
	// And one that is not there at all.
	if _, err := c.Describe(t.Context(), &droverv1.DescribeRequest{}); drover.KindOf(err) != drover.Unavailable || strings.Contains(err.Error(), "https://") || !api.Unanswered(err) {
		t.Errorf("nobody there: %v, want unavailable and unanswered, without a URL", err)
	}
}

func TestTargets(t *testing.T) {
	cfg := newAuthority(t).config(pki.Operator, "alice")
	for _, bad := range []string{
		"", "host:1", "http://h:1", "https://h", "https://:1", "https://h:1/x", "unix://", "unix://host/x", "unix:x", "://", "https://h:1:2",
	} {
		if c, err := api.NewClient(bad, cfg); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%q: %v, want invalid", bad, err)
			if err == nil {
				c.Close()
			}
		}
	}
	for _, good := range []string{"https://192.0.2.1:7444", "https://[2001:db8::1]:7444/", "unix:///run/drover/server.sock"} {
		c, err := api.NewClient(good, cfg)
		if err != nil {
			t.Errorf("%q: %v", good, err)
			continue
		}
		c.Close()
	}
}
