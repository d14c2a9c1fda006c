package store

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/drover-vm/drover"
)

// RecordVersion is the version of the document that EncodeRecord writes.
//
// Version 1: {"version":1, "request_id":"…", "move":{…}, "state":{…}}, where
// move is a drover.Move and state the executor's. Fields may be added without
// a new version; one that changes its meaning needs one, and DecodeRecord then
// reads both: a server that is upgraded finds its unfinished moves.
const RecordVersion = 1

// MaxRecordBytes bounds a record's document. A move's own part is a few KiB;
// the rest is the VM's definition, which is some tens of KiB for a VM with many
// devices. etcd refuses requests above 1.5 MiB.
const MaxRecordBytes = 1 << 20

type recordDocument struct {
	Version   int             `json:"version"`
	RequestID string          `json:"request_id,omitempty"`
	Move      drover.Move     `json:"move"`
	State     json.RawMessage `json:"state,omitempty"`
}

// EncodeRecord returns r as one document, without its revision and the move's
// progress. A state that is no JSON, or a document above MaxRecordBytes, gives
// drover.Invalid. Equal records give equal documents.
func EncodeRecord(r Record) ([]byte, error) {
	r.Move.Progress = nil
	d := recordDocument{Version: RecordVersion, RequestID: r.RequestID, Move: r.Move}
	if len(r.State) > 0 {
		var compact bytes.Buffer
		if err := json.Compact(&compact, r.State); err != nil {
			return nil, drover.E(drover.Invalid, "record of move "+r.Move.Name, fmt.Errorf("state: %w", err))
		}
		d.State = compact.Bytes()
	}
	b, err := json.Marshal(d)
	if err != nil {
		return nil, drover.E(drover.Invalid, "record of move "+r.Move.Name, err)
	}
	if len(b) > MaxRecordBytes {
		return nil, drover.Errorf(drover.Invalid, "record of move "+r.Move.Name, "%d bytes: want at most %d", len(b), MaxRecordBytes)
	}
	return b, nil
}

// DecodeRecord reads a document of any version so far. What cannot be read
// gives drover.Corrupt.
func DecodeRecord(b []byte) (Record, error) {
	var d recordDocument
	if err := json.Unmarshal(b, &d); err != nil {
		return Record{}, drover.E(drover.Corrupt, "record", err)
	}
	if d.Version < 1 || d.Version > RecordVersion {
		return Record{}, drover.Errorf(drover.Corrupt, "record", "version %d: this Drover reads 1 to %d", d.Version, RecordVersion)
	}
	if d.Move.Name == "" {
		return Record{}, drover.Errorf(drover.Corrupt, "record", "it names no move")
	}
	return Record{Move: d.Move, RequestID: d.RequestID, State: d.State}, nil
}

// CheckCreate reports whether r may be created; see Journal.Create.
func CheckCreate(r Record) error {
	op := "create move " + r.Move.Name
	if err := drover.CheckName("move", r.Move.Name); err != nil {
		return drover.E(drover.Invalid, "create move", err)
	}
	if r.Move.VMUUID == "" {
		return drover.Errorf(drover.Invalid, op, "it has no VM UUID, which is what is locked")
	}
	if r.Move.State.Final() {
		return drover.Errorf(drover.Invalid, op, "its state is %s already", r.Move.State)
	}
	return nil
}

// CheckUpdate reports whether r may replace kept; see Journal.Update. Its
// callers have made sure that the two are not the same document.
func CheckUpdate(kept, r Record) error {
	op := "update move " + r.Move.Name
	switch {
	case kept.Move.Generation > r.Move.Generation:
		return drover.Errorf(drover.Refused, op, "generation %d has taken it up, this is %d", kept.Move.Generation, r.Move.Generation)
	case kept.Revision != r.Revision:
		return drover.Errorf(drover.Refused, op, "it has changed: revision %d is kept, this is based on %d", kept.Revision, r.Revision)
	case kept.Move.State.Final():
		return drover.Errorf(drover.Refused, op, "it is %s, which is final", kept.Move.State)
	case kept.Move.VMUUID != r.Move.VMUUID || kept.RequestID != r.RequestID:
		return drover.Errorf(drover.Invalid, op, "VM and request of a move do not change")
	}
	return nil
}
