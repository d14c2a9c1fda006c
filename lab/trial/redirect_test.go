package trial_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
)

// The load balancer's address for clients in the lab routed.
const balanced = "http://10.3.9.80:8080"

// redirectTrial is the lab, whose guest web1 is behind a load balancer.
type redirectTrial struct{ *routedTrial }

// testRedirects takes a service to another site and back, while clients use it, and
// adds to it and takes away again.
func testRedirects(r *routedTrial) {
	// The load balancer takes a moment to see that its server is there.
	client := &http.Client{Transport: r.lab.Transport("c1"), Timeout: 5 * time.Second}
	for up := timeout(r.t, time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if _, err := whoAnswers(up, client); err == nil {
			break
		} else if up.Err() != nil {
			r.t.Fatal(err)
		}
	}
	client.CloseIdleConnections()
	for _, sub := range []struct {
		name string
		run  func(*redirectTrial)
	}{
		{"unhealthy", (*redirectTrial).unhealthy},
		{"dies", (*redirectTrial).dies},
		{"there", (*redirectTrial).there},
		{"back", (*redirectTrial).back},
		{"spawn", (*redirectTrial).spawn},
	} {
		ok := r.t.Run(sub.name, func(t *testing.T) {
			here := *r
			here.t = t
			sub.run(&redirectTrial{&here})
		})
		if !ok {
			break // each begins where the one before has ended
		}
	}
}

// visits are the requests of clients, each over a session of its own.
type visits struct {
	mu     sync.Mutex
	by     map[string]int // guests that have answered
	failed []string
}

// visit makes requests until ctx ends.
func (r *redirectTrial) visit(ctx context.Context) (*visits, func()) {
	v := &visits{by: map[string]int{}}
	transport := r.lab.Transport("c1")
	transport.DisableKeepAlives = true
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			name, err := whoAnswers(ctx, client)
			v.mu.Lock()
			switch {
			case err == nil:
				v.by[name]++
			case ctx.Err() == nil:
				v.failed = append(v.failed, err.Error())
			}
			v.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	return v, func() { cancel(); wg.Wait() }
}

// whoAnswers asks the service which guest it is.
func whoAnswers(ctx context.Context, client *http.Client) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, balanced+"/stats", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var s control.Stats
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return s.Name, err
}

// stay keeps one session open, with a request every while, and returns who has
// answered, each once in a row; it ends with leave.
func (r *redirectTrial) stay(ctx context.Context) (leave func() []string) {
	r.t.Helper()
	transport := r.lab.Transport("c1")
	transport.MaxConnsPerHost = 1
	dials := 0
	dial := transport.DialContext
	var mu sync.Mutex
	var seen []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		if len(seen) == 0 || seen[len(seen)-1] != s {
			seen = append(seen, s)
		}
	}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dials++; dials > 1 {
			note("another session")
		}
		return dial(ctx, network, address)
	}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	first := make(chan struct{})
	wg.Go(func() {
		defer transport.CloseIdleConnections()
		for n := 0; ctx.Err() == nil; n++ {
			name, err := whoAnswers(ctx, client)
			switch {
			case err == nil:
				note(name)
			case ctx.Err() == nil:
				note(err.Error())
			}
			if n == 0 {
				close(first)
			}
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
			}
		}
	})
	<-first
	return func() []string {
		cancel()
		wg.Wait()
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
}

// servers are those of the backend, by the load balancer's own word: state of the
// administrator (0 ready, 8 drained) and weight.
func (r *redirectTrial) servers() map[string]string {
	r.t.Helper()
	out, err := r.Exec(timeout(r.t, 30*time.Second), "edge-west", "sh", "-c", `echo "show servers state web" | socat - /run/haproxy/admin.sock`)
	if err != nil {
		r.t.Fatal(err)
	}
	servers := map[string]string{}
	for line := range strings.Lines(string(out)) {
		// be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight …
		if f := strings.Fields(line); len(f) > 7 && f[1] == "web" {
			name := f[3][strings.LastIndexByte(f[3], ':')+1:]
			servers[name] = fmt.Sprintf("%s/%s", f[6], f[7])
		}
	}
	return servers
}

