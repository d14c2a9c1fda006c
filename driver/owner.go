package driver

import (
	"fmt"
	"strings"

	"github.com/drover-vm/drover"
)

// Owner says for whom something was made in a network, a name server or a load
// balancer: "vm/UUID" for what stands as long as a VM needs it, "move/NAME" for
// what ends with a move. Every change that a driver makes carries its owner, in
// whatever way the technology has for a mark, so that what was left behind is
// found after a crash, and nothing that Drover did not make is ever touched.
type Owner string

// Kinds of owners.
const (
	vmOwner   = "vm"
	moveOwner = "move"
)

// VMOwner is the owner of what stands as long as the VM needs it.
func VMOwner(uuid string) Owner { return Owner(vmOwner + "/" + uuid) }

// MoveOwner is the owner of what ends with the move.
func MoveOwner(move string) Owner { return Owner(moveOwner + "/" + move) }

// VM returns the UUID of the VM that is the owner, and whether one is.
func (o Owner) VM() (uuid string, ok bool) { return o.of(vmOwner) }

// Move returns the name of the move that is the owner, and whether one is.
func (o Owner) Move() (name string, ok bool) { return o.of(moveOwner) }

func (o Owner) of(kind string) (string, bool) {
	k, name, ok := strings.Cut(string(o), "/")
	if !ok || k != kind {
		return "", false
	}
	return name, true
}

// Validate reports what is wrong with an owner; the kind is drover.Invalid.
func (o Owner) Validate() error {
	kind, name, ok := strings.Cut(string(o), "/")
	if !ok || kind != vmOwner && kind != moveOwner {
		return drover.E(drover.Invalid, "owner", fmt.Errorf("%q: want vm/UUID or move/NAME", string(o)))
	}
	return drover.CheckName("owner", name)
}
