package wan

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

// TestRate: the rate holds over memory and a disk together, can be changed
// while they flow, and taken away.
func TestRate(t *testing.T) {
	t.Parallel()
	const rate, slower = 80 * drover.Mbps, 40 * drover.Mbps
	north, south := pair(t, Config{Connections: conns})
	disk, g := newNoise(51, 4), newNoise(52, 4)
	d := newDisk(len(disk.mem))
	there := arrive(t, nil, nil)
	s := start(t, trip{from: north, to: south, rate: rate, memory: there.path, disks: serveNBD(t, map[string]*ramDisk{"vda": d})})
	s.whole(t, conns)
	mirror := s.mirror(t, "vda")
	stream := g.stream(1, 1)
	path := filepath.Join(s.dir, "m")
	must(t, s.out.ListenMemory(path, 8<<20))

	// check compares what a stretch carried with what its rate allows. The
	// measured time holds at least what was counted: a busy machine only makes
	// it longer.
	check := func(rate drover.BitRate, until int64, from int64, began time.Time) int64 {
		t.Helper()
		eventually(t, "bytes flow", func() bool { return s.out.bundle.Stats().WireSent-from > until })
		sent := s.out.bundle.Stats().WireSent
		allowed := 1.1*float64(rate)/8*time.Since(began).Seconds() + 256<<10
		if got := float64(sent - from); got > allowed {
			t.Errorf("%.0f bytes at %v, %.0f were allowed", got, rate, allowed)
		}
		return sent
	}
	began := time.Now()
	base := s.out.bundle.Stats().WireSent
	written := make(chan error, 1)
	go func() { written <- writeAll(context.Background(), mirror, disk.mem) }()
	gone := depart(path, stream)
	check(rate, 2<<20, base, began)
	if f := s.out.Figures(); f.Disk.GuestBytes == 0 || f.Memory.GuestBytes == 0 {
		t.Errorf("not both flow: %+v", f.Total())
	}
	s.out.SetRate(slower)
	began = time.Now()
	base = s.out.bundle.Stats().WireSent
	check(slower, 1<<20, base, began)
	s.out.SetRate(0)
	must(t, within(t, "the disk is written", written))
	must(t, within(t, "the guest has left", gone).err)
	same(t, within(t, "the guest has come", there.got).stream, stream)
	s.drain(t)
	same(t, d.bytes(), disk.mem)
}
