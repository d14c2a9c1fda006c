package storetest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
)

// Inventory tests an inventory. open returns an empty one, whose end it leaves
// to t.Cleanup.
func Inventory(t *testing.T, open func(*testing.T) store.Inventory) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)
	t.Run("inventory/sites", func(t *testing.T) {
		collection(t, open(t).Sites(), "b", drover.Site{},
			drover.Site{Name: "b", Latitude: 52.5, Longitude: -13.4, Hosts: []string{"b1", "b2"}},
			drover.Site{Name: "b", Hosts: []string{}},
			drover.Site{Name: "a"})
	})
	t.Run("inventory/hosts", func(t *testing.T) {
		collection(t, open(t).Hosts(), "b1", drover.Host{Site: "b"},
			drover.Host{Name: "b1", Site: "b", CPUs: 4, MemoryBytes: 8 * drover.GiB, Up: true, LastSeen: at, Machines: []string{"pc-q35-10.0"}},
			drover.Host{Name: "b1", Site: "b", LastSeen: at, Fault: "no answer"},
			drover.Host{Name: "a1", Site: "a"})
	})
	t.Run("inventory/links", func(t *testing.T) {
		collection(t, open(t).Links(), "b-c", drover.Link{A: "b"},
			drover.Link{Name: "b-c", A: "b", B: "c", Rate: 200 * drover.Mbps, RTTMillis: 50, ABBytes: 1 << 50},
			drover.Link{Name: "b-c", A: "b", B: "c"},
			drover.Link{Name: "a-b", A: "a", B: "b"})
	})
	t.Run("inventory/vms", func(t *testing.T) {
		collection(t, open(t).VMs(), "h2/a vm/%2f", drover.VM{Name: "v"},
			drover.VM{
				Name: "a vm/%2f", Host: "h2", UUID: "u", State: drover.VMRunning, Labels: map[string]string{"k": "<v>"},
				Disks: []drover.Disk{{Target: "vda", Path: "/a", Backing: []drover.Backing{{Path: "/b"}}}}, Probe: &drover.ProbeTarget{TCP: "10.0.0.1:7"},
			},
			drover.VM{Name: "a vm/%2f", Host: "h2", UUID: "u", State: drover.VMOff},
			drover.VM{Name: "a vm/%2f", Host: "h1", UUID: "u", State: drover.VMPaused})
	})
	t.Run("inventory/requirements", func(t *testing.T) {
		collection(t, open(t).Requirements(), "u2", drover.KeptRequirements{VM: "v"},
			drover.KeptRequirements{UUID: "u2", VM: "v", Values: map[string]string{"keep-sessions": "yes", "max-pause": "300ms"}},
			drover.KeptRequirements{UUID: "u2", VM: "v", Values: map[string]string{"max-pause": "any"}},
			drover.KeptRequirements{UUID: "u1", VM: "w"})
	})
	t.Run("inventory/protections", func(t *testing.T) {
		collection(t, open(t).Protections(), "u2", store.Protection{Protection: drover.Protection{VM: "v"}},
			store.Protection{Protection: drover.Protection{VM: "v", VMUUID: "u2", RPOSeconds: 30, Point: at}, State: []byte(`{"a":[1,"b"]}`)},
			store.Protection{Protection: drover.Protection{VM: "v", VMUUID: "u2", State: drover.ProtectionEnding}},
			store.Protection{Protection: drover.Protection{VM: "v", VMUUID: "u1"}})
	})
	r := drover.Reading{Value: 0.25, At: at, Samples: 3, Observed: true}
	t.Run("inventory/signals", func(t *testing.T) {
		collection(t, open(t).Signals(), "u2", drover.Signals{VM: "v"},
			drover.Signals{
				VM: "v", UUID: "u2", Host: "b1", At: at, ZeroShare: r, KnownShare: map[string]drover.Reading{"c": r},
				Dirty: drover.DirtyCurve{Points: []drover.DirtyPoint{{WindowSeconds: 1, Bytes: 4096}}, At: at, Samples: 1},
			},
			drover.Signals{VM: "v", UUID: "u2", Skipped: "it is off"},
			drover.Signals{VM: "w", UUID: "u1"})
	})
	t.Run("inventory/host signals", func(t *testing.T) {
		collection(t, open(t).HostSignals(), "b1", drover.HostSignals{At: at},
			drover.HostSignals{Host: "b1", At: at, CPUFreeShare: r},
			drover.HostSignals{Host: "b1"},
			drover.HostSignals{Host: "a1"})
	})
	t.Run("inventory/link signals", func(t *testing.T) {
		collection(t, open(t).LinkSignals(), "b/c", drover.LinkSignals{From: "b"},
			drover.LinkSignals{From: "b", To: "c", At: at, RTTMillis: r, Week: []drover.LinkHour{{Hour: 167, RTTMillis: 1, Samples: 2}}},
			drover.LinkSignals{From: "b", To: "c"},
			drover.LinkSignals{From: "a", To: "c"})
	})
	t.Run("inventory/sorts apart", func(t *testing.T) { apart(t, open(t)) })
	t.Run("inventory/many", func(t *testing.T) { many(t, open(t)) })
}

