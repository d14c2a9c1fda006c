package etcd_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
	"github.com/drover-vm/drover/store/etcd"
	"github.com/drover-vm/drover/store/storetest"
)

func TestMain(m *testing.M) {
	if child() {
		return
	}
	goleak.VerifyTestMain(m)
}

func TestConformance(t *testing.T) {
	e := embedded(t, t.TempDir())
	var n atomic.Int32
	fresh := func() *etcd.Store { return etcd.New(e.Client(), fmt.Sprintf("/drover-%d", n.Add(1))) }
	storetest.Journal(t, func(*testing.T) store.Journal { return fresh() })
	storetest.Inventory(t, func(*testing.T) store.Inventory { return fresh() })
}

func embedded(t *testing.T, dir string) *etcd.Embedded {
	t.Helper()
	e, err := etcd.Embed(t.Context(), nil, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

func TestPrefixesAreApart(t *testing.T) {
	e := embedded(t, t.TempDir())
	a, b := etcd.New(e.Client(), "/a"), etcd.New(e.Client(), "/a/")
	other := etcd.New(e.Client(), "/ab")
	if _, _, err := a.Create(t.Context(), storetest.Record(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), "m001"); err != nil {
		t.Errorf("the same prefix with a slash: %v", err)
	}
	if _, err := other.Get(t.Context(), "m001"); drover.KindOf(err) != drover.NotFound {
		t.Errorf("another prefix sees the move: %v", err)
	}
}

func TestCompactedWatch(t *testing.T) {
	e := embedded(t, t.TempDir())
	s := etcd.New(e.Client(), "/drover")
	r, _, err := s.Create(t.Context(), storetest.Record(1))
	if err != nil {
		t.Fatal(err)
	}
	r2, _, err := s.Create(t.Context(), storetest.Record(2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Client().Compact(t.Context(), r2.Revision); err != nil {
		t.Fatal(err)
	}
	for _, err := range s.Watch(t.Context(), r.Revision-1) {
		if drover.KindOf(err) != drover.NotFound {
			t.Errorf("watching what is compacted: %v, want not found", err)
		}
	}
}

func TestFolderOfAnother(t *testing.T) {
	dir := t.TempDir()
	embedded(t, dir)
	_, err := etcd.Embed(t.Context(), nil, dir)
	if drover.KindOf(err) != drover.Unavailable {
		t.Errorf("a folder that is open already: %v, want unavailable", err)
	}
	if _, err := etcd.Embed(t.Context(), nil, "/proc/nowhere"); drover.KindOf(err) != drover.Invalid {
		t.Errorf("a folder that cannot be made: %v, want invalid", err)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		e, err := etcd.Embed(t.Context(), nil, dir)
		if err != nil {
			t.Fatal(err)
		}
		s := etcd.New(e.Client(), "/drover")
		all, _, err := s.List(t.Context(), store.Filter{})
		if err != nil || len(all) != round {
			t.Errorf("opened %d times before: %d moves, error %v", round, len(all), err)
		}
		if _, _, err := s.Create(context.Background(), storetest.Record(round)); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
