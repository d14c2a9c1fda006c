package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/drover-vm/drover"
)

const (
	journalFile = "agent.db"
	// journalWait bounds the wait for another agent's lock on the journal:
	// long enough for the one being replaced to end.
	journalWait = 5 * time.Second
	// maxStones bounds what is kept of released moves, a name and a few numbers
	// each: late messages come within minutes, and hosts do not see a
	// thousand moves in that time.
	maxStones = 1024
)

var (
	movesBucket  = []byte("moves")
	jobsBucket   = []byte("jobs")
	stonesBucket = []byte("released")
)

// journal is what the agent must not forget. Every update is durable when it
// returns.
type journal struct {
	db *bbolt.DB
	// trace is called around each write; tests break there. Nil otherwise.
	trace func(point string) error
}

func openJournal(dir string) (*journal, error) {
	const op = "open journal"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, drover.E(drover.Invalid, "state", err)
	}
	db, err := bbolt.Open(filepath.Join(dir, journalFile), 0o600, &bbolt.Options{Timeout: journalWait})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, drover.Errorf(drover.Exists, op, "%s: another agent has it open", dir)
	case err != nil:
		return nil, drover.E(drover.Corrupt, op, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{movesBucket, jobsBucket, stonesBucket, remainsBucket, edgeBucket, lentBucket, remoteBucket, standingBucket} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		_ = db.Close()
		return nil, drover.E(drover.Internal, op, err)
	}
	return &journal{db: db}, nil
}

func (j *journal) close() error { return j.db.Close() }

func (j *journal) write(point string, f func(*bbolt.Tx) error) error {
	if j.trace != nil {
		if err := j.trace("before journal " + point); err != nil {
			return err
		}
	}
	err := j.db.Update(f)
	if j.trace != nil && err == nil {
		err = j.trace("after journal " + point)
	}
	return journalError(err)
}

// journalError leaves errors that have a kind as they are.
func journalError(err error) error {
	var de *drover.Error
	if err == nil || errors.As(err, &de) {
		return err
	}
	return drover.E(drover.Internal, "journal", err)
}

// move returns a move's record, or nil.
func (j *journal) move(name string) (*record, error) {
	var r *record
	err := j.db.View(func(tx *bbolt.Tx) error {
		var err error
		r, err = readRecord(tx, name)
		return err
	})
	return r, journalError(err)
}

func readRecord(tx *bbolt.Tx, name string) (*record, error) {
	raw := tx.Bucket(movesBucket).Get([]byte(name))
	if raw == nil {
		return nil, nil
	}
	r := new(record)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, drover.Errorf(drover.Corrupt, "journal", "move %s: %w", name, err)
	}
	return r, nil
}

// moves returns all records.
func (j *journal) moves() ([]*record, error) {
	var all []*record
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(movesBucket).ForEach(func(k, _ []byte) error {
			r, err := readRecord(tx, string(k))
			all = append(all, r)
			return err
		})
	})
	return all, journalError(err)
}

// update changes a move's record, which must be there. point names the change
// for tests and errors.
func (j *journal) update(name, point string, change func(*record) error) error {
	return j.write(point, func(tx *bbolt.Tx) error {
		r, err := readRecord(tx, name)
		if err != nil {
			return err
		}
		if r == nil {
			return drover.Errorf(drover.Refused, point, "move %s is not reserved on this host", name)
		}
		if err := change(r); err != nil {
			return err
		}
		return writeRecord(tx, r)
	})
}

func writeRecord(tx *bbolt.Tx, r *record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.Bucket(movesBucket).Put([]byte(r.Move), raw)
}

// stone is what is kept of a released move, so that a late message is refused.
type stone struct {
	Generation int64     `json:"generation"`
	VMUUID     string    `json:"vm_uuid"`
	Released   time.Time `json:"released"`
	// Accepted says that the VM came here by this move, Moved that it went.
	Accepted bool `json:"accepted,omitempty"`
	Moved    bool `json:"moved,omitempty"`
}

func readStone(tx *bbolt.Tx, name string) (*stone, error) {
	raw := tx.Bucket(stonesBucket).Get([]byte(name))
	if raw == nil {
		return nil, nil
	}
	s := new(stone)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, drover.Errorf(drover.Corrupt, "journal", "released move %s: %w", name, err)
	}
	return s, nil
}

func (j *journal) stone(name string) (*stone, error) {
	var s *stone
	err := j.db.View(func(tx *bbolt.Tx) error {
		var err error
		s, err = readStone(tx, name)
		return err
	})
	return s, journalError(err)
}

