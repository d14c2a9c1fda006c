package executor_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/executor/executortest"
	"github.com/drover-vm/drover/store"
	"github.com/drover-vm/drover/store/memory"
)

// sample makes testdata anew: only for a new version, the old files stay.
var sample = flag.Bool("sample", false, "write a record of the current version to testdata")

// The unfinished moves of every earlier version are taken up and end well. Each
// file is the record of a cold move whose executor died while copying.
func TestOldRecords(t *testing.T) {
	for _, file := range []string{"testdata/cold-v1.json"} {
		synctest.Test(t, func(t *testing.T) {
			// The hosts as they were: a move like the one in the file, up to there.
			s := open(t, executor.Config{}, "west1", "east1")
			r := request(scenario{method: drover.Cold})
			r.ID = "another request"
			s.world.AddVM(r.VM)
			s.world.SetFault(func(c executortest.Call) error {
				if c.Step == "copy" {
					return drover.Errorf(drover.Unavailable, "test", "no answer")
				}
				return nil
			})
			made := s.start(t, r)
			time.Sleep(2 * time.Second)
			if *sample {
				write(t, s, file, made.Name)
			}
			if err := s.Executor.Close(); err != nil {
				t.Fatal(err)
			}
			s.world.SetFault(nil)

			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			old, err := store.DecodeRecord(b)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			s.world.Rename(made.Name, old.Move.Name)
			next := site{journal: memory.New(), world: s.world}
			if _, _, err := next.journal.Create(t.Context(), old); err != nil {
				t.Fatal(err)
			}
			next.Executor = executor.New(executor.Config{Journal: next.journal, Agents: s.world, Log: testLog()})
			defer next.Executor.Close()
			if err := next.Resume(t.Context()); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			m := next.end(t, old.Move.Name)
			if wrong := s.world.Check(m, r.Disks, true); m.State != drover.MoveDone || len(wrong) > 0 {
				t.Errorf("%s: the move is %s (%s): %v", file, m.State, m.Fault, wrong)
			}
		})
	}
}

func write(t *testing.T, s site, file, name string) {
	t.Helper()
	r, err := s.journal.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := store.EncodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A record that this Drover cannot read is named, left alone, and does not keep
// others from being taken up.
func TestUnreadableRecord(t *testing.T) {
	for want, state := range map[string]string{
		`no step table "live/99"`: `{"version":1,"table":"live/99"}`,
		"version 2":               `{"version":2,"table":"live/1"}`,
		"0 steps":                 `{"version":1,"table":"live/1"}`,
		"cannot unmarshal":        `[]`,
	} {
		synctest.Test(t, func(t *testing.T) {
			s := open(t, executor.Config{}, "west1", "east1")
			bad := store.Record{State: []byte(state), Move: drover.Move{Name: "bad", VMUUID: "u", State: drover.MoveRunning, Generation: 4}}
			if _, _, err := s.journal.Create(t.Context(), bad); err != nil {
				t.Fatal(err)
			}
			r := nth(0, "west", "east")
			s.world.AddVM(r.VM)
			name := s.start(t, r).Name
			if err := s.Executor.Close(); err != nil {
				t.Fatal(err)
			}
			next := site{journal: s.journal, world: s.world}
			next.Executor = executor.New(executor.Config{Journal: s.journal, Agents: s.world, Log: testLog()})
			defer next.Executor.Close()
			err := next.Resume(t.Context())
			if drover.KindOf(err) != drover.Corrupt || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "bad") {
				t.Errorf("resume: %v, want it to name the move and %q", err, want)
			}
			if m := next.end(t, name); m.State != drover.MoveDone {
				t.Errorf("the other move is %s: %s", m.State, m.Fault)
			}
			kept, err := s.journal.Get(t.Context(), "bad")
			if err != nil || kept.Move.Generation != 4 {
				t.Errorf("the unreadable one has changed: %+v, error %v", kept.Move, err)
			}
		})
	}
}
