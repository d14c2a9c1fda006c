package trial_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/trial"
)

var (
	soak = flag.Bool("soak", false, "run the long campaigns too")
	// labName is that of the shared lab, and what the names of others begin with: two
	// runs on one machine need two.
	labName = flag.String("lab", "e2e", "the name of the lab that most tests share")
)

// shared is the lab that the trials of TestPair have in common: making one takes
// longer than a move. Every trial leaves both guests running somewhere. The tests
// with other labs have its binary and its log.
var shared *trial.Lab

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "trial:", err)
		return 1
	}
	if os.Getuid() != 0 {
		return fail(errors.New("these tests make network namespaces and run libvirtd: run them as root, as make test does"))
	}
	dir, err := os.MkdirTemp("", "drover-e2e-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "drover")
	for target, pkg := range map[string]string{bin: "./cmd/drover", bin + "-sheep": "./lab/guest/sheep"} {
		// As make build does it, whose packages are compiled already.
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", target, pkg)
		build.Dir, build.Env, build.Stderr = "../..", append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
		if err := build.Run(); err != nil {
			return fail(fmt.Errorf("build %s: %w", pkg, err))
		}
	}
	logs, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return fail(err)
	}
	defer logs.Close()
	shared = &trial.Lab{Bin: bin, Name: *labName, Log: logs}
	code := m.Run()
	if code != 0 {
		if raw, err := os.ReadFile(logs.Name()); err == nil {
			fmt.Fprintf(os.Stderr, "--- what drover said ---\n%s", raw[max(0, len(raw)-20<<10):])
		}
	}
	return code
}

// TestPair are the trials in the lab pair. They run beside those of TestRouted and
// of TestDebian, as many at a time as there are processors: all wait for much, and
// none disturbs another's lab.
func TestPair(t *testing.T) {
	t.Parallel()
	bringUp(t, shared, "pair")
	for _, sub := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"LiveMove", testLiveMove},
		{"ColdMove", testColdMove},
		{"RefusedMove", testRefusedMove},
		{"Faults", testFaults},
		{"TwentyMoves", testTwentyMoves},
		{"Cuts", testCuts},
		{"FlippedBits", testFlippedBits},
		{"StorageStays", testStorageStays},
		{"Protect", testProtect},
		{"ProtectLive", testProtectLive},
		{"WarmMove", testWarmMove},
		{"WarmReturns", testWarmReturns},
		{"WarmFaults", testWarmFaults},
		{"ColdCommittedByHand", testColdCommittedByHand},
	} {
		t.Run(sub.name, sub.run)
	}
}

// bringUp starts a lab of a file for the time of a test. When the test fails, it shows
// what the lab's nodes have written last; in any case nothing of the lab may be left.
func bringUp(t *testing.T, l *trial.Lab, file string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			said, _ := exec.Command("sh", "-c", "tail -n 40 /var/lib/drover/lab/"+l.Name+"/nodes/*/log/agent.log /var/lib/drover/lab/"+l.Name+"/nodes/server/log/*.log").CombinedOutput()
			t.Logf("%s", said)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := l.Down(ctx); err != nil {
			t.Error(err)
		}
		if left := leftovers(l.Name); left != "" {
			t.Errorf("after lab down there is left:\n%s", left)
		}
	})
	// Building Debian's image is part of it the first time.
	if err := trial.Up(timeout(t, 10*time.Minute), l, file); err != nil {
		t.Fatal(err)
	}
}

// leftovers lists what of a lab is still on the machine.
func leftovers(name string) string {
	var left []string
	if _, err := os.Stat("/var/lib/drover/lab/" + name); err == nil {
		left = append(left, "the lab's folder")
	}
	mounts, _ := os.ReadFile("/proc/mounts")
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, "drover/lab/"+name+"/") {
			left = append(left, "mount "+line)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		raw, _ := os.ReadFile(p)
		if bytes.Contains(raw, []byte("drover/lab/"+name+"/")) || bytes.Contains(raw, []byte("drover/lab/"+name+"\x00")) {
			left = append(left, "process "+string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '})))
		}
	}
	return strings.Join(left, "\n")
}

