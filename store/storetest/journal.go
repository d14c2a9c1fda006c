// Package storetest is the conformance suite of the store's contracts: every
// store passes it. A store's own test is a few lines:
//
//	func TestConformance(t *testing.T) {
//		storetest.Journal(t, func(t *testing.T) store.Journal { … })
//		storetest.Inventory(t, func(t *testing.T) store.Inventory { … })
//	}
//
// What a store does when its machine fails is left to its own tests.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
)

// Journal tests a journal. open returns an empty one, whose end it leaves to
// t.Cleanup.
func Journal(t *testing.T, open func(*testing.T) store.Journal) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, store.Journal)
	}{
		{"create and get", createAndGet},
		{"what cannot be created", cannotCreate},
		{"one unfinished move per VM", oneMovePerVM},
		{"one unfinished move per VM, raced for", raceForVM},
		{"same request, same move", sameRequest},
		{"same request, raced for", raceForRequest},
		{"update", update},
		{"update is compare and swap", compareAndSwap},
		{"update by an older generation", olderGeneration},
		{"update repeated", updateRepeated},
		{"final is final", final},
		{"list", list},
		{"watch", watchMoves},
		{"watch from now", watchFromNow},
		{"canceled", canceled},
	} {
		t.Run("journal/"+test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// Record returns a record to create, whose fields are all filled; n makes it
// different from others.
func Record(n int) store.Record {
	at := time.Date(2026, 3, 1, 12, 0, n, 123456789, time.UTC)
	return store.Record{
		RequestID: fmt.Sprintf("request-%d", n),
		State:     fmt.Appendf(nil, `{"table":"live/1","n":%d,"text":"<a & b>"}`, n),
		Move: drover.Move{
			Name: fmt.Sprintf("m%03d", n), VM: fmt.Sprintf("vm%d", n), VMUUID: fmt.Sprintf("uuid-%d", n),
			From: drover.Place{Site: "west", Host: "west1"}, To: drover.Place{Site: "east", Host: "east1"},
			Method: drover.Live, Reason: []string{"it shares no segment", "its link is fast"},
			KeepSource: true, Generation: 1, State: drover.MoveRunning, Fault: "a fault", Created: at,
			Measured: drover.Figures{TotalSeconds: new(12.5), SessionsLost: new(int64(0))},
			Steps: []drover.StepRecord{
				{Name: "reserve-target", State: drover.StepDone, Attempts: 1, Started: at, Ended: at.Add(time.Second)},
				{Name: "transfer", State: drover.StepRunning, Attempts: 3, Started: at, Fault: "no answer"},
			},
		},
	}
}

func createAndGet(t *testing.T, j store.Journal) {
	ctx := t.Context()
	r := Record(1)
	r.Move.Progress = &drover.Progress{Step: "transfer"}
	kept, created, err := j.Create(ctx, r)
	if err != nil || !created {
		t.Fatalf("Create: created %v, error %v", created, err)
	}
	if kept.Revision <= 0 {
		t.Errorf("Create: revision %d, want more than 0", kept.Revision)
	}
	got, err := j.Get(ctx, r.Move.Name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(kept, got); d != "" {
		t.Errorf("Get differs from Create (-created +got):\n%s", d)
	}
	r.Move.Progress, r.Revision = nil, kept.Revision
	if d := cmp.Diff(normal(r), normal(got)); d != "" {
		t.Errorf("what was kept differs (-put +got):\n%s", d)
	}
	_, err = j.Get(ctx, "nobody")
	wantKind(t, err, drover.NotFound, "nobody")
}

// normal makes the state's text comparable: a store may escape it otherwise.
func normal(r store.Record) store.Record {
	b, err := store.EncodeRecord(r)
	if err != nil {
		panic(err)
	}
	n, err := store.DecodeRecord(b)
	if err != nil {
		panic(err)
	}
	n.Revision = r.Revision
	return n
}

func cannotCreate(t *testing.T, j store.Journal) {
	for name, spoil := range map[string]func(*store.Record){
		"name":  func(r *store.Record) { r.Move.Name = "a/b" },
		"uuid":  func(r *store.Record) { r.Move.VMUUID = "" },
		"final": func(r *store.Record) { r.Move.State = drover.MoveDone },
		"state": func(r *store.Record) { r.State = []byte("{") },
		"size":  func(r *store.Record) { r.Move.Fault = strings.Repeat("x", store.MaxRecordBytes) },
	} {
		r := Record(1)
		spoil(&r)
		_, created, err := j.Create(t.Context(), r)
		if created {
			t.Errorf("%s: created", name)
		}
		wantKind(t, err, drover.Invalid, "")
	}
	if all, _, err := j.List(t.Context(), store.Filter{}); err != nil || len(all) != 0 {
		t.Errorf("List after refusals: %d moves, error %v", len(all), err)
	}
	mustCreate(t, j, Record(1))
	r := Record(2)
	r.Move.Name = Record(1).Move.Name
	_, _, err := j.Create(t.Context(), r)
	wantKind(t, err, drover.Exists, r.Move.Name)
	// Nothing of the refused one is left: its VM and its request are free.
	r.Move.Name = "m002"
	mustCreate(t, j, r)
}

func oneMovePerVM(t *testing.T, j store.Journal) {
	first := mustCreate(t, j, Record(1))
	second := Record(2)
	second.Move.VMUUID = first.Move.VMUUID
	_, created, err := j.Create(t.Context(), second)
	wantKind(t, err, drover.Refused, first.Move.Name)
	if created {
		t.Error("created a second move of one VM")
	}
	for _, state := range []drover.MoveState{drover.MoveUndoing, drover.MoveUndone} {
		first.Move.State = state
		if first, err = j.Update(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		if !state.Final() {
			_, _, err = j.Create(t.Context(), second)
			wantKind(t, err, drover.Refused, first.Move.Name)
		}
	}
	// A write to the finished move must not unlock the one that has come since.
	mustCreate(t, j, second)
	first.Move.Fault = "changed"
	_, err = j.Update(t.Context(), first)
	wantKind(t, err, drover.Refused, "")
	third := Record(3)
	third.Move.VMUUID = first.Move.VMUUID
	_, _, err = j.Create(t.Context(), third)
	wantKind(t, err, drover.Refused, second.Move.Name)
}

func raceForVM(t *testing.T, j store.Journal) {
	const racers = 8
	var won atomic.Int32
	race(racers, func(n int) {
		r := Record(n)
		r.Move.VMUUID = "the one"
		switch _, created, err := j.Create(t.Context(), r); {
		case err == nil && created:
			won.Add(1)
		case drover.KindOf(err) != drover.Refused:
			t.Errorf("Create: created %v, error %v", created, err)
		}
	})
	if won.Load() != 1 {
		t.Errorf("%d moves of one VM were created, want 1", won.Load())
	}
}

func sameRequest(t *testing.T, j store.Journal) {
	first := mustCreate(t, j, Record(1))
	first.Move.State, first.Move.Fault = drover.MoveUndone, "later"
	first, err := j.Update(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	again := Record(2)
	again.RequestID = first.RequestID
	kept, created, err := j.Create(t.Context(), again)
	if err != nil || created {
		t.Fatalf("the same request again: created %v, error %v", created, err)
	}
	if d := cmp.Diff(first, kept); d != "" {
		t.Errorf("it is not answered with the first move as it is (-want +got):\n%s", d)
	}
	// Its VM was not locked by asking.
	mustCreate(t, j, Record(2))
	// No request ID is never the same.
	for _, n := range []int{3, 4} {
		r := Record(n)
		r.RequestID = ""
		mustCreate(t, j, r)
	}
}

func raceForRequest(t *testing.T, j store.Journal) {
	var created atomic.Int32
	var names sync.Map
	race(8, func(n int) {
		r := Record(n)
		r.RequestID = "the one"
		kept, made, err := j.Create(t.Context(), r)
		if err != nil {
			t.Errorf("Create: %v", err)
		}
		if made {
			created.Add(1)
		}
		names.Store(kept.Move.Name, true)
	})
	count := 0
	names.Range(func(any, any) bool { count++; return true })
	if created.Load() != 1 || count != 1 {
		t.Errorf("one request made %d moves and was answered with %d, want 1 and 1", created.Load(), count)
	}
}

func update(t *testing.T, j store.Journal) {
	r := mustCreate(t, j, Record(1))
	r.Move.State, r.State = drover.MoveUndoing, []byte(`{"n":2}`)
	r.Move.Steps[1].State = drover.StepFailed
	kept, err := j.Update(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if kept.Revision <= r.Revision {
		t.Errorf("revision %d after %d: want it to grow", kept.Revision, r.Revision)
	}
	got, err := j.Get(t.Context(), r.Move.Name)
	if err != nil {
		t.Fatal(err)
	}
	r.Revision = kept.Revision
	for name, g := range map[string]store.Record{"Update": kept, "Get": got} {
		if d := cmp.Diff(normal(r), normal(g)); d != "" {
			t.Errorf("%s differs (-put +got):\n%s", name, d)
		}
	}
	_, err = j.Update(t.Context(), Record(9))
	wantKind(t, err, drover.NotFound, Record(9).Move.Name)
	for what, spoil := range map[string]func(*store.Record){
		"vm":      func(r *store.Record) { r.Move.VMUUID = "another" },
		"request": func(r *store.Record) { r.RequestID = "another" },
	} {
		s := kept
		spoil(&s)
		_, err := j.Update(t.Context(), s)
		if drover.KindOf(err) != drover.Invalid {
			t.Errorf("changing its %s: %v, want invalid", what, err)
		}
	}
}

func compareAndSwap(t *testing.T, j store.Journal) {
	base := mustCreate(t, j, Record(1))
	var won atomic.Int32
	race(8, func(n int) {
		r := base
		r.Move.Fault = fmt.Sprintf("written by %d", n)
		switch _, err := j.Update(t.Context(), r); drover.KindOf(err) {
		case drover.Refused:
		default:
			if err != nil {
				t.Errorf("Update: %v", err)
			}
			won.Add(1)
		}
	})
	if won.Load() != 1 {
		t.Errorf("%d of 8 updates of one revision were made, want 1", won.Load())
	}
	r := base
	r.Revision += 1 << 40
	r.Move.Fault = "from the future"
	_, err := j.Update(t.Context(), r)
	wantKind(t, err, drover.Refused, "")
}

func olderGeneration(t *testing.T, j store.Journal) {
	old := mustCreate(t, j, Record(1))
	taken := old
	taken.Move.Generation = 2
	taken, err := j.Update(t.Context(), taken)
	if err != nil {
		t.Fatal(err)
	}
	old.Move.Fault = "late"
	_, err = j.Update(t.Context(), old)
	wantKind(t, err, drover.Refused, "generation 2")
	// Not even when it has read the newest revision.
	old.Revision = taken.Revision
	_, err = j.Update(t.Context(), old)
	wantKind(t, err, drover.Refused, "generation 2")
	got, err := j.Get(t.Context(), old.Move.Name)
	if err != nil || got.Move.Fault == "late" {
		t.Errorf("an older generation has written: %+v, error %v", got.Move, err)
	}
}

func updateRepeated(t *testing.T, j store.Journal) {
	base := mustCreate(t, j, Record(1))
	r := base
	r.Move.State, r.Move.Fault = drover.MoveDone, ""
	first, err := j.Update(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	// As after a lost reply: the same update, based on the same revision.
	again, err := j.Update(t.Context(), r)
	if err != nil {
		t.Fatalf("the same update again: %v", err)
	}
	if d := cmp.Diff(first, again); d != "" {
		t.Errorf("the same update again is answered otherwise (-first +again):\n%s", d)
	}
}

func final(t *testing.T, j store.Journal) {
	for n, state := range []drover.MoveState{drover.MoveDone, drover.MoveUndone, drover.MoveStuck} {
		r := mustCreate(t, j, Record(n))
		r.Move.State = state
		r, err := j.Update(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		r.Move.State = drover.MoveRunning
		_, err = j.Update(t.Context(), r)
		wantKind(t, err, drover.Refused, string(state))
	}
}

func canceled(t *testing.T, j store.Journal) {
	kept := mustCreate(t, j, Record(1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := j.Create(ctx, Record(2))
	wantGone(t, "Create", err)
	_, err = j.Get(ctx, kept.Move.Name)
	wantGone(t, "Get", err)
	_, _, err = j.List(ctx, store.Filter{})
	wantGone(t, "List", err)
	kept.Move.Fault = "more"
	_, err = j.Update(ctx, kept)
	wantGone(t, "Update", err)
	for _, err := range j.Watch(ctx, kept.Revision) {
		t.Errorf("Watch yields after its context ended: %v", err)
	}
}

// wantGone: a write whose context ends may also not be known to be made.
func wantGone(t *testing.T, what string, err error) {
	t.Helper()
	if k := drover.KindOf(err); err == nil || k != drover.Canceled && k != drover.Unknown {
		t.Errorf("%s with a canceled context: %v, want canceled or unknown", what, err)
	}
}

func mustCreate(t *testing.T, j store.Journal, r store.Record) store.Record {
	t.Helper()
	kept, created, err := j.Create(t.Context(), r)
	if err != nil || !created {
		t.Fatalf("Create %s: created %v, error %v", r.Move.Name, created, err)
	}
	return kept
}

// wantKind fails unless err is a drover.Error of that kind that names about.
func wantKind(t *testing.T, err error, k drover.Kind, about string) {
	t.Helper()
	var e *drover.Error
	switch {
	case !errors.As(err, &e):
		t.Errorf("error %v, want a drover.Error of kind %v", err, k)
	case drover.KindOf(err) != k:
		t.Errorf("error of kind %v (%v), want %v", drover.KindOf(err), err, k)
	case !strings.Contains(err.Error(), about):
		t.Errorf("error %q does not name %q", err, about)
	}
}

// race runs f n times at once and waits for all.
func race(n int, f func(int)) {
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-begin
			f(i)
		})
	}
	close(begin)
	wg.Wait()
}
