package agent

import (
	"encoding/json"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/drover-vm/drover"
)

// lentBucket and remoteBucket hold the two ends of disks that were left behind, by
// VM and target. They outlive the move that left them.
var (
	lentBucket   = []byte("lent")
	remoteBucket = []byte("remote")
)

// lentDisk is a disk on this host that a VM at another works on.
type lentDisk struct {
	Move   string `json:"move"` // that left it
	VM     string `json:"vm"`
	VMUUID string `json:"vm_uuid"`
	Target string `json:"target"`
	// Peer is the agent that has the VM.
	Peer         string       `json:"peer"`
	Path         string       `json:"path"`
	Format       string       `json:"format"`
	VirtualBytes drover.Bytes `json:"virtual_bytes"`
	// Kept: the move is over, and the VM has gone.
	Kept bool `json:"kept,omitempty"`
}

// remoteDisk is a disk of a VM on this host that is at another.
type remoteDisk struct {
	Move   string `json:"move"`
	VM     string `json:"vm"`
	VMUUID string `json:"vm_uuid"`
	Target string `json:"target"`
	// PeerAddress and PeerHost are the agent that has the image; Path and Format
	// the image's there.
	PeerAddress  string       `json:"peer_address"`
	PeerHost     string       `json:"peer_host"`
	Path         string       `json:"path"`
	Format       string       `json:"format"`
	VirtualBytes drover.Bytes `json:"virtual_bytes"`
	// Arrived: the move is over, and the VM is here.
	Arrived bool `json:"arrived,omitempty"`
}

func (d lentDisk) key() string   { return diskKey(d.VMUUID, d.Target) }
func (d remoteDisk) key() string { return diskKey(d.VMUUID, d.Target) }

// diskKey is the name of a VM's disk, between agents too.
func diskKey(uuid, target string) string { return uuid + "/" + target }

// diskRecord is one of the two.
type diskRecord interface {
	lentDisk | remoteDisk
	key() string
}

// disksIn returns those of a bucket; of one VM, unless uuid is empty.
func disksIn[D diskRecord](j *journal, bucket []byte, uuid string) ([]D, error) {
	var all []D
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, raw []byte) error {
			if uuid != "" && !strings.HasPrefix(string(k), uuid+"/") {
				return nil
			}
			var d D
			if err := json.Unmarshal(raw, &d); err != nil {
				return drover.Errorf(drover.Corrupt, "journal", "%s disk %q: %w", bucket, k, err)
			}
			all = append(all, d)
			return nil
		})
	})
	return all, journalError(err)
}

// putDisks writes disks; one that is there and clashes with it refuses them all.
func putDisks[D diskRecord](j *journal, bucket []byte, disks []D, clash func(old D) error) error {
	return j.write(string(bucket)+" disks", func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucket)
		for _, d := range disks {
			if raw := b.Get([]byte(d.key())); raw != nil {
				var old D
				if err := json.Unmarshal(raw, &old); err != nil {
					return drover.Errorf(drover.Corrupt, "journal", "%s disk %q: %w", bucket, d.key(), err)
				}
				if err := clash(old); err != nil {
					return err
				}
			}
			raw, err := json.Marshal(d)
			if err != nil {
				return err
			}
			if err := b.Put([]byte(d.key()), raw); err != nil {
				return err
			}
		}
		return nil
	})
}

// dropDisks forgets disks; missing is fine.
func dropDisks[D diskRecord](j *journal, bucket []byte, disks []D) error {
	if len(disks) == 0 {
		return nil
	}
	return j.write(string(bucket)+" disks gone", func(tx *bbolt.Tx) error {
		for _, d := range disks {
			if err := tx.Bucket(bucket).Delete([]byte(d.key())); err != nil {
				return err
			}
		}
		return nil
	})
}
