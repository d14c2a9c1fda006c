package store_test

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
)

// sample makes testdata anew: only for a new version, the old files stay.
var sample = flag.Bool("sample", false, "write a record of the current version to testdata")

// record1 is what testdata/record-v1.json says.
func record1() store.Record {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)
	return store.Record{
		RequestID: "request-1",
		State:     []byte(`{"table":"live/1"}`),
		Move: drover.Move{
			Name: "m1", VM: "web1", VMUUID: "11111111-2222",
			From: drover.Place{Site: "west", Host: "west1"}, To: drover.Place{Site: "east", Host: "east1"},
			Method: drover.Live, Reason: []string{"its link is fast"}, KeepSource: true, Generation: 3,
			State: drover.MoveUndoing, Fault: "transfer: no room", Created: at,
			Measured: drover.Figures{TotalSeconds: new(12.5), SessionsLost: new(int64(0))},
			Steps: []drover.StepRecord{
				{Name: "reserve-target", State: drover.StepDone, Attempts: 1, Started: at, Ended: at.Add(time.Second)},
				{Name: "transfer", State: drover.StepFailed, Attempts: 2, Started: at, Ended: at.Add(time.Minute), Fault: "no room"},
			},
		},
	}
}

// A record kept by an earlier Drover is read as it was meant.
func TestOldRecordsOpen(t *testing.T) {
	const file = "testdata/record-v1.json"
	if *sample {
		b, err := store.EncodeRecord(record1())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.DecodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(record1(), got); d != "" {
		t.Errorf("%s (-meant +read):\n%s", file, d)
	}
}

func TestEncodeIsStable(t *testing.T) {
	r := record1()
	r.State = []byte("{ \"text\": \"<a & b>\",\n \"n\": 1 }")
	r.Move.Progress = &drover.Progress{Step: "transfer"}
	first, err := store.EncodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	read, err := store.DecodeRecord(first)
	if err != nil {
		t.Fatal(err)
	}
	again, err := store.EncodeRecord(read)
	if err != nil {
		t.Fatal(err)
	}
	if string(first) != string(again) {
		t.Errorf("read and written again it differs:\n%s\n%s", first, again)
	}
	if strings.Contains(string(first), `"progress"`) {
		t.Errorf("progress is kept: %s", first)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for want, doc := range map[string]string{
		"unexpected end": ``,
		"version 0":      `{"move":{"move":"m1"}}`,
		"version 2":      `{"version":2,"move":{"move":"m1"}}`,
		"names no move":  `{"version":1,"move":{}}`,
		"cannot unmarsh": `{"version":1,"move":[]}`,
	} {
		_, err := store.DecodeRecord([]byte(doc))
		if drover.KindOf(err) != drover.Corrupt || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want corrupt: %q", doc, err, want)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := store.EncodeRecord(record1())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := store.DecodeRecord(b)
		if err != nil {
			return
		}
		if _, err := store.EncodeRecord(r); err != nil && drover.KindOf(err) != drover.Invalid {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}
