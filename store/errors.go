package store

import (
	"cmp"

	"github.com/drover-vm/drover"
)

// The errors that all stores give alike.

// NoMove says that there is no move of that name.
func NoMove(name string) error {
	return drover.Errorf(drover.NotFound, "move "+name, "there is no move of that name")
}

// Locked says that the VM of r has another unfinished move.
func Locked(r Record, other string) error {
	return drover.Errorf(drover.Refused, "move "+r.Move.VM, "the VM has the unfinished move %s: wait for its end, or cancel it", other)
}

// NameTaken says that there is a move of that name already.
func NameTaken(r Record) error {
	return drover.Errorf(drover.Exists, "create move "+r.Move.Name, "there is a move of that name")
}

// Compacted says that changes after the revision are not kept any more.
func Compacted(after int64) error {
	return drover.Errorf(drover.NotFound, "watch", "the changes after revision %d are not kept any more: list, and watch from there", after)
}

// Oldest orders records by their creation, then by name.
func Oldest(a, b Record) int {
	return cmp.Or(a.Move.Created.Compare(b.Move.Created), cmp.Compare(a.Move.Name, b.Move.Name))
}
