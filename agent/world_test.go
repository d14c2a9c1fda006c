package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver/memory"
	"github.com/drover-vm/drover/pki"
)

// sideBySide is how many of the parallel tests run at a time unless -parallel says
// something else: they wait for the dead more than they compute.
const sideBySide = "6"

func TestMain(m *testing.M) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		if err := flag.Set("test.parallel", sideBySide); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

const (
	vmName  = "web1"
	vmUUID  = "11111111-2222-3333-4444-555555555555"
	imgDir  = "/images"
	vdaPath = imgDir + "/web1.qcow2"
	gold    = imgDir + "/gold.raw"
	diskLen = 8 << 20
)

// world is two agents, their hypervisors and volumes in memory, and a server's
// certificate to call them with.
type world struct {
	t      *testing.T
	fleet  *memory.Fleet
	inside *memory.GuestWorld
	hosts  map[string]*host
	server *tls.Config
	log    *slog.Logger
	// issue makes another certificate; skew is how far the clock of south1 is
	// ahead, in nanoseconds.
	issue func(pki.Role, string) *tls.Config
	skew  atomic.Int64
	// replica is what moves begin with; empty: nothing.
	replica string
	// pace is that of hosts which look at their VMs.
	pace pace
	// onPoint is told of every journal write and hypervisor call, in order;
	// it may kill.
	mu      sync.Mutex
	onPoint func(host, point string) error
}

// host is one machine: what outlives its agent, and the agent of now.
type host struct {
	w       *world
	name    string
	dir     string
	address string
	tls     *tls.Config
	hyp     *memory.Hypervisor
	volumes *memory.Volumes
	metrics string // address; empty: none
	ports   *memory.Ports
	// signals and pings are nil for an agent that looks at nothing.
	signals *memory.Signals
	pings   *memory.Pings
	deaf    atomic.Bool

	mu     sync.Mutex
	life   *life
	listen *faultyListener
}

// life is one process of an agent.
type life struct {
	agent  *Agent
	client *api.AgentClient
	dead   atomic.Bool
	cancel context.CancelFunc
	ended  chan error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, fleet: memory.NewFleet(time.Now), hosts: make(map[string]*host)}
	w.inside = memory.NewGuestWorld(w.fleet)
	w.log = slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		w.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	ca, err := pki.NewCA(filepath.Join(t.TempDir(), "ca"), time.Now())
	must(t, err)
	w.issue = func(role pki.Role, name string) *tls.Config {
		f, err := ca.Issue(pki.Identity{Role: role, Name: name}, []string{"127.0.0.1"}, t.TempDir(), time.Now())
		must(t, err)
		cfg, err := pki.Config(f)
		must(t, err)
		return cfg
	}
	w.server = w.issue(pki.Server, "server")
	w.fleet.SetFault(func(h, op, name string, m memory.Moment) error {
		if op == "finish" && m == memory.After || op == "start" && m == memory.After {
			// The guest runs, and its first write is acknowledged to a client:
			// from now on any older disk is the wrong one.
			_ = w.fleet.Write(h, name)
		}
		switch op {
		case "begin", "prepare", "perform", "finish", "confirm", "abandon", "settle", "define", "undefine", "start", "shutdown",
			"begin backup", "end backup", "remove checkpoint", "destroy", "copy disk", "end disk copy":
		default:
			return nil
		}
		moment := "before"
		if m == memory.After {
			moment = "after"
		}
		return w.point(h, moment+" hypervisor "+op)
	})
	for _, name := range []string{"north1", "south1"} {
		w.hosts[name] = &host{
			w: w, name: name, dir: shortDir(t), address: freeAddress(t), tls: w.issue(pki.Agent, name),
			hyp: w.fleet.AddHost(drover.Host{
				Name: name, UUID: "uuid-" + name, Arch: "x86_64", CPUModel: "qemu64", CPUs: 4, MemoryBytes: 8 * drover.GiB,
				HypervisorVersion: "10.0.2", ManagerVersion: "11.3.0", Accelerators: []string{"tcg"},
				Machines: []string{"pc-q35-10.0"}, Networks: []string{"blue"},
			}),
			volumes: memory.NewVolumes(memory.VolumesConfig{Dirs: []string{imgDir}}), ports: memory.NewPorts(),
		}
	}
	// Both sites hold the golden image.
	golden := bytes.Repeat([]byte("golden image content "), diskLen/21+1)[:diskLen]
	for _, h := range w.hosts {
		w.fleet.AttachVolumes(h.name, h.volumes)
		h.volumes.PutFile(gold, golden)
		h.start()
	}
	t.Cleanup(func() {
		for _, h := range w.hosts {
			h.stop()
		}
	})
	return w
}

