package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// image makes an image of some blocks at a path.
func (h *host) image(path string, clusters int) {
	t := h.w.t
	t.Helper()
	ctx := context.Background()
	must(t, h.volumes.Create(ctx, driver.VolumeSpec{Path: path, Format: "raw", VirtualBytes: diskLen}))
	img, err := h.volumes.OpenWrite(ctx, path)
	must(t, err)
	_, err = img.WriteAt(bytes.Repeat([]byte("x"), clusters*64<<10), 0)
	must(t, err)
	must(t, img.Flush(ctx))
	must(t, img.Close())
}

// keep keeps an image aside as a move of the VM would.
func (h *host) keep(move, uuid, path string, clusters int) bool {
	t := h.w.t
	t.Helper()
	h.image(path, clusters)
	kept, err := h.current().agent.remains.keep(t.Context(), &record{Move: move, VM: "vm-" + uuid, VMUUID: uuid, Tenant: "red"},
		drover.Disk{Target: "vda", Path: path})
	must(t, err)
	return kept
}

// left are the moves whose remains are there, newest first.
func (h *host) left() string {
	t := h.w.t
	t.Helper()
	all, err := h.current().agent.remains.list("")
	must(t, err)
	var moves []string
	for _, r := range all {
		moves = append(moves, r.Move)
	}
	return strings.Join(moves, " ")
}

// TestRemainsOfMove: what the VM leaves is what it had, only under a name that
// nobody lists, and it goes when the VM is back.
func TestRemainsOfMove(t *testing.T) {
	for _, method := range []drover.Method{drover.Live, drover.Cold} {
		t.Run(string(method), func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			want := w.content("north1")
			if method == drover.Live {
				w.begin()
				_, err := w.run("north1", "transfer", 1, w.transferAction())
				must(t, err)
				w.finish(1, nil)
			} else {
				_, err := w.cold("", 1)
				must(t, err)
			}
			w.checkOnce("south1")
			north := w.hosts["north1"]
			a := north.current().agent
			all, err := a.remains.list(vmUUID)
			must(t, err)
			if len(all) != 1 {
				t.Fatalf("kept: %+v, want one disk", all)
			}
			r := all[0]
			if r.Move != moveName || r.Target != "vda" || r.From != vdaPath || r.VM != vmName || r.Format != "qcow2" || r.VirtualBytes != diskLen || r.AllocatedBytes <= 0 {
				t.Errorf("kept: %+v", r)
			}
			img, err := a.volumes.OpenRead(t.Context(), r.Path, false)
			must(t, err)
			got, err := io.ReadAll(io.NewSectionReader(img, 0, img.Size()))
			must(t, err)
			must(t, img.Close())
			if !bytes.Equal(got, want) {
				t.Error("what is kept is not what the disk was")
			}
			if others, err := a.remains.list("another"); err != nil || len(others) != 0 {
				t.Errorf("kept of another vm: %v, %v", others, err)
			}
			// No VM is made upon it.
			plan := diskPlans()[0]
			plan.Path, plan.BackingPath, plan.BackingFormat = "/images/new.qcow2", r.Path, "qcow2"
			if _, err := specOf(plan); drover.KindOf(err) != drover.Invalid {
				t.Errorf("a disk on what is kept: %v", err)
			}
			a.remains.forget(t.Context(), vmUUID)
			if left := north.left(); left != "" {
				t.Errorf("after the vm is back: %s", left)
			}
			north.checkRemains()
		})
	}
}

// TestRemainsBack: the VM's arrival ends what it had left there.
func TestRemainsBack(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	if !w.hosts["south1"].keep("move-0", vmUUID, "/images/old.raw", 1) || !w.hosts["south1"].keep("move-0b", "other", "/images/other.raw", 1) {
		t.Fatal("not kept")
	}
	w.begin()
	if got := w.hosts["south1"].left(); got != "move-0b move-0" {
		t.Errorf("while the vm comes there is %q, want both", got)
	}
	_, err := w.run("north1", "transfer", 1, w.transferAction())
	must(t, err)
	w.finish(1, nil)
	if got := w.hosts["south1"].left(); got != "move-0b" {
		t.Errorf("when the vm is there: %q, want that of the other vm", got)
	}
	w.checkOnce("south1")
}

