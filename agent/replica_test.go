package agent

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

const replicaName = "replica-7-1"

// askReplica asks for an action of the replica's, until it has a definite end.
func (w *world) askReplica(host, step string, action any) (*droverv1.RunResult, error) {
	return w.insistAs(replicaName, host, step, 1, action)
}

// protect sets a replica up and takes its first round.
func (w *world) protect() {
	w.t.Helper()
	for _, s := range []struct {
		host, step string
		do         any
	}{
		{"north1", "reserve-source", &droverv1.Reserve{Keeps: true}},
		{"south1", "reserve-target", &droverv1.Reserve{Target: true, Keeps: true}},
		{"south1", "create-volumes", &droverv1.CreateVolumes{Disks: diskPlans()}},
	} {
		if _, err := w.askReplica(s.host, s.step, s.do); err != nil {
			w.t.Fatalf("%s: %v", s.step, err)
		}
	}
	w.round(1)
}

func (w *world) roundAction() *droverv1.Replicate {
	return &droverv1.Replicate{PeerAddress: w.hosts["south1"].address, PeerHost: "south1", Disks: diskPlans(), Once: true}
}

// round takes the replica's next round.
func (w *world) round(n int) *droverv1.RunResult {
	w.t.Helper()
	r, err := w.askReplica("north1", fmt.Sprintf("round-%d", n), w.roundAction())
	if err != nil {
		w.t.Fatalf("round %d: %v", n, err)
	}
	return r
}

// unprotect ends the replica, each part of it twice.
func (w *world) unprotect() {
	w.t.Helper()
	for range 2 {
		for _, s := range []struct {
			host string
			do   any
		}{
			{"north1", &droverv1.StopReplication{}},
			{"south1", &droverv1.DeleteVolumes{}},
			{"south1", &droverv1.Release{Target: true}},
			{"north1", &droverv1.Release{}},
		} {
			if _, err := w.askReplica(s.host, "end", s.do); err != nil {
				w.t.Fatalf("%T: %v", s.do, err)
			}
		}
	}
	for _, h := range w.hosts {
		for _, path := range h.volumes.Paths() {
			if strings.Contains(path, driver.ReplicaPrefix) {
				w.t.Errorf("host %s: %s is left", h.name, path)
			}
		}
	}
}

// wrote has the guest write some blocks.
func (w *world) wrote(fill byte, blocks ...int64) {
	w.t.Helper()
	for _, b := range blocks {
		must(w.t, w.fleet.WriteDisk("north1", vmName, "vda", b<<16, bytes.Repeat([]byte{fill}, 4096)))
	}
}

// replicaHolds fails unless the replica's image has the content given.
func (w *world) replicaHolds(want []byte) {
	w.t.Helper()
	if got := w.hosts["south1"].read(replicaPath(replicaName, "vda", vdaPath)); !bytes.Equal(got, want) {
		w.t.Error("the replica has another content than the disk")
	}
}

func TestReplica(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.wrote('a', 1, 2, 3, 4, 5, 6, 7, 8)
	w.protect()
	w.replicaHolds(w.content("north1"))
	w.wrote('b', 2)
	r := w.round(2)
	w.replicaHolds(w.content("north1"))
	if n := r.GetDiskBytes(); n == 0 || n > 1<<16 {
		t.Errorf("a round after a write of 4 KiB has sent %d bytes", n)
	}
	if r.GetPointUnixNanos() == 0 {
		t.Error("it does not say of which moment it is")
	}
	if again := w.round(2); again.GetPointUnixNanos() != r.GetPointUnixNanos() {
		t.Error("the same round was taken twice")
	}
	// The images of replicas are no volumes to anybody else.
	list, err := w.hosts["south1"].volumes.List(t.Context())
	must(t, err)
	for _, v := range list {
		if strings.Contains(v.Path, "replica") {
			t.Errorf("%s is listed", v.Path)
		}
	}
	if c := w.hosts["north1"].current().agent.freeCheck("x", vmName, vmUUID); !c.OK {
		t.Errorf("a replica keeps moves away: %s", c.Detail)
	}
	w.unprotect()
	w.checkOnce("north1")
}

// TestReplicaMoves: moves begin with the replica, and send what was written since.
func TestReplicaMoves(t *testing.T) {
	for _, way := range []string{"warm", "cold"} {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			w.wrote('a', 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
			w.protect()
			w.wrote('b', 2, 3)
			w.replica = replicaName
			var sent int64
			if way == "warm" {
				st := w.warm("", 1)
				sent = st.sent
			} else {
				sent = w.coldFromReplica()
			}
			if sent == 0 || sent > 2<<16 {
				t.Errorf("%d bytes of the disk were sent, want those of the two clusters that were written", sent)
			}
			w.unprotect()
			w.checkOnce("south1")
		})
	}
}

func (w *world) coldFromReplica() (sent int64) {
	w.t.Helper()
	var def []byte
	for _, s := range w.coldSteps() {
		action := s.do
		if s.step == "define" {
			action = &droverv1.Define{Definition: def}
		}
		want := []byte(nil)
		if s.step == "copy" {
			want = w.content("north1")
		}
		r := w.ask(s.host, s.step, 1, action)
		switch s.step {
		case "give-up":
			def = r.GetDefinition()
		case "copy":
			sent = r.GetDiskBytes()
			w.fleet.CopyDisk(vdaPath, "north1", "south1")
			if !bytes.Equal(w.content("south1"), want) {
				w.t.Error("the disk has another content at the destination")
			}
		}
	}
	return sent
}

