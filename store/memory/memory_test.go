package memory_test

import (
	"errors"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
	"github.com/drover-vm/drover/store/memory"
	"github.com/drover-vm/drover/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Journal(t, func(*testing.T) store.Journal { return memory.New() })
	storetest.Inventory(t, func(*testing.T) store.Inventory { return memory.New() })
}

func TestFaultBeforeAndAfter(t *testing.T) {
	boom := errors.New("boom")
	for _, after := range []bool{false, true} {
		s := memory.New()
		s.SetFault(func(op memory.Op, name string, late bool) error {
			if op == memory.OpCreate && name == "m001" && late == after {
				return drover.E(drover.Unknown, "create", boom)
			}
			return nil
		})
		if _, _, err := s.Create(t.Context(), storetest.Record(1)); !errors.Is(err, boom) {
			t.Fatalf("after %v: error %v, want the fault's", after, err)
		}
		s.SetFault(nil)
		_, created, err := s.Create(t.Context(), storetest.Record(1))
		if err != nil || created == after {
			t.Errorf("after %v: created again %v, error %v; want it to have taken effect %v", after, created, err, after)
		}
	}
}

func TestCompactedWatch(t *testing.T) {
	s := memory.New()
	r, _, err := s.Create(t.Context(), storetest.Record(1))
	if err != nil {
		t.Fatal(err)
	}
	s.Compact()
	for _, err := range s.Watch(t.Context(), r.Revision-1) {
		if drover.KindOf(err) != drover.NotFound {
			t.Errorf("watching what is compacted: %v, want not found", err)
		}
	}
	go func() { _, _, _ = s.Create(t.Context(), storetest.Record(2)) }()
	for r, err := range s.Watch(t.Context(), r.Revision) {
		if err != nil || r.Move.Name != "m002" {
			t.Errorf("watching on from the compaction: %v, error %v", r.Move.Name, err)
		}
		break
	}
}