// shortDir is a temporary folder whose path leaves room for sockets; in memory
// where there is such a place, since the journals are synced hundreds of times.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "ag")
	if err != nil {
		dir, err = os.MkdirTemp("", "ag")
	}
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// freeAddress returns one that an agent may listen at again after it has died: it is a loopback address of its own, so
// that no other connection of the machine gets its port as its own end meanwhile.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254)))
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// point tells of a point in a host's work.
func (w *world) point(host, point string) error {
	w.mu.Lock()
	f := w.onPoint
	w.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(host, point)
}

func (w *world) setPoint(f func(host, point string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onPoint = f
}

// start begins another process of the host's agent.
func (h *host) start() {
	t := h.w.t
	t.Helper()
	l := &life{ended: make(chan error, 1)}
	cfg := Config{
		Name: h.name, Site: h.name[:5], Listen: h.address,
		Run: filepath.Join(h.dir, "run"), State: filepath.Join(h.dir, "state"),
		TLS:     pki.Files{CA: "/tls/ca", Cert: "/tls/cert", Key: "/tls/key"},
		Libvirt: "/libvirt", Volumes: []string{imgDir}, Metrics: h.metrics, Checks: filepath.Join(h.dir, "checks"),
	}
	deps := Deps{
		Hypervisor: &gate{Hypervisor: h.hyp, life: l, deaf: &h.deaf}, Volumes: h.volumes, TLS: h.tls, Log: h.w.log,
		Guests: guestGate{h.w.inside.Guests(h.name), l}, Catcher: h.ports,
		Clock: func() time.Time {
			if h.name != "south1" {
				return time.Now()
			}
			return time.Now().Add(time.Duration(h.w.skew.Load()))
		},
	}
	if h.signals != nil {
		deps.Signals, deps.Pings = h.signals, h.pings
	}
	a, err := New(deps, cfg)
	must(t, err)
	if h.signals != nil {
		a.signals.pace = h.w.pace
	}
	a.journal.trace = func(point string) error {
		if l.dead.Load() {
			return errDead
		}
		return h.w.point(h.name, point)
	}
	must(t, a.sockets.sweep())
	must(t, a.sweepJobs())
	raw, err := net.Listen("tcp", h.address)
	must(t, err)
	listener := &faultyListener{Listener: raw}
	ctx, cancel := context.WithCancel(context.Background())
	l.agent, l.cancel = a, cancel
	l.client = api.NewAgentClient(h.address, h.w.server, h.name)
	h.mu.Lock()
	h.life, h.listen = l, listener
	h.mu.Unlock()
	go func() {
		err := a.serve(ctx, listener)
		_ = a.wan.Close()
		_ = a.journal.close()
		l.ended <- err
	}()
}

// kill ends the agent as kill -9 would: nothing that it does afterwards has an
// effect. It may be called from within the agent's own work.
func (h *host) kill() {
	h.mu.Lock()
	l, listen := h.life, h.listen
	h.mu.Unlock()
	if l.dead.Swap(true) {
		return
	}
	h.w.fleet.Crash(h.name)
	listen.sever()
	_ = listen.Close()
	// Its calls to others end with it, too.
	l.agent.peers.mu.Lock()
	l.agent.peers.tls = &tls.Config{}
	l.agent.peers.mu.Unlock()
	l.cancel()
}

// restart waits for what is left of a killed agent and starts another.
func (h *host) restart() {
	<-h.current().ended
	h.current().client.Close()
	h.start()
}

func (h *host) current() *life {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life
}

func (h *host) stop() {
	l := h.current()
	l.cancel()
	if err := <-l.ended; err != nil && !l.dead.Load() {
		h.w.t.Errorf("agent %s ended with %v", h.name, err)
	}
	l.client.Close()
}

// client calls a host's agent.
func (w *world) client(name string) *api.AgentClient { return w.hosts[name].current().client }

// supervise restarts agents that were killed, as a service manager does, until
// the test ends.
func (w *world) supervise() {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			for _, h := range w.hosts {
				if h.current().dead.Load() {
					h.restart()
				}
			}
		}
	}()
	w.t.Cleanup(func() { close(stop); <-ended })
}

// run asks for an action once and returns its end.
func (w *world) run(host, step string, generation int64, action any) (*droverv1.RunResult, error) {
	return w.runRequest(host, request(step, generation, action))
}

// runAs asks for another move's action.
func (w *world) runAs(move, host, step string, generation int64, action any) (*droverv1.RunResult, error) {
	req := request(step, generation, action)
	req.Ref.Move = move
	return w.runRequest(host, req)
}