func TestRemainsLimits(t *testing.T) {
	w := newWorld(t)
	h := w.hosts["north1"]
	a := h.current().agent
	cluster := drover.Bytes(64 << 10)
	limit := Size(10 * cluster)
	a.config.Remains.Limit = &limit
	var kept, dropped []string
	for set := false; !set; time.Sleep(time.Millisecond) { // the agent's own, as it starts
		a.remains.mu.Lock()
		set = a.remains.kept != nil
		a.remains.mu.Unlock()
	}
	must(t, a.remains.hooks(func(r remain) { kept = append(kept, r.Move) }, func(r remain) { dropped = append(dropped, r.Move) }))
	want := func(what, moves string) {
		t.Helper()
		if got := h.left(); got != moves {
			t.Errorf("%s: %q is there, want %q", what, got, moves)
		}
		h.checkRemains()
	}
	for _, m := range []string{"a", "b", "c"} {
		if !h.keep(m, "vm-"+m, "/images/"+m+".raw", 3) {
			t.Fatalf("%s is not kept", m)
		}
	}
	want("within the limit", "c b a")
	all, err := a.remains.list("vm-a")
	must(t, err)
	must(t, a.remains.use(all[0]))
	h.keep("d", "vm-d", "/images/d.raw", 4)
	want("the one not used for longest gives way", "d c a")
	h.keep("e", "vm-c", "/images/e.raw", 3)
	want("a newer one takes the place of the vm's older", "e d a")

	// What is being read stays, and goes later.
	all, err = a.remains.list("vm-a")
	must(t, err)
	img, err := a.volumes.OpenRead(t.Context(), all[0].Path, false)
	must(t, err)
	a.clock = func() time.Time { return time.Now().Add(DefaultRemainsKeep + time.Hour) }
	must(t, a.remains.tidy(t.Context()))
	if got := h.left(); got != "" {
		t.Errorf("after a week: %q", got)
	}
	if paths := h.volumes.Paths(); !strings.Contains(strings.Join(paths, " "), all[0].Path) {
		t.Errorf("what is being read is gone: %v", paths)
	}
	must(t, img.Close())
	want("after it was read", "")
	if paths := h.volumes.Paths(); len(paths) != 1 {
		t.Errorf("left: %v", paths)
	}

	if h.keep("f", "vm-f", "/images/f.raw", 11) {
		t.Error("kept what is larger than the limit")
	}
	none := Size(0)
	a.config.Remains.Limit = &none
	if h.keep("g", "vm-g", "/images/g.raw", 1) {
		t.Error("kept although nothing is to be")
	}
	if strings.Join(kept, " ") != "a b c d e" || strings.Join(dropped, " ") != "b c a d e" && strings.Join(dropped, " ") != "b c d e a" {
		t.Errorf("told of %v kept and %v dropped", kept, dropped)
	}
}

// TestRemainsGiveWay: space that a disk needs that comes, or a guest that writes.
func TestRemainsGiveWay(t *testing.T) {
	w := newWorld(t)
	h := w.hosts["north1"]
	a := h.current().agent
	for _, m := range []string{"a", "b", "c"} {
		h.keep(m, "vm-"+m, "/images/"+m+".raw", 4)
	}
	free, err := a.volumes.FreeBytes(t.Context(), "/images/any")
	must(t, err)
	host, _, err := a.observe(t.Context())
	must(t, err)
	all, err := a.remains.list("")
	must(t, err)
	var sum drover.Bytes
	for _, r := range all {
		sum += r.AllocatedBytes
	}
	if host.VolumesFreeBytes != free+sum {
		t.Errorf("%s free, of which %s are evictable, but the host says %s", free, sum, host.VolumesFreeBytes)
	}
	must(t, a.remains.room(t.Context(), "/images/any", free+1, "vm-a"))
	if got := h.left(); got != "c a" {
		t.Errorf("%q is left, want the vm's own and the newest", got)
	}
	must(t, a.remains.room(t.Context(), "/images/any", free+sum+1, "vm-a"))
	if got := h.left(); got != "" {
		t.Errorf("%q is left", got)
	}
	h.checkRemains()
}

// TestRemainsDieAnywhere kills the source's agent at every point of keeping a
// disk aside: the disk is then the move's, or a remain, and in the end a remain.
func TestRemainsDieAnywhere(t *testing.T) {
	var points []string
	count := func(t *testing.T, kill int) (died bool) {
		w := newWorld(t)
		w.addVM()
		w.begin()
		_, err := w.run("north1", "transfer", 1, w.transferAction())
		must(t, err)
		w.ask("south1", "verify", 1, &droverv1.Verify{Running: true})
		n := 0
		w.setPoint(func(host, point string) error {
			if host != "north1" || !strings.Contains(point, "remain") && !strings.Contains(point, "release") {
				return nil
			}
			n++
			if kill == 0 {
				points = append(points, point)
			} else if n == kill {
				died = true
				w.hosts[host].kill()
				return errDead
			}
			return nil
		})
		w.supervise()
		w.ask("north1", "release-source", 1, &droverv1.ReleaseSource{Disks: diskPlans()})
		w.ask("south1", "release", 1, &droverv1.Release{Target: true})
		w.ask("north1", "release", 1, &droverv1.Release{})
		w.setPoint(nil)
		w.checkOnce("south1")
		if got := w.hosts["north1"].left(); got != moveName {
			t.Errorf("killed at point %d: %q is kept", kill, got)
		}
		return died
	}
	count(t, 0)
	if len(points) < 6 {
		t.Fatalf("points: %v", points)
	}
	for i, point := range points {
		t.Run(fmt.Sprintf("%d %s", i+1, point), func(t *testing.T) {
			t.Parallel()
			if !count(t, i+1) {
				t.Error("the point was not reached")
			}
		})
	}
}
