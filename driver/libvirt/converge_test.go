package libvirt

import (
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

func TestMirrorWatchHelpsOnce(t *testing.T) {
	var w mirrorWatch
	now := time.Unix(0, 0)
	done := drover.Bytes(0)
	disk := func(left drover.Bytes) driver.MigrationStats {
		return driver.MigrationStats{Phase: "disk", DiskTotalBytes: drover.GiB, DiskDoneBytes: done, DiskRemainingBytes: left}
	}
	// As long as less and less is left, nothing is done.
	left := drover.GiB
	for range 100 {
		now, left = now.Add(time.Second), left-drover.MiB
		if w.stalled(now, disk(left)) {
			t.Fatal("a mirror that comes nearer is called stalled")
		}
	}
	// While the path is cut nothing is copied, and nothing is done either.
	for range 100 {
		now = now.Add(time.Second)
		if w.stalled(now, disk(left)) {
			t.Fatal("a mirror over a cut path is called stalled")
		}
	}
	helped := 0
	for range 100 {
		now, done = now.Add(500*time.Millisecond), done+drover.GiB
		if w.stalled(now, disk(left+64*drover.KiB)) {
			helped++
			if d := now.Sub(w.since); d < mirrorPatience {
				t.Errorf("helped after %s", d)
			}
		}
	}
	if helped != 1 {
		t.Errorf("helped %d times, want once", helped)
	}
	if w = (mirrorWatch{}); w.stalled(now, driver.MigrationStats{Phase: "memory"}) || !w.since.IsZero() {
		t.Error("the memory's phase counts as the disks'")
	}
}

func TestRoundWatchRaisesToItsLimit(t *testing.T) {
	w := newRoundWatch(driver.MigrationSpec{MaxPause: 100 * time.Millisecond, MostPause: 300 * time.Millisecond})
	now := time.Unix(0, 0)
	var got []time.Duration
	for round := int64(1); round < 200; round++ {
		now = now.Add(300 * time.Millisecond)
		if limit, due := w.raised(now, driver.MigrationStats{Phase: "memory", Rounds: round}); due {
			got = append(got, limit)
		}
	}
	want := []time.Duration{150 * time.Millisecond, 225 * time.Millisecond, 300 * time.Millisecond}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("raised to %v, want %v", got, want)
	}
	// Few long rounds are a big guest, not one that does not converge.
	w = newRoundWatch(driver.MigrationSpec{MaxPause: 100 * time.Millisecond, MostPause: time.Second})
	for round := range int64(3) {
		now = now.Add(time.Minute)
		if _, due := w.raised(now, driver.MigrationStats{Phase: "memory", Rounds: round}); due {
			t.Error("three long rounds are taken for not converging")
		}
	}
	if w = newRoundWatch(driver.MigrationSpec{}); w.limit != defaultPause {
		t.Errorf("begins with %s, want %s", w.limit, defaultPause)
	}
}