// wantVMs wants these VMs, and no other but those of other trials, running at their
// hosts.
func (r *redirectTrial) wantVMs(want map[string]string) {
	r.t.Helper()
	var vms []drover.VM
	end := time.Now().Add(20 * time.Second)
	for {
		if err := r.Drover(timeout(r.t, time.Minute), &vms, "vms"); err != nil {
			r.t.Fatal(err)
		}
		got := map[string]string{}
		for _, v := range vms {
			switch {
			case strings.HasPrefix(v.Name, "sheep"):
			case v.State == drover.VMRunning:
				got[v.Name] = v.Host
			default:
				got[v.Name] = string(v.State)
			}
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
		if time.Now().After(end) {
			r.t.Errorf("there are %v, want %v", got, want)
			return
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// noFailures wants every request to have been answered, by these guests and each
// of them.
func (r *redirectTrial) noFailures(v *visits, by ...string) {
	r.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	r.t.Logf("answered by %v", v.by)
	if len(v.failed) > 0 {
		r.t.Errorf("%d requests have failed, the first: %s", len(v.failed), v.failed[0])
	}
	for _, name := range by {
		if v.by[name] == 0 {
			r.t.Errorf("%s has answered nothing", name)
		}
	}
	for name := range v.by {
		if !slices.Contains(by, name) {
			r.t.Errorf("%s has answered", name)
		}
	}
}

// unhealthy: a new VM that never is well gets no session.
func (r *redirectTrial) unhealthy() {
	before := r.servers()
	v, end := r.visit(r.t.Context())
	m, err := r.Move(timeout(r.t, 3*time.Minute), "web1", "south", "--method", "redirect", "--backend", "web",
		"--health", "http://0.0.0.0:9/", "--health-timeout", "5s")
	end()
	wantStatus(r.t, err, 1)
	if m.State != drover.MoveUndone || !strings.Contains(m.Fault, "not well") {
		r.t.Errorf("the move is %s (%s)", m.State, m.Fault)
	}
	r.noFailures(v, "web1")
	r.wantVMs(map[string]string{"web1": "n1"})
	if got := r.servers(); fmt.Sprint(got) != fmt.Sprint(before) {
		r.t.Errorf("the backend has %v, before %v", got, before)
	}
	r.tidy()
}

// dies: a new VM that dies while it has sessions already gives them back.
func (r *redirectTrial) dies() {
	before := r.servers()
	ctx := timeout(r.t, 3*time.Minute)
	var m drover.Move
	if err := r.Drover(ctx, &m, "move", "web1", "--to", "south", "--method", "redirect", "--backend", "web", "--step-time", "1m", "--detach"); err != nil {
		r.t.Fatal(err)
	}
	for !slices.ContainsFunc(m.Steps, func(s drover.StepRecord) bool { return s.Name == "shift" && s.State == drover.StepRunning }) {
		if m.State.Final() || ctx.Err() != nil {
			r.t.Fatalf("the move is %s (%s) before the shift", m.State, m.Fault)
		}
		time.Sleep(200 * time.Millisecond)
		if err := r.Drover(ctx, &m, "moves", "get", m.Name); err != nil {
			r.t.Fatal(err)
		}
	}
	if _, err := r.Exec(ctx, "s1", "virsh", "destroy", "web1-south"); err != nil {
		r.t.Fatal(err)
	}
	m, err := r.Settled(ctx, m.Name)
	if err != nil {
		r.t.Fatal(err)
	}
	if m.State != drover.MoveUndone || !strings.Contains(m.Fault, "its traffic goes back") {
		r.t.Errorf("the move is %s (%s)", m.State, m.Fault)
	}
	v, end := r.visit(ctx)
	time.Sleep(2 * time.Second)
	end()
	r.noFailures(v, "web1")
	r.wantVMs(map[string]string{"web1": "n1"})
	if got := r.servers(); fmt.Sprint(got) != fmt.Sprint(before) {
		r.t.Errorf("the backend has %v, before %v", got, before)
	}
	r.tidy()
}

// there: nobody is refused, and a session that is open stays with the old VM until
// its client ends it.
func (r *redirectTrial) there() {
	ctx := timeout(r.t, 4*time.Minute)
	v, end := r.visit(ctx)
	leave := r.stay(ctx)
	var m drover.Move
	if err := r.Drover(ctx, &m, "move", "web1", "--to", "south", "--method", "redirect", "--backend", "web",
		"--step-time", "1s", "--drain-cap", "2m", "--detach"); err != nil {
		r.t.Fatal(err)
	}
	var drained time.Time
	for drained.IsZero() || time.Since(drained) < 5*time.Second {
		if m.State.Final() || ctx.Err() != nil {
			r.t.Fatalf("the move is %s (%s) while a session is open", m.State, m.Fault)
		}
		if drained.IsZero() && slices.ContainsFunc(m.Steps, func(s drover.StepRecord) bool { return s.Name == "drain" && s.State == drover.StepRunning }) {
			drained = time.Now()
		}
		time.Sleep(200 * time.Millisecond)
		if err := r.Drover(ctx, &m, "moves", "get", m.Name); err != nil {
			r.t.Fatal(err)
		}
	}
	if where, err := r.Where(ctx, "web1"); err != nil || where["n1"] != "running" {
		r.t.Errorf("the old VM is %v while it has a session, error %v", where, err)
	}
	if by := leave(); !slices.Equal(by, []string{"web1"}) {
		r.t.Errorf("the open session was answered by %v", by)
	}
	m, err := r.Settled(ctx, m.Name)
	if err != nil {
		r.t.Fatal(err)
	}
	end()
	if m.State != drover.MoveDone || m.Measured.SessionsLost == nil || *m.Measured.SessionsLost != 0 {
		r.t.Fatalf("the move is %s (%s), measured %+v", m.State, m.Fault, m.Measured)
	}
	r.noFailures(v, "web1", "web1-south")
	r.wantVMs(map[string]string{"web1-south": "s1"})
	if where, err := r.Where(ctx, "web1"); err != nil || len(where) > 0 {
		r.t.Errorf("the old VM is %v, error %v", where, err)
	}
	r.tidy()
	if got := r.servers(); got["web1"] != "8/0" || got["web1-south"] == "" || got["web1-south"][0] != '0' {
		r.t.Errorf("the backend has %v", got)
	}
}

// back: the new VM may have the name of a server that the load balancer has by
// itself. A session that does not end is cut at the cap, and counted.
func (r *redirectTrial) back() {
	ctx := timeout(r.t, 4*time.Minute)
	v, end := r.visit(ctx)
	leave := r.stay(ctx)
	m, err := r.Move(ctx, "web1-south", "north", "--method", "redirect", "--backend", "web", "--as", "web1", "--fresh",
		"--weight-steps", "50,100", "--step-time", "1s", "--drain-cap", "5s")
	leave()
	end()
	if err != nil {
		r.t.Fatal(err)
	}
	if m.Measured.SessionsLost == nil || *m.Measured.SessionsLost != 1 {
		r.t.Errorf("measured %+v, want one session lost", m.Measured)
	}
	r.noFailures(v, "web1-south", "web1")
	r.wantVMs(map[string]string{"web1": "n1"})
	r.tidy()
	if got := r.servers(); got["web1"] != "8/0" && got["web1"] != "8/1" || len(got) != 2 || got["web1-2"] == "" || got["web1-2"][0] != '0' {
		r.t.Errorf("the backend has %v", got)
	}
}

// spawn: one more server while nothing stops; what it leaves when it is removed by
// hand is found.
func (r *redirectTrial) spawn() {
	ctx := timeout(r.t, 4*time.Minute)
	v, end := r.visit(ctx)
	var m drover.Move
	err := r.Drover(ctx, &m, "spawn", "web2", "--like", "web1", "--to", "south", "--backend", "web", "--name", "web2.routed.example")
	if err != nil {
		r.t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	end()
	if m.State != drover.MoveDone || m.Clone == nil || len(m.Clone.Addresses) == 0 {
		r.t.Fatalf("the move is %s (%s), it made %+v", m.State, m.Fault, m.Clone)
	}
	r.noFailures(v, "web1", "web2")
	r.wantVMs(map[string]string{"web1": "n1", "web2": "s1"})
	r.tidy()
	out, err := r.Exec(ctx, "edge-south", "dig", "+short", "@10.2.0.1", "web2.routed.example")
	if got := strings.TrimSpace(string(out)); err != nil || got != m.Clone.Addresses[0].String() {
		r.t.Errorf("the name answers %q, error %v, want %s", got, err, m.Clone.Addresses[0])
	}
	// A second one of that name is refused before anything begins.
	wantStatus(r.t, r.Drover(ctx, nil, "spawn", "web2", "--like", "web1", "--to", "south"), 3)
	wantStatus(r.t, r.Drover(ctx, nil, "spawn", "web3", "--like", "web1", "--to", "south", "--backend", "nosuch"), 3)

	if _, err := r.Exec(ctx, "s1", "sh", "-c", "virsh destroy web2 && virsh undefine web2 && rm /var/lib/libvirt/images/web2.qcow2"); err != nil {
		r.t.Fatal(err)
	}
	r.wantVMs(map[string]string{"web1": "n1"})
	var d drover.Diagnosis
	if err := r.Drover(ctx, &d, "doctor"); err == nil || len(d.Findings) < 3 {
		r.t.Errorf("doctor finds %+v, error %v, want the lease, the name and the server", d.Findings, err)
	}
	if err := r.Drover(ctx, &d, "doctor", "--remove"); err != nil || !d.OK {
		r.t.Errorf("doctor --remove: %v, %+v", err, d.Findings)
	}
	r.tidy()
	if got := r.servers(); got["web2"] != "" {
		r.t.Errorf("the backend has %v", got)
	}
}