func (w *world) runRequest(host string, req *droverv1.RunRequest) (*droverv1.RunResult, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	stream, err := w.client(host).Run(ctx, req)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var result *droverv1.RunResult
	for stream.Receive() {
		if r := stream.Msg().GetResult(); r != nil {
			result = r
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if result == nil {
		return nil, drover.Errorf(drover.Unavailable, req.GetStep(), "the stream ended without a result")
	}
	return result, nil
}

const moveName = "move-1"

func request(step string, generation int64, action any) *droverv1.RunRequest {
	r := &droverv1.RunRequest{
		Ref:  &droverv1.MoveRef{Move: moveName, Generation: generation, Vm: vmName, VmUuid: vmUUID},
		Step: step,
	}
	switch a := action.(type) {
	case *droverv1.Reserve:
		r.Action = &droverv1.RunRequest_Reserve{Reserve: a}
	case *droverv1.Release:
		r.Action = &droverv1.RunRequest_Release{Release: a}
	case *droverv1.CreateVolumes:
		r.Action = &droverv1.RunRequest_CreateVolumes{CreateVolumes: a}
	case *droverv1.DeleteVolumes:
		r.Action = &droverv1.RunRequest_DeleteVolumes{DeleteVolumes: a}
	case *droverv1.Transfer:
		r.Action = &droverv1.RunRequest_Transfer{Transfer: a}
	case *droverv1.AbortTransfer:
		r.Action = &droverv1.RunRequest_AbortTransfer{AbortTransfer: a}
	case *droverv1.Shutdown:
		r.Action = &droverv1.RunRequest_Shutdown{Shutdown: a}
	case *droverv1.GiveUp:
		r.Action = &droverv1.RunRequest_GiveUp{GiveUp: a}
	case *droverv1.TakeBack:
		r.Action = &droverv1.RunRequest_TakeBack{TakeBack: a}
	case *droverv1.Copy:
		r.Action = &droverv1.RunRequest_Copy{Copy: a}
	case *droverv1.Define:
		r.Action = &droverv1.RunRequest_Define{Define: a}
	case *droverv1.Undefine:
		r.Action = &droverv1.RunRequest_Undefine{Undefine: a}
	case *droverv1.StartVM:
		r.Action = &droverv1.RunRequest_Start{Start: a}
	case *droverv1.Verify:
		r.Action = &droverv1.RunRequest_Verify{Verify: a}
	case *droverv1.ReleaseSource:
		r.Action = &droverv1.RunRequest_ReleaseSource{ReleaseSource: a}
	case *droverv1.Replicate:
		r.Action = &droverv1.RunRequest_Replicate{Replicate: a}
	case *droverv1.StopReplication:
		r.Action = &droverv1.RunRequest_StopReplication{StopReplication: a}
	case *droverv1.StopVM:
		r.Action = &droverv1.RunRequest_StopVm{StopVm: a}
	case *droverv1.CheckHealth:
		r.Action = &droverv1.RunRequest_CheckHealth{CheckHealth: a}
	case *droverv1.Commit:
		r.Action = &droverv1.RunRequest_Commit{Commit: a}
	case *droverv1.ChangeGuest:
		r.Action = &droverv1.RunRequest_ChangeGuest{ChangeGuest: a}
	case *droverv1.DefineClone:
		r.Action = &droverv1.RunRequest_DefineClone{DefineClone: a}
	case *droverv1.CopyClone:
		r.Action = &droverv1.RunRequest_CopyClone{CopyClone: a}
	case *droverv1.LendDisks:
		r.Action = &droverv1.RunRequest_LendDisks{LendDisks: a}
	case *droverv1.ReclaimDisks:
		r.Action = &droverv1.RunRequest_ReclaimDisks{ReclaimDisks: a}
	case *droverv1.AttachDisks:
		r.Action = &droverv1.RunRequest_AttachDisks{AttachDisks: a}
	case *droverv1.DetachDisks:
		r.Action = &droverv1.RunRequest_DetachDisks{DetachDisks: a}
	case *droverv1.BringDisks:
		r.Action = &droverv1.RunRequest_BringDisks{BringDisks: a}
	case *droverv1.AbortBring:
		r.Action = &droverv1.RunRequest_AbortBring{AbortBring: a}
	case *droverv1.AbortCommit:
		r.Action = &droverv1.RunRequest_AbortCommit{AbortCommit: a}
	default:
		panic(fmt.Sprintf("no such action: %T", action))
	}
	return r
}

// addVM makes the VM with its disk on north1 and starts it. The disk is backed
// by the golden image and has content of its own.
func (w *world) addVM() {
	w.t.Helper()
	ctx := context.Background()
	h := w.hosts["north1"]
	must(w.t, h.volumes.Create(ctx, specOfDisk()))
	img, err := h.volumes.OpenWrite(ctx, vdaPath)
	must(w.t, err)
	for i, off := range []int64{0, 1 << 20, 3<<20 + 512, diskLen - 4096} {
		_, err := img.WriteAt(bytes.Repeat([]byte{byte('A' + i)}, 4096), off)
		must(w.t, err)
	}
	must(w.t, img.Zero(ctx, 2<<20, 128<<10))
	must(w.t, img.Flush(ctx))
	must(w.t, img.Close())
	_, err = h.hyp.Define(ctx, memory.NewDefinition(vmValue()))
	must(w.t, err)
	must(w.t, h.hyp.Start(ctx, vmName))
	must(w.t, w.fleet.Write("north1", vmName))
}

func (w *world) content(host string) []byte {
	w.t.Helper()
	img, err := w.hosts[host].volumes.OpenRead(context.Background(), vdaPath, false)
	must(w.t, err)
	defer img.Close()
	out, err := io.ReadAll(io.NewSectionReader(img, 0, img.Size()))
	must(w.t, err)
	return out
}

// checkOnce fails unless the VM runs exactly once, at the host given, the
// monitor saw nothing wrong, and nothing of the move is left.
func (w *world) checkOnce(at string) {
	t := w.t
	t.Helper()
	if got := w.fleet.RunsAt(vmName); !slices.Equal(got, []string{at}) {
		t.Errorf("the vm runs at %v, want %s", got, at)
	}
	for _, v := range w.fleet.Violations() {
		t.Errorf("violation: %s", v)
	}
	for name, h := range w.hosts {
		vms, err := h.hyp.List(context.Background())
		must(t, err)
		if want := name == at; (len(vms) == 1) != want {
			t.Errorf("host %s has %d VMs", name, len(vms))
		}
		_, err = h.volumes.Volume(context.Background(), vdaPath)
		if there := err == nil; there != (name == at) {
			t.Errorf("host %s: disk there is %v", name, there)
		}
		h.checkRemains()
		h.checkRecords()
		records, err := h.current().agent.journal.moves()
		must(t, err)
		if len(records) != 0 {
			t.Errorf("host %s: %d moves are left in the journal", name, len(records))
		}
		err = h.current().agent.journal.db.View(func(tx *bbolt.Tx) error {
			if n := tx.Bucket(jobsBucket).Inspect().KeyN; n != 0 {
				t.Errorf("host %s: %d jobs are left in the journal", name, n)
			}
			return nil
		})
		must(t, err)
		left, _ := filepath.Glob(filepath.Join(h.dir, "run", "s", "*"))
		if len(left) != 0 {
			t.Errorf("host %s: sockets are left: %v", name, left)
		}
	}
}

// checkRecords fails when an image still records changes, or a VM does.
func (h *host) checkRecords() {
	t := h.w.t
	t.Helper()
	for _, path := range h.volumes.Paths() {
		if c, err := h.volumes.Bitmaps(context.Background(), path); err == nil && len(c) > 0 {
			t.Errorf("host %s: %s still has %v", h.name, path, c)
		}
	}
	if c, err := h.hyp.Checkpoints(context.Background(), vmName); err == nil && len(c) > 0 {
		t.Errorf("host %s: the vm still has %v", h.name, c)
	}
	if checks, err := h.hyp.CheckBackup(context.Background(), vmName); err == nil && !checks[0].OK {
		t.Errorf("host %s: a backup is under way", h.name)
	}
}

// checkRemains fails unless every image on the host is listed, or kept aside and
// in the journal.
func (h *host) checkRemains() {
	t := h.w.t
	t.Helper()
	ctx := context.Background()
	a := h.current().agent
	if err := a.remains.tidy(ctx); err != nil {
		t.Errorf("host %s: %v", h.name, err)
	}
	var want, listed []string
	all, err := a.journal.remains()
	must(t, err)
	for _, r := range all {
		if r.State != remainKept {
			t.Errorf("host %s: %s is %s still", h.name, r.Path, r.State)
		}
		want = append(want, r.Path)
	}
	vols, err := h.volumes.List(ctx)
	must(t, err)
	for _, v := range vols {
		if slices.Contains(want, v.Path) {
			t.Errorf("host %s: %s is kept aside and listed", h.name, v.Path)
		}
		listed = append(listed, v.Path)
	}
	want = append(want, listed...)
	slices.Sort(want)
	if got := h.volumes.Paths(); !slices.Equal(got, want) {
		t.Errorf("host %s has %v, of which are known %v", h.name, got, want)
	}
}
