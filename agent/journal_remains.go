package agent

import (
	"encoding/json"

	"go.etcd.io/bbolt"

	"github.com/drover-vm/drover"
)

var remainsBucket = []byte("remains")

func (r remain) key() []byte { return []byte(r.Move + "\x00" + r.Target) }

// remains returns all of them.
func (j *journal) remains() ([]remain, error) {
	var all []remain
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(remainsBucket).ForEach(func(k, raw []byte) error {
			var r remain
			if err := json.Unmarshal(raw, &r); err != nil {
				return drover.Errorf(drover.Corrupt, "journal", "remain %q: %w", k, err)
			}
			all = append(all, r)
			return nil
		})
	})
	return all, journalError(err)
}

func (j *journal) putRemain(r remain) error {
	return j.write("remain "+r.State, func(tx *bbolt.Tx) error { return putRemain(tx, r) })
}

func putRemain(tx *bbolt.Tx, r remain) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.Bucket(remainsBucket).Put(r.key(), raw)
}

// changeRemain changes one that is there; one that is not stays away.
func (j *journal) changeRemain(r remain, change func(*remain)) error {
	return j.write("remain changed", func(tx *bbolt.Tx) error {
		raw := tx.Bucket(remainsBucket).Get(r.key())
		if raw == nil {
			return nil
		}
		var old remain
		if err := json.Unmarshal(raw, &old); err != nil {
			return drover.Errorf(drover.Corrupt, "journal", "remain %q: %w", r.key(), err)
		}
		change(&old)
		return putRemain(tx, old)
	})
}

func (j *journal) deleteRemain(r remain) error {
	return j.write("remain gone", func(tx *bbolt.Tx) error { return tx.Bucket(remainsBucket).Delete(r.key()) })
}