// collection tests one with a value, another of the same key, a third whose
// key comes before, and one that has no key.
func collection[T any](t *testing.T, c store.Collection[T], key string, nameless, first, second, before T) {
	ctx := t.Context()
	_, err := c.Get(ctx, key)
	wantKind(t, err, drover.NotFound, key)
	all, start, err := c.List(ctx)
	if err != nil || len(all) != 0 {
		t.Fatalf("List of none: %v, error %v", all, err)
	}
	wantKind(t, c.Put(ctx, nameless), drover.Invalid, "")
	if err := c.Delete(ctx, key); err != nil {
		t.Errorf("Delete of what is not there: %v", err)
	}
	for _, v := range []T{first, first, second, before} { // the second time changes nothing
		if err := c.Put(ctx, v); err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(second, got); d != "" {
		t.Errorf("Get (-put +got):\n%s", d)
	}
	all, rev, err := c.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]T{before, second}, all); d != "" {
		t.Errorf("List (-want +got):\n%s", d)
	}
	if err := c.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	_, err = c.Get(ctx, key)
	wantKind(t, err, drover.NotFound, key)
	wantChanges(t, c, start, []*T{&first, &second, &before, nil})
	wantChanges(t, c, rev, []*T{nil})
}

func wantChanges[T any](t *testing.T, c store.Collection[T], after int64, want []*T) {
	t.Helper()
	var got []*T
	for change, err := range c.Watch(t.Context(), after) {
		if err != nil {
			t.Fatal(err)
		}
		if change.Revision <= after {
			t.Errorf("a change of revision %d after %d", change.Revision, after)
		}
		after = change.Revision
		if got = append(got, change.Value); len(got) == len(want) {
			break
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Watch (-want +got):\n%s", d)
	}
}

// apart: the same name in several sorts is several things.
func apart(t *testing.T, inv store.Inventory) {
	ctx := t.Context()
	if err := inv.Sites().Put(ctx, drover.Site{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	_, err := inv.Hosts().Get(ctx, "x")
	wantKind(t, err, drover.NotFound, "x")
	if err := inv.Links().Delete(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.Sites().Get(ctx, "x"); err != nil {
		t.Errorf("deleting a link took the site of that name: %v", err)
	}
	if vms, _, err := inv.VMs().List(ctx); err != nil || len(vms) != 0 {
		t.Errorf("VMs: %v, error %v", vms, err)
	}
}

// many: more than a store may answer at once, written at once.
func many(t *testing.T, inv store.Inventory) {
	const n = 1100
	race(4, func(part int) {
		for i := part; i < n; i += 4 {
			if err := inv.VMs().Put(t.Context(), drover.VM{Name: fmt.Sprintf("vm%05d", i), Host: "h"}); err != nil {
				t.Errorf("Put: %v", err)
			}
		}
	})
	all, rev, err := inv.VMs().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != n {
		t.Fatalf("List: %d, want %d", len(all), n)
	}
	for i, v := range all {
		if v.Name != fmt.Sprintf("vm%05d", i) {
			t.Fatalf("List: %q at place %d", v.Name, i)
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := inv.VMs().Delete(t.Context(), "h/vm00000"); err != nil {
			t.Errorf("Delete: %v", err)
		}
	})
	for change, err := range inv.VMs().Watch(t.Context(), rev) {
		if err != nil || change.Key != "h/vm00000" || change.Value != nil {
			t.Errorf("Watch: %+v, error %v", change, err)
		}
		break
	}
}
