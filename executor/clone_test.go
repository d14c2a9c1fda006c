package executor_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/executor/executortest"
)

// oldServer is the server that web1 is before it is redirected.
var oldServer = executor.OldServer{Name: "web1", Full: "web1", Weight: 100}

// addedServer is that of a VM that Drover has put behind the load balancer.
var addedServer = executor.OldServer{Name: "web1", Owner: "vm/11111111-2222", Full: "drover-vm:11111111-2222:web1", Weight: 100}

func withClone(sc scenario, r *executor.Request) {
	if !sc.method.Makes() {
		return
	}
	r.VM.NICs = []drover.NIC{{MAC: "52:54:00:00:00:01", Network: "br-blue"}}
	r.Clone = &executor.Clone{
		Name: "web1-east", UUID: "22222222-3333", Fresh: sc.method == drover.Spawn,
		NICs:    []executor.CloneNIC{{MAC: "52:54:00:00:00:01", NewMAC: "52:54:00:00:00:21", Network: "br-green", Segment: "green", Edge: "east-edge"}},
		Health:  &drover.HealthCheck{Kind: drover.HealthHTTP, Target: "http://0.0.0.0:8080/healthz"},
		Checker: "west-edge",
		DNS:     &executor.CloneDNS{Name: "web1-east.example.net", Edge: "west-edge"},
		Service: &executor.Service{Edge: "west-edge", Backend: "web", Server: "web1-new", Port: 8080, Weight: 100},
	}
	for _, d := range r.Disks {
		d.Path, d.Fresh = strings.Replace(d.Path, "web1", "web1-east", 1), r.Clone.Fresh
		r.Clone.Disks = append(r.Clone.Disks, d)
	}
	if sc.method != drover.Redirect {
		return
	}
	s := r.Clone.Service
	s.Old, s.StepTime, s.DrainCap = oldServer, time.Second, time.Minute
	if sc.back != "" {
		s.Old = addedServer
	}
	s.Steps = []executor.WeightStep{{New: 10, Old: 90}, {New: 100}}
	r.Clone.Forget = []string{"west-edge"}
}

// setClone gives the world the edges and the load balancer.
func setClone(w *executortest.World, sc scenario, r executor.Request) {
	if !sc.method.Makes() {
		return
	}
	w.SetEdge("east-edge")
	old := oldServer
	if sc.back != "" {
		old = addedServer
	}
	w.SetService("west-edge", "web", old, r.VM.Name, sc.sessions)
}

// checkClone is Check for moves that make another VM, with what stands at edges.
func checkClone(w *executortest.World, sc scenario, r executor.Request, m drover.Move) []string {
	wrong := w.CheckClone(m, r)
	own := `server drover-vm:22222222-3333:web1-new = ready weight 100 owner "vm/22222222-3333" changed by ""`
	lease, name := "lease green 52:54:00:00:00:21 = vm/22222222-3333", "name web1-east.example.net = vm/22222222-3333"
	old := fmt.Sprintf(`server %s = ready weight 100 owner %q changed by ""`, oldServer.Full, "")
	if sc.back != "" {
		old = fmt.Sprintf(`server %s = ready weight 100 owner %q changed by ""`, addedServer.Full, addedServer.Owner)
	}
	var balancer, dhcp []string
	switch {
	case m.State != drover.MoveDone:
		balancer = []string{old}
	case m.Method == drover.Spawn:
		balancer, dhcp = []string{name, old, own}, []string{lease}
	case sc.back != "":
		balancer, dhcp = []string{name, own}, []string{lease}
	default:
		drained := fmt.Sprintf(`server %s = drain weight 0 owner "" changed by "vm/22222222-3333"`, oldServer.Full)
		balancer, dhcp = []string{name, drained, own}, []string{lease}
	}
	slices.Sort(balancer)
	for host, want := range map[string][]string{"west-edge": balancer, "east-edge": dhcp} {
		if got := w.Facts(host); !slices.Equal(got, want) {
			wrong = append(wrong, fmt.Sprintf("%s has %q, want %q", host, got, want))
		}
	}
	if c := m.Clone; c == nil || c.Name != r.Clone.Name || m.State == drover.MoveDone && !slices.Equal(c.Addresses, []netip.Addr{netip.MustParseAddr("10.60.0.21")}) {
		wrong = append(wrong, fmt.Sprintf("the move shows %+v", c))
	}
	return wrong
}