func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// guestOf returns the guest's control client as a client at a third place
// sees it.
func guestOf(t *testing.T, l *trial.Lab, vm string) *control.Client {
	t.Helper()
	node, err := l.Client()
	if err != nil {
		t.Fatal(err)
	}
	g, err := l.Guest(node, vm)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// work is what guests do while they are moved: dirty memory at the given rate
// in bytes per second, and write to their disk.
func work(t *testing.T, ctx context.Context, guest *control.Client, dirty int64) *trial.Load {
	t.Helper()
	if err := trial.WaitHealthy(ctx, guest); err != nil {
		t.Fatal(err)
	}
	load, err := trial.StartLoad(ctx, guest,
		control.Memory{WorkingSetBytes: 32 << 20, RateBytesPerS: dirty, Compressible: 0.5},
		control.Disk{RateBytesPerS: 400e3})
	if err != nil {
		t.Fatal(err)
	}
	return load
}

// intact ends the load and proves that every write that was acknowledged
// outside is on the guest's disk.
func intact(t *testing.T, ctx context.Context, guest *control.Client, load *trial.Load) {
	t.Helper()
	if err := trial.WaitHealthy(ctx, guest); err != nil {
		t.Fatal(err)
	}
	acks, err := load.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if acks.Count() == 0 {
		t.Fatal("no write was acknowledged: the test proves nothing")
	}
	check, err := guest.CheckDiskAgainst(ctx, acks)
	if err != nil {
		t.Fatal(err)
	}
	if !check.Verdict.OK {
		t.Errorf("of %d acknowledged writes some are lost: %s", acks.Count(), check.Verdict.Reason)
	}
}

// onlyAt fails unless the VM is in that state there and nowhere else.
func onlyAt(t *testing.T, ctx context.Context, vm, host, state string) {
	t.Helper()
	if err := shared.OnlyAt(ctx, vm, host, state); err != nil {
		t.Error(err)
	}
}

func opposite(t *testing.T, ctx context.Context, vm string) (drover.VM, drover.Place) {
	t.Helper()
	v, to, err := shared.Opposite(ctx, vm)
	if err != nil {
		t.Fatal(err)
	}
	return v, to
}

func testLiveMove(t *testing.T) {
	ctx := timeout(t, 3*time.Minute)
	guest := guestOf(t, shared, "sheep1")
	load := work(t, ctx, guest, 10e6)
	_, to := opposite(t, ctx, "sheep1")
	m, err := shared.Move(ctx, "sheep1", to.String(), "--method", "live")
	if err != nil {
		t.Fatal(err)
	}
	if m.State != drover.MoveDone || m.To != to {
		t.Fatalf("move is %q at %s, want done at %s", m.State, m.To, to)
	}
	onlyAt(t, ctx, "sheep1", to.Host, "running")
	if err := load.SameBoot(ctx); err != nil {
		t.Error(err)
	}
	intact(t, ctx, guest, load)
	f := m.Measured
	if f.TotalSeconds == nil || f.PauseMillis == nil || f.OutageMillis == nil || f.WireBytes == nil || f.GuestBytes == nil || f.SessionsLost == nil || f.Sessions == nil {
		t.Fatalf("figures are missing: %+v", f)
	}
	t.Logf("total %.1f s, pause %.0f ms, outage %.0f ms, wire %s", *f.TotalSeconds, *f.PauseMillis, *f.OutageMillis, drover.Bytes(*f.WireBytes))
	if *f.SessionsLost != 0 || *f.Sessions == 0 {
		t.Errorf("%d of %d sessions lost, want 0 of some", *f.SessionsLost, *f.Sessions)
	}
	// The link carries what the data path says that it sent, with TCP's and IP's
	// headers and a little conversation, and that is less than what the guest's
	// memory and disk are.
	if f.Path == nil {
		t.Fatal("no figures of the data path")
	}
	if path := int64(f.Path.Total().WireBytes); *f.WireBytes < path || *f.WireBytes > path+path/4+4<<20 || path >= *f.GuestBytes {
		t.Errorf("%d bytes on the link, %d by the data path, %d of the guest: they do not belong together", *f.WireBytes, path, *f.GuestBytes)
	}
}

func testColdMove(t *testing.T) {
	ctx := timeout(t, 4*time.Minute)
	guest := guestOf(t, shared, "sheep2")
	load := work(t, ctx, guest, 10e6)
	time.Sleep(2 * time.Second) // some writes to lose
	_, to := opposite(t, ctx, "sheep2")
	m, err := shared.Move(ctx, "sheep2", to.String(), "--method", "cold")
	if err != nil {
		t.Fatal(err)
	}
	onlyAt(t, ctx, "sheep2", to.Host, "running")
	intact(t, ctx, guest, load)
	// Only what is allocated crosses, not the disk's size.
	if f := m.Measured; f.DiskBytes == nil || *f.DiskBytes <= 0 || *f.DiskBytes >= 512<<20 {
		t.Errorf("disk bytes %v, want more than none and less than the whole 512 MiB", f.DiskBytes)
	}
}

func testRefusedMove(t *testing.T) {
	ctx := timeout(t, 2*time.Minute)
	v, to := opposite(t, ctx, "sheep1")
	// Somebody else's VM of the same name at the destination.
	xml := `<domain type='qemu'><name>sheep1</name><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os></domain>`
	if _, err := shared.Exec(ctx, to.Host, "sh", "-c", `printf %s "$1" >/tmp/other.xml && virsh define /tmp/other.xml`, "sh", xml); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := shared.Exec(ctx, to.Host, "virsh", "undefine", "sheep1"); err != nil {
			t.Error(err)
		}
	}()
	var p drover.Preflight
	err := shared.Drover(ctx, &p, "preflight", "sheep1", "--to", to.String())
	wantStatus(t, err, 3)
	if p.OK {
		t.Error("the preflight is content with a name clash")
	}
	// Once the server has seen the other one, it does not ask the hosts any more: it says that there are two.
	var exit *trial.ExitError
	named := errors.As(err, &exit) && strings.Contains(exit.Stderr, to.String()) && strings.Contains(exit.Stderr, " have one each")
	for _, c := range p.Checks {
		if !c.OK && !c.Warning {
			named = named || c.Fix != "" && strings.Contains(c.Detail, "sheep1")
		}
	}
	if !named {
		t.Errorf("no finding names the clash and its fix: %+v", p.Checks)
	}
	_, err = shared.Move(ctx, "sheep1", to.String())
	wantStatus(t, err, 3)
	where, err := shared.Where(ctx, "sheep1")
	if err != nil {
		t.Fatal(err)
	}
	if where[v.Host] != "running" || where[to.Host] != "shut off" {
		t.Errorf("after the refusal the VM is %v, want running at %s only", where, v.Host)
	}
	if left, err := shared.Exec(ctx, to.Host, "sh", "-c", "ls /var/lib/libvirt/images | grep sheep1 || true"); err != nil || len(left) > 0 {
		t.Errorf("the refused move left %q (%v)", left, err)
	}
}

func wantStatus(t *testing.T, err error, want int) {
	t.Helper()
	var exit *trial.ExitError
	if !errors.As(err, &exit) || exit.Status != want {
		t.Errorf("got %v, want exit status %d", err, want)
	}
}
