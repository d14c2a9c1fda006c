package guest_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/guest/journal"
	"github.com/drover-vm/drover/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const diskBytes = 64 << 20

// ackLog records what a guest acknowledges, outside of the guest.
type ackLog struct {
	mu   sync.Mutex
	acks journal.Acks
}

func (l *ackLog) add(a journal.Ack) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks.Add(a)
}

func (l *ackLog) snapshot() journal.Acks {
	l.mu.Lock()
	defer l.mu.Unlock()
	return journal.Acks{Journal: l.acks.Journal, Ranges: slices.Clone(l.acks.Ranges)}
}

// record collects acknowledgements until the guest is gone.
func (l *ackLog) record(ctx context.Context, c *control.Client) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Acks(ctx, 0, l.add) // ends with the guest
	}()
	return func() { <-done }
}

func until(t *testing.T, what string, seen func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !seen(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not seen", what)
		}
	}
}

func buildSheep(t *testing.T) guest.Sheep {
	t.Helper()
	sheep, err := guest.BuildSheep(t.Context(), slog.New(slog.DiscardHandler), guest.DefaultCacheDir)
	if err != nil {
		t.Fatal(err)
	}
	return sheep
}

// TestGuest boots the small guest for real: once on q35 until its power is
// cut in the middle of writing, then on pc with the same disk until it is
// shut down by its power button.
func TestGuest(t *testing.T) {
	sheep := buildSheep(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, diskBytes)); err != nil {
		t.Fatal(err)
	}
	log := &ackLog{}
	var bootID journal.ID

	t.Run("power cut", func(t *testing.T) {
		m := boot(t, sheep, "q35", disk, "drover.name=first drover.ip=10.20.0.15/24,fd00:20::15/64 drover.gw=10.20.0.1")
		s, err := m.control.Stats(t.Context())
		if err != nil || s.Name != "first" || !slices.Contains(s.Addresses, "10.20.0.15/24") || !slices.Contains(s.Addresses, "fd00:20::15/64") {
			t.Fatalf("stats %+v, %v", s, err)
		}
		bootID = s.BootID
		refuseBadRequests(t, m.control)
		useSessions(t, m, bootID)
		useMemory(t, m.control)
		if err := m.control.StartDisk(t.Context(), control.Disk{}); err != nil {
			t.Fatal(err)
		}
		wait := log.record(t.Context(), m.control)
		until(t, "500 acknowledged writes", func() bool { return log.snapshot().Count() >= 500 })
		m.kill()
		wait()
	})
	t.Run("journal after power cut", func(t *testing.T) { checkAndHarm(t, disk, log.snapshot()) })
	t.Run("power button", func(t *testing.T) {
		m := boot(t, sheep, "pc", disk, "drover.name=second drover.ip=dhcp")
		until(t, "address by DHCP", func() bool {
			s, err := m.control.Stats(t.Context())
			return err == nil && slices.Contains(s.Addresses, "10.20.0.15/24")
		})
		s, err := m.control.Stats(t.Context())
		if err != nil || s.BootID == bootID {
			t.Errorf("boot id %s of both boots, %v", s.BootID, err)
		}
		if err := m.control.StartDisk(t.Context(), control.Disk{RateBytesPerS: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		first := log.snapshot().Count()
		wait := log.record(t.Context(), m.control)
		until(t, "more acknowledged writes", func() bool { return log.snapshot().Count() > first+100 })
		check, err := m.control.CheckDisk(t.Context()) // while it writes
		if err != nil || !check.Verdict.OK || check.Verdict.Acked == 0 || len(check.Boots) != 2 {
			t.Errorf("the guest's own check: %+v, %v", check, err)
		}
		m.powerDown(t)
		wait()
		scan, err := guest.ScanJournal(t.Context(), disk, "")
		if err != nil {
			t.Fatal(err)
		}
		if v := scan.Verify(log.snapshot()); !v.OK || v.Present != log.snapshot().Count() {
			t.Errorf("after both boots: %+v", v)
		}
	})
}

func refuseBadRequests(t *testing.T, c *control.Client) {
	t.Helper()
	for name, tc := range map[string]struct {
		do   func(context.Context) error
		code int
		want string
	}{
		"working set": {func(ctx context.Context) error {
			return c.StartMemory(ctx, control.Memory{WorkingSetBytes: 1 << 30})
		}, http.StatusConflict, "not enough memory: working_set_bytes 1073741824"},
		"rate": {func(ctx context.Context) error {
			return c.StartMemory(ctx, control.Memory{WorkingSetBytes: 4096, RateBytesPerS: -1})
		}, http.StatusBadRequest, "rate_bytes_per_s -1"},
		"block": {func(ctx context.Context) error {
			return c.StartDisk(ctx, control.Disk{BlockBytes: 1000})
		}, http.StatusBadRequest, "block_bytes 1000"},
		"no journal": {func(ctx context.Context) error { _, err := c.CheckDisk(ctx); return err }, http.StatusConflict, "no journal"},
	} {
		var refused *control.StatusError
		if err := tc.do(t.Context()); !errors.As(err, &refused) || refused.Code != tc.code || !strings.Contains(refused.Message, tc.want) {
			t.Errorf("%s: %v, want status %d and %q", name, err, tc.code, tc.want)
		}
	}
}

// useSessions has the prober prove the guest's sessions over a pause of the
// whole machine.
func useSessions(t *testing.T, m *machine, bootID journal.ID) {
	t.Helper()
	p, err := probe.Start(t.Context(), probe.Config{Target: m.session, URL: m.control.Base + "/healthz", HTTPInterval: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "200 beats", func() bool { r := p.Snapshot(); return r.BeatsAnswered >= 200 && r.HTTPOK >= 3 })
	m.ask(t, "stop", nil)
	time.Sleep(500 * time.Millisecond)
	m.ask(t, "cont", nil)
	sent := p.Snapshot().BeatsSent
	until(t, "beats after the pause", func() bool { return p.Snapshot().BeatsAnswered > sent })
	r := p.Stop()
	if r.SessionsLost != 0 || !slices.Equal(r.Boots, []string{bootID.String()}) {
		t.Errorf("lost %v, boots %v", r.Lost, r.Boots)
	}
	if r.OutageMS < 500 {
		t.Errorf("outage_ms = %v over a pause of 500", r.OutageMS)
	}
	t.Logf("pause 500 ms: outage %.0f ms, over HTTP %.0f ms, rtt %+v", r.OutageMS, r.OutageHTTPMS, r.RTT)
}

func useMemory(t *testing.T, c *control.Client) {
	t.Helper()
	if err := c.StartMemory(t.Context(), control.Memory{WorkingSetBytes: 16 << 20, RateBytesPerS: 4 << 20, Compressible: 0.5}); err != nil {
		t.Fatal(err)
	}
	until(t, "4 MiB of memory written", func() bool {
		s, err := c.Stats(t.Context())
		return err == nil && s.Memory.Running && s.Memory.WrittenBytes >= 4<<20
	})
	if err := c.StopMemory(t.Context()); err != nil {
		t.Error(err)
	}
	if s, err := c.Stats(t.Context()); err != nil || s.Memory.Running {
		t.Errorf("memory writer still runs: %v", err)
	}
}

// checkAndHarm wants all acknowledged writes on the disk, as it is and as a
// qcow2 image, and then not when a record is broken.
func checkAndHarm(t *testing.T, disk string, acked journal.Acks) {
	verify := func(image string) journal.Verdict {
		t.Helper()
		scan, err := guest.ScanJournal(t.Context(), image, "")
		if err != nil {
			t.Fatal(err)
		}
		return scan.Verify(acked)
	}
	if v := verify(disk); !v.OK || v.Acked < 500 || v.Present != v.Acked {
		t.Errorf("verdict %+v, want all acknowledged writes present", v)
	}
	qcow := filepath.Join(t.TempDir(), "disk.qcow2")
	if out, err := exec.Command("qemu-img", "convert", "-O", "qcow2", disk, qcow).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if v := verify(qcow); !v.OK {
		t.Errorf("as qcow2: %+v", v)
	}
	broken := filepath.Join(t.TempDir(), "broken")
	copyFile(t, disk, broken)
	f, err := os.OpenFile(broken, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const seq = 250
	_, err = f.WriteAt([]byte("harm"), journal.RingOffset+seq*4096+2000)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if v := verify(broken); v.OK || !slices.Equal(v.Lost, []uint64{seq}) {
		t.Errorf("record %d broken: %+v", seq, v)
	}
}

func TestCheckImage(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	create := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("qemu-img", append([]string{"create", "-q"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	create("-f", "raw", path("raw"), "8M")
	create("-f", "qcow2", "-F", "raw", "-b", "raw", path("overlay"))
	create("-f", "qcow2", path("gone"), "8M")
	create("-f", "qcow2", "-F", "qcow2", "-b", path("gone"), path("orphan"))
	create("-f", "vmdk", path("vmdk"), "8M")
	if err := errors.Join(os.Remove(path("gone")), os.WriteFile(path("text"), []byte("not a disk\n"), 0o600), os.WriteFile(path("empty"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	raw, err := guest.CheckImage(t.Context(), path("raw"))
	if err != nil || raw.Format != "raw" || raw.VirtualBytes != 8<<20 || raw.Backing != "" {
		t.Errorf("raw: %+v, %v", raw, err)
	}
	overlay, err := guest.CheckImage(t.Context(), path("overlay"))
	want := guest.ImageInfo{Format: "qcow2", VirtualBytes: 8 << 20, AllocatedBytes: overlay.AllocatedBytes, Backing: path("raw"), BackingFormat: "raw"}
	if err != nil || overlay != want {
		t.Errorf("overlay: %+v, %v", overlay, err)
	}
	for name, tc := range map[string]struct {
		kind drover.Kind
		want string
	}{
		"missing": {drover.NotFound, "no such file"},
		".":       {drover.Invalid, "is a folder"},
		"text":    {drover.Invalid, "not whole sectors"},
		"empty":   {drover.Invalid, "not a disk image"},
		"vmdk":    {drover.Invalid, "is a vmdk image, want raw or qcow2"},
		"orphan":  {drover.Invalid, "backing file"},
	} {
		_, err := guest.CheckImage(t.Context(), path(name))
		if err == nil || drover.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path(name)) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v (%v), want one line of kind %v with the path and %q", name, err, drover.KindOf(err), tc.kind, tc.want)
		}
	}
}