// release forgets a move and its jobs, and leaves a stone.
func (j *journal) release(name string, s stone) error {
	return j.write("release", func(tx *bbolt.Tx) error {
		if err := tx.Bucket(movesBucket).Delete([]byte(name)); err != nil {
			return err
		}
		if err := deletePrefix(tx.Bucket(jobsBucket), name+"\x00"); err != nil {
			return err
		}
		if err := tx.Bucket(edgeBucket).Delete(edgeKey(name)); err != nil {
			return err
		}
		old, err := readStone(tx, name)
		if err != nil {
			return err
		}
		if old != nil {
			s.Generation = max(s.Generation, old.Generation)
			s.Accepted, s.Moved = s.Accepted || old.Accepted, s.Moved || old.Moved
		}
		raw, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := tx.Bucket(stonesBucket).Put([]byte(name), raw); err != nil {
			return err
		}
		return dropOldest(tx.Bucket(stonesBucket))
	})
}

func dropOldest(b *bbolt.Bucket) error {
	for b.Inspect().KeyN > maxStones {
		var oldest []byte
		var when time.Time
		err := b.ForEach(func(k, v []byte) error {
			var s stone
			if err := json.Unmarshal(v, &s); err != nil {
				return err
			}
			if oldest == nil || s.Released.Before(when) {
				oldest, when = append([]byte(nil), k...), s.Released
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := b.Delete(oldest); err != nil {
			return err
		}
	}
	return nil
}

func deletePrefix(b *bbolt.Bucket, prefix string) error {
	c := b.Cursor()
	for k, _ := c.Seek([]byte(prefix)); k != nil && len(k) >= len(prefix) && string(k[:len(prefix)]) == prefix; k, _ = c.Seek([]byte(prefix)) {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// jobKey names a job. Kind is part of it, so that a step's action and the one
// that takes it back are two.
type jobKey struct{ move, step, kind string }

func (k jobKey) String() string { return k.move + "/" + k.step + "/" + k.kind }

func (k jobKey) bytes() []byte { return []byte(k.move + "\x00" + k.step + "\x00" + k.kind) }

// jobRecord is a job's last state. One that is running in the journal but not
// in the process was interrupted.
type jobRecord struct {
	State      string    `json:"state"` // jobRunning, jobDone, jobFailed
	Generation int64     `json:"generation"`
	Began      time.Time `json:"began"`
	Ended      time.Time `json:"ended,omitzero"`
	Result     []byte    `json:"result,omitempty"` // RunResult
	Fault      string    `json:"fault,omitempty"`
}

const (
	jobRunning = "running"
	jobDone    = "done"
	jobFailed  = "failed"
)

func (j *journal) job(k jobKey) (*jobRecord, error) {
	var r *jobRecord
	err := j.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(jobsBucket).Get(k.bytes())
		if raw == nil {
			return nil
		}
		r = new(jobRecord)
		if err := json.Unmarshal(raw, r); err != nil {
			return drover.Errorf(drover.Corrupt, "journal", "job %s: %w", k, err)
		}
		return nil
	})
	return r, journalError(err)
}

// putJob writes a job's state; forget are kinds whose kept results of the same
// move no longer hold. Of a job that has ended without its move being known
// here (any more) nothing is kept.
func (j *journal) putJob(k jobKey, r jobRecord, forget ...string) error {
	return j.write("job "+r.State+" "+k.kind, func(tx *bbolt.Tx) error {
		b := tx.Bucket(jobsBucket)
		if len(forget) > 0 {
			if err := dropKinds(b, k.move, forget); err != nil {
				return err
			}
		}
		if r.State != jobRunning && tx.Bucket(movesBucket).Get([]byte(k.move)) == nil {
			return b.Delete(k.bytes())
		}
		raw, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return b.Put(k.bytes(), raw)
	})
}

func dropKinds(b *bbolt.Bucket, move string, kinds []string) error {
	var drop [][]byte
	c := b.Cursor()
	prefix := move + "\x00"
	for k, _ := c.Seek([]byte(prefix)); k != nil && len(k) >= len(prefix) && string(k[:len(prefix)]) == prefix; k, _ = c.Next() {
		for _, kind := range kinds {
			tail := "\x00" + kind
			if len(k) > len(tail) && string(k[len(k)-len(tail):]) == tail {
				drop = append(drop, append([]byte(nil), k...))
			}
		}
	}
	for _, k := range drop {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// newToken returns random bytes that name a session.
func newToken(random func([]byte)) []byte {
	t := make([]byte, tokenBytes)
	random(t)
	return t
}

// tokenBytes: 256 random bits cannot be guessed.
const tokenBytes = 32

// attemptID tells the attempts of one move apart in logs.
func attemptID(token []byte) string {
	if len(token) < 8 {
		return "none"
	}
	return fmt.Sprintf("%016x", binary.BigEndian.Uint64(token))
}
