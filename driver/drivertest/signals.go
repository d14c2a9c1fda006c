package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// SignalsSetup is what the conformance suite of driver.Signals needs to know of an
// implementation.
type SignalsSetup struct {
	// New returns a driver for the host as another process would.
	New func(t *testing.T) driver.Signals
	// Running runs with MemoryBytes and writes to its memory all the time; Off is
	// defined and does not run.
	Running, Off string
	MemoryBytes  drover.Bytes
	// End ends the VM that runs, at the end of the suite.
	End func(t *testing.T)
}

// Signals runs the conformance suite.
func Signals(t *testing.T, setup SignalsSetup) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, SignalsSetup, driver.Signals)
	}{
		{"Counters", testCounters},
		{"Processors", testProcessors},
		{"Refused", testSignalsRefused},
		{"Memory", testGuestMemory},
		{"Untouched", testUntouched},
		{"Changes", testMemoryChanges},
		{"Ended", testMemoryEnded},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := setup.New(t)
			defer func() { succeed(t, s.Close()) }()
			test.run(t, setup, s)
		})
	}
}

func testCounters(t *testing.T, setup SignalsSetup, s driver.Signals) {
	read := func() driver.VMCounters {
		all, err := s.Counters(t.Context())
		succeed(t, err)
		if slices.ContainsFunc(all, func(c driver.VMCounters) bool { return c.Name == setup.Off }) {
			t.Fatalf("%s does not run and has counters", setup.Off)
		}
		i := slices.IndexFunc(all, func(c driver.VMCounters) bool { return c.Name == setup.Running })
		if i < 0 {
			t.Fatalf("no counters of %s: %+v", setup.Running, all)
		}
		return all[i]
	}
	first := read()
	if first.UUID == "" || first.At.IsZero() || first.VCPUs < 1 || first.MemoryBytes != setup.MemoryBytes || first.ResidentBytes <= 0 {
		t.Errorf("counters %+v, want a UUID, a time, VCPUs, %s of memory and what is resident", first, setup.MemoryBytes)
	}
	if u := first.UsedBytes; u != nil && (*u < 0 || *u > first.MemoryBytes) {
		t.Errorf("the guest uses %s of %s", *u, first.MemoryBytes)
	}
	eventually(t, "wait until the guest has used its processor", func() error {
		next := read()
		if next.CPUTime < first.CPUTime || next.ReceivedBytes < first.ReceivedBytes || next.SentBytes < first.SentBytes {
			t.Fatalf("totals went down: %+v, then %+v", first, next)
		}
		if next.CPUTime == first.CPUTime {
			return fmt.Errorf("it has used %s, as before", next.CPUTime)
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Counters(ctx)
	failAs(t, err, drover.Canceled)
}

func testProcessors(t *testing.T, _ SignalsSetup, s driver.Signals) {
	idle, all, err := s.Processors(t.Context())
	succeed(t, err)
	if idle < 0 || idle > all || all == 0 {
		t.Fatalf("idle for %s of %s", idle, all)
	}
	eventually(t, "wait until time passes", func() error {
		_, later, err := s.Processors(t.Context())
		if err == nil && later <= all {
			err = fmt.Errorf("still %s", later)
		}
		return err
	})
}

func testSignalsRefused(t *testing.T, setup SignalsSetup, s driver.Signals) {
	_, err := s.Memory(t.Context(), "nobody")
	failAs(t, err, drover.NotFound)
	_, err = s.Memory(t.Context(), "no/name")
	failAs(t, err, drover.Invalid)
	_, err = s.Memory(t.Context(), setup.Off)
	failAs(t, err, drover.Refused)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Memory(ctx, setup.Running)
	failAs(t, err, drover.Canceled)
}

// openMemory opens the memory of the VM that runs; the caller closes it.
func openMemory(t *testing.T, setup SignalsSetup, s driver.Signals) driver.GuestMemory {
	t.Helper()
	m, err := s.Memory(t.Context(), setup.Running)
	succeed(t, err)
	if want := int64(setup.MemoryBytes / driver.PageBytes); m.Pages() != want {
		t.Fatalf("%d pages, want %d", m.Pages(), want)
	}
	return m
}

// present returns the pages that are in the host's memory.
func present(t *testing.T, m driver.GuestMemory) []int64 {
	t.Helper()
	var pages []int64
	for page := range m.Pages() {
		state, err := m.State(page)
		succeed(t, err)
		if state == driver.PagePresent {
			pages = append(pages, page)
		}
	}
	if len(pages) == 0 {
		t.Fatal("no page is present")
	}
	return pages
}

func testGuestMemory(t *testing.T, setup SignalsSetup, s driver.Signals) {
	m, other := openMemory(t, setup, s), openMemory(t, setup, s)
	defer func() { succeed(t, other.Close()) }()
	defer func() { succeed(t, m.Close()) }()
	buf := make([]byte, driver.PageBytes)
	filled := 0
	for _, page := range present(t, m) {
		succeed(t, m.Read(page, buf))
		if !bytes.Equal(buf, make([]byte, driver.PageBytes)) {
			filled++
		}
	}
	if filled == 0 {
		t.Error("every page is zero")
	}
	for _, page := range []int64{-1, m.Pages(), m.Pages() + 1<<40} {
		_, err := m.State(page)
		failAs(t, err, drover.Invalid)
		failAs(t, m.Read(page, buf), drover.Invalid)
	}
	failAs(t, m.Read(0, buf[:100]), drover.Invalid)
	_, err := other.State(0)
	succeed(t, err)
}

// testUntouched looks at all that is there and wants nothing to have come of it.
func testUntouched(t *testing.T, setup SignalsSetup, s driver.Signals) {
	m := openMemory(t, setup, s)
	defer func() { succeed(t, m.Close()) }()
	absent := map[int64]bool{}
	for page := range m.Pages() {
		state, err := m.State(page)
		succeed(t, err)
		absent[page] = state == driver.PageAbsent
	}
	buf := make([]byte, driver.PageBytes)
	was := 0
	for page := range m.Pages() {
		if absent[page] {
			was++
			continue
		}
		succeed(t, m.Read(page, buf))
	}
	is := 0
	for page := range m.Pages() {
		if state, err := m.State(page); err == nil && absent[page] && state == driver.PageAbsent {
			is++
		}
	}
	// The guest itself may have come to some meanwhile.
	if was == 0 || was-is > was/4 {
		t.Errorf("%d pages were absent, %d of them still are", was, is)
	}
}

func testMemoryChanges(t *testing.T, setup SignalsSetup, s driver.Signals) {
	m := openMemory(t, setup, s)
	defer func() { succeed(t, m.Close()) }()
	pages := present(t, m)
	before := make([]byte, len(pages)*driver.PageBytes)
	for i, page := range pages {
		succeed(t, m.Read(page, before[i*driver.PageBytes:][:driver.PageBytes]))
	}
	buf := make([]byte, driver.PageBytes)
	eventually(t, "wait until memory changes", func() error {
		changed := 0
		for i, page := range pages {
			succeed(t, m.Read(page, buf))
			if !bytes.Equal(buf, before[i*driver.PageBytes:][:driver.PageBytes]) {
				changed++
			}
		}
		switch {
		case changed == 0:
			return fmt.Errorf("%d pages are as they were", len(pages))
		case changed == len(pages):
			t.Fatalf("all of %d pages changed: that is not one guest's memory", len(pages))
		}
		return nil
	})
}

func testMemoryEnded(t *testing.T, setup SignalsSetup, s driver.Signals) {
	m := openMemory(t, setup, s)
	defer func() { succeed(t, m.Close()) }()
	page := present(t, m)[0]
	setup.End(t)
	buf := make([]byte, driver.PageBytes)
	eventually(t, "wait until the memory is gone", func() error {
		if err := m.Read(page, buf); err != nil {
			failAs(t, err, drover.NotFound)
			return nil
		}
		return fmt.Errorf("it can still be read")
	})
	_, err := s.Memory(t.Context(), setup.Running)
	if k := drover.KindOf(err); err == nil || k != drover.NotFound && k != drover.Refused {
		t.Errorf("memory of a vm that has ended: %v", err)
	}
}