// TestReplicaUndone: a move that is undone gives back what it took, and the
// replica goes on, or says that it cannot.
func TestReplicaUndone(t *testing.T) {
	for _, last := range []string{"reserve-source", "create-volumes", "replicate", "shutdown", "give-up", "copy-changes", "define", "start"} {
		t.Run(last, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			w.wrote('a', 1, 2, 3)
			w.protect()
			w.wrote('b', 2)
			w.replica = replicaName
			w.unwarm(w.warm(last, 1), 1)
			w.wrote('c', 3)
			r, err := w.askReplica("north1", "round-2", w.roundAction())
			switch kept := last == "reserve-source" || last == "create-volumes" || last == "replicate" || last == "shutdown"; {
			case kept && err != nil:
				t.Errorf("the next round: %v", err)
			case kept && r.GetDiskBytes() > 2<<16:
				t.Errorf("the next round has sent %d bytes", r.GetDiskBytes())
			case kept:
				w.replicaHolds(w.content("north1"))
			case err == nil:
				w.replicaHolds(w.content("north1"))
			case drover.KindOf(err) != drover.NotFound && drover.KindOf(err) != drover.Refused:
				t.Errorf("the next round: %v", err)
			}
			w.unprotect()
			w.checkOnce("north1")
		})
	}
}

// TestReplicaDieAnywhere kills either agent at every point of a warm move that
// begins with a replica; the same steps are asked for again, or taken back.
func TestReplicaDieAnywhere(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.protect()
	w.wrote('b', 2)
	w.replica = replicaName
	points := w.tracePoints()
	w.warm("", 1)
	for i, p := range points() {
		// The rest of the way is that of any warm move.
		if i%2 == 1 && !strings.Contains(p.String(), "taken") && !strings.Contains(p.String(), "volume-made") {
			continue
		}
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.addVM()
			w.protect()
			w.wrote('b', 2)
			w.replica = replicaName
			w.supervise()
			died := w.dieAt(p)
			at := "south1"
			if i%3 == 2 {
				at = "north1"
				w.unwarm(w.warm("copy-changes", 1), 2)
			} else {
				st := w.warm("", 1)
				if !bytes.Equal(w.content("south1"), st.want) {
					t.Error("the disk has another content at the destination")
				}
			}
			t.Logf("died: %v", died())
			w.unprotect()
			w.checkOnce(at)
		})
	}
}

// TestReplicaYields: a move ends a round that is under way, and none begins while
// it has the VM.
func TestReplicaYields(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.protect()
	w.wrote('b', 2)
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.setPoint(func(host, point string) error {
		if host == "north1" && point == "after hypervisor begin backup" {
			once.Do(func() { close(begun); <-goOn })
		}
		return nil
	})
	ended := make(chan error, 1)
	go func() {
		_, err := w.runAs(replicaName, "north1", "round-2", 1, w.roundAction())
		ended <- err
	}()
	<-begun
	reserved := make(chan error, 1)
	go func() {
		_, err := w.insist("north1", "reserve-source", 1, &droverv1.Reserve{})
		reserved <- err
	}()
	for {
		r, err := w.hosts["north1"].current().agent.journal.move(moveName)
		must(t, err)
		if r != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(goOn)
	must(t, <-reserved)
	if err := <-ended; err == nil {
		t.Error("the round under way went on")
	}
	if _, err := w.askReplica("north1", "round-2", w.roundAction()); drover.KindOf(err) != drover.Refused {
		t.Errorf("a round beside a move: %v", err)
	}
	w.ask("north1", "release", 1, &droverv1.Release{})
	w.round(2)
	w.replicaHolds(w.content("north1"))
	w.unprotect()
	w.checkOnce("north1")
}

// TestReplicaLeftBehind: a live move takes no record of changes along, and leaves
// none.
func TestReplicaLeftBehind(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.protect()
	w.begin()
	if _, err := w.insist("north1", "transfer", 1, w.transferAction()); err != nil {
		t.Fatal(err)
	}
	at := w.finish(1, nil)
	w.unprotect()
	w.checkOnce(at)
}

// TestReplicaLost: a replica that cannot be built on says so, and keeps what it
// has for another to refer to.
func TestReplicaLost(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.wrote('a', 1, 2, 3)
	w.protect()
	want := w.content("north1")
	w.fleet.Kill("north1", vmName)
	must(t, w.hosts["north1"].hyp.Start(t.Context(), vmName))
	w.wrote('b', 2)
	if _, err := w.askReplica("north1", "round-2", w.roundAction()); drover.KindOf(err) != drover.NotFound {
		t.Fatalf("a round without a record: %v, want not found", err)
	}
	w.replicaHolds(want)
	w.unprotect()
	w.checkOnce("north1")
}

// TestReplicaOwned: what a replica has is told to the doctor, and removed for it.
func TestReplicaOwned(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.protect()
	owner := string(driver.MoveOwner(replicaName))
	for _, host := range []string{"north1", "south1"} {
		r, err := w.client(host).Owned(t.Context(), &droverv1.OwnedRequest{})
		must(t, err)
		found := false
		for _, thing := range r.GetThings() {
			found = found || thing.GetOwner() == owner && thing.GetKind() == ownedReplica
		}
		if !found {
			t.Errorf("host %s tells of no replica: %v", host, r.GetThings())
		}
		_, err = w.client(host).RemoveOwned(t.Context(), &droverv1.RemoveOwnedRequest{Owner: owner, Kind: ownedReplica})
		must(t, err)
	}
	w.unprotect()
	w.checkOnce("north1")
}