// Sessions that end by themselves end the drain; those that do not are cut at the
// cap, and counted.
func TestRedirectDrains(t *testing.T) {
	for _, c := range []struct {
		name      string
		sessions  int
		ends      time.Duration // after the drain has begun; zero: they do not
		lost      int64
		atLeast   time.Duration
		oldServer string
	}{
		{name: "none", lost: 0},
		{name: "they end", sessions: 3, ends: 20 * time.Second, lost: 0, atLeast: 20 * time.Second},
		{name: "they stay", sessions: 3, lost: 3, atLeast: time.Minute},
	} {
		sc := scenario{method: drover.Redirect, sessions: c.sessions}
		var began, ended time.Time
		sc.fault = func(w *executortest.World, call executortest.Call) error {
			if call.Step == "drain-watch" && !call.After {
				began = time.Now()
				if c.ends > 0 {
					time.AfterFunc(c.ends, func() { w.SetSessions(oldServer.Full, 0) })
				}
			}
			if call.Step == "drain-watch" && call.After {
				ended = time.Now()
			}
			return nil
		}
		st := bubble(t, c.name, sc)
		want(t, c.name, st, drover.MoveDone)
		if l := st.move.Measured.SessionsLost; l == nil || *l != c.lost {
			t.Errorf("%s: sessions lost %v, want %d", c.name, l, c.lost)
		}
		if took := ended.Sub(began); took < c.atLeast || took > c.atLeast+5*time.Second {
			t.Errorf("%s: drained for %v, want %v", c.name, took, c.atLeast)
		}
	}
}

// A new VM that is not well at any moment before the old one stops gives the traffic
// back.
func TestRedirectSick(t *testing.T) {
	for _, back := range []drover.Method{"", drover.Redirect} {
		for _, step := range []string{"health", "shift-watch-1", "shift-watch-2", "drain-watch"} {
			name := fmt.Sprintf("sick from %s on, from an added server %v", step, back != "")
			sc := scenario{method: drover.Redirect, sessions: 2, back: back}
			sc.fault = func(w *executortest.World, c executortest.Call) error {
				if c.Step == step && !c.After {
					w.SetSick("web1", "nobody answers")
				}
				return nil
			}
			st := bubble(t, name, sc)
			want(t, name, st, drover.MoveUndone)
			if !strings.Contains(st.move.Fault, "nobody answers") || !strings.Contains(st.move.Fault, "web1-east") {
				t.Errorf("%s: its fault is %q", name, st.move.Fault)
			}
		}
	}
}

// A VM that is to be kept stays defined, off, with its disks.
func TestRedirectKept(t *testing.T) {
	st := bubble(t, "kept", scenario{method: drover.Redirect, keep: true})
	want(t, "kept", st, drover.MoveDone)
}

// Without a load balancer and a name there is less to do, and the same VM.
func TestSpawnAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := request(scenario{method: drover.Spawn})
		r.Clone.Service, r.Clone.DNS, r.Clone.Checker = nil, nil, "east1"
		s := open(t, executor.Config{}, "west1", "east1", "east-edge")
		s.world.SetEdge("east-edge")
		s.world.AddVM(r.VM)
		m := s.end(t, s.start(t, r).Name)
		for _, wrong := range s.world.CheckClone(m, r) {
			t.Error(wrong)
		}
		if m.State != drover.MoveDone {
			t.Errorf("the move is %s: %s", m.State, m.Fault)
		}
	})
}

func TestCloneRequests(t *testing.T) {
	for name, c := range map[string]struct {
		method drover.Method
		spoil  func(*executor.Request)
		want   string
	}{
		"no clone":         {drover.Spawn, func(r *executor.Request) { r.Clone = nil }, "clone is missing"},
		"of another":       {drover.Spawn, func(r *executor.Request) { r.Method = drover.Cold }, "makes no other VM"},
		"its own name":     {drover.Spawn, func(r *executor.Request) { r.Clone.Name = "web1" }, "a name and a UUID of its own"},
		"its own disk":     {drover.Redirect, func(r *executor.Request) { r.Clone.Disks[0].Path = "/v/web1.qcow2" }, "the VM's own"},
		"its own MAC":      {drover.Spawn, func(r *executor.Request) { r.Clone.NICs[0].NewMAC = r.Clone.NICs[0].MAC }, "new MAC"},
		"no backend":       {drover.Redirect, func(r *executor.Request) { r.Clone.Service = nil }, "needs a backend"},
		"a server's name":  {drover.Redirect, func(r *executor.Request) { r.Clone.Service.Server = "web1" }, "another's name"},
		"no old server":    {drover.Redirect, func(r *executor.Request) { r.Clone.Service.Old = executor.OldServer{} }, "drained"},
		"checked from far": {drover.Redirect, func(r *executor.Request) { r.Clone.Checker = "east1" }, "load balancer's edge"},
		"a gate":           {drover.Redirect, func(r *executor.Request) { r.Gate = &drover.Gate{} }, "has none"},
		"copied spawn":     {drover.Spawn, func(r *executor.Request) { r.Clone.Fresh = false }, "fresh"},
		"off":              {drover.Redirect, func(r *executor.Request) { r.VM.State = drover.VMOff }, "only a running VM"},
	} {
		r := request(scenario{method: c.method})
		if err := r.Validate(); err != nil {
			t.Fatalf("%s: %v", c.method, err)
		}
		r = request(scenario{method: c.method})
		c.spoil(&r)
		if err := r.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to say %q", name, err, c.want)
		}
	}
}
