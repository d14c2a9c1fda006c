package storetest

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
)

func list(t *testing.T, j store.Journal) {
	if all, _, err := j.List(t.Context(), store.Filter{}); err != nil || len(all) != 0 {
		t.Fatalf("List of none: %v, error %v", all, err)
	}
	// Created out of their order in time, and with names that do not follow it.
	for _, n := range []int{2, 0, 1} {
		r := Record(n)
		r.Move.Name = string(rune('c'-n)) + "-move"
		mustCreate(t, j, r)
	}
	r, err := j.Get(t.Context(), "b-move")
	if err != nil {
		t.Fatal(err)
	}
	r.Move.State = drover.MoveDone
	if r, err = j.Update(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		f    store.Filter
		want string
	}{
		{store.Filter{}, "c-move b-move a-move"},
		{store.Filter{Unfinished: true}, "c-move a-move"},
		{store.Filter{VMUUID: "uuid-1"}, "b-move"},
		{store.Filter{VMUUID: "uuid-1", Unfinished: true}, ""},
	} {
		got, rev, err := j.List(t.Context(), test.f)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, g := range got {
			names = append(names, g.Move.Name)
			if same, err := j.Get(t.Context(), g.Move.Name); err != nil || !cmp.Equal(same, g) {
				t.Errorf("List has %+v, Get %+v, error %v", g, same, err)
			}
		}
		if s := strings.Join(names, " "); s != test.want {
			t.Errorf("List(%+v): %q, want %q", test.f, s, test.want)
		}
		if rev < r.Revision {
			t.Errorf("List: revision %d, want %d or more", rev, r.Revision)
		}
	}
}

func watchMoves(t *testing.T, j store.Journal) {
	_, rev, err := j.List(t.Context(), store.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	a := mustCreate(t, j, Record(1))
	b := mustCreate(t, j, Record(2))
	a2 := a
	a2.Move.State = drover.MoveDone
	if a2, err = j.Update(t.Context(), a2); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]struct {
		after int64
		want  []store.Record
	}{
		"from the beginning": {rev, []store.Record{a, b, a2}},
		"from the first":     {a.Revision, []store.Record{b, a2}},
	} {
		var got []store.Record
		for r, err := range j.Watch(t.Context(), from.after) {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, r); len(got) == len(from.want) {
				break
			}
		}
		if d := cmp.Diff(from.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func watchFromNow(t *testing.T, j store.Journal) {
	_, rev, err := j.List(t.Context(), store.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	seen := make(chan string, 3)
	for range 3 {
		wg.Go(func() {
			for r, err := range j.Watch(ctx, rev) {
				if err != nil {
					t.Errorf("Watch: %v", err)
					return
				}
				seen <- r.Move.Name
			}
		})
	}
	r := mustCreate(t, j, Record(1))
	for range 3 {
		if name := <-seen; name != r.Move.Name {
			t.Errorf("a watcher saw %q, want %q", name, r.Move.Name)
		}
	}
	cancel() // which is no error, and ends them
	wg.Wait()
}
