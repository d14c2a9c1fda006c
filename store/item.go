package store

import (
	"cmp"
	"encoding/json"
	"strings"

	"github.com/drover-vm/drover"
)

// EncodeItem returns the key and the document of an inventory's item; prefix
// names its sort ("site/") in errors.
func EncodeItem[T any](prefix string, keyOf func(T) string, v T) (key string, doc []byte, err error) {
	op := "keep " + strings.TrimSuffix(prefix, "/")
	if key = keyOf(v); key == "" {
		return "", nil, drover.Errorf(drover.Invalid, op, "it has no name")
	}
	doc, err = json.Marshal(v)
	if err != nil {
		return "", nil, drover.E(drover.Invalid, op+" "+key, err)
	}
	return key, doc, nil
}

// DecodeItem reads an item's document; one that cannot be read gives
// drover.Corrupt.
func DecodeItem[T any](prefix string, doc []byte) (v T, err error) {
	if err := json.Unmarshal(doc, &v); err != nil {
		return v, drover.E(drover.Corrupt, strings.TrimSuffix(prefix, "/"), err)
	}
	return v, nil
}

// The errors that all stores give alike.

// NoItem says that the inventory keeps nothing under the key.
func NoItem(prefix, key string) error {
	sort := strings.TrimSuffix(prefix, "/")
	return drover.Errorf(drover.NotFound, sort+" "+key, "there is no %s of that name", sort)
}

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
