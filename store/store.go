// Package store holds the contracts behind which a server keeps what must
// outlive it: Journal (moves) and Inventory (what was last observed). The
// technologies are siblings that do not know each other: etcd for servers,
// memory for tests and the simulator; storetest is the suite that both pass.
//
// A store keeps and fences; it decides nothing. What a move's private state
// means is package executor's, what a journal entry leads to package saga's.
//
// Errors are drover.Error. Besides those a method names, every method gives
// drover.Unavailable when the store does not answer, drover.Unknown when a
// write may or may not have been made, and drover.Canceled when ctx ended.
package store

import (
	"context"
	"encoding/json"
	"iter"

	"github.com/drover-vm/drover"
)

// Record is a move as it is kept: what an operator sees of it, and the
// executor's own state beside it. See EncodeRecord for the document.
type Record struct {
	// Move without Progress, which changes too often to be kept.
	Move drover.Move
	// RequestID is the caller's name for the request that made the move; the
	// same request made twice makes one move. Empty: never the same.
	RequestID string
	// State is the executor's state, a JSON document of its own.
	State []byte
	// Revision is the store's; it grows with every change of any record. It
	// is not part of the document.
	Revision int64
}

// Journal keeps moves. Methods may be called concurrently.
//
// A VM, known by its UUID, has at most one unfinished move: one whose state is
// not final.
type Journal interface {
	// Create keeps a new move and locks its VM until the move is final. It
	// returns the record with its revision, and true.
	//
	// When a move of the same RequestID is kept already, that one is returned
	// as it is now, and false; nothing is changed. A VM that has another
	// unfinished move gives drover.Refused, naming that move; a name that is
	// taken drover.Exists; a record that is final or has no VM UUID
	// drover.Invalid.
	Create(ctx context.Context, r Record) (kept Record, created bool, err error)
	// Get returns one; a name that is not kept gives drover.NotFound.
	Get(ctx context.Context, name string) (Record, error)
	// List returns the moves that the filter lets through, oldest first, and
	// the revision of the whole, from which a Watch goes on without a gap.
	List(ctx context.Context, f Filter) ([]Record, int64, error)
	// Update replaces a record whose kept revision is still r.Revision, and
	// returns it with its new one. A final state unlocks the VM.
	//
	// Repeating an Update that was made already, with no other between, is
	// fine. drover.Refused: a newer generation has taken the move up, or
	// the kept revision is another one, or the kept move is final.
	// drover.Invalid: VM or request differ from those kept.
	// drover.NotFound: there is no such move.
	Update(ctx context.Context, r Record) (Record, error)
	// Watch yields every change after the revision, in order, until the loop
	// breaks or ctx ends, which is no error. On any other error it yields that
	// and ends; drover.NotFound says that the revision is not kept any more:
	// List, and watch from there.
	Watch(ctx context.Context, after int64) iter.Seq2[Record, error]
}

// Filter lets moves through. The zero Filter lets all through.
type Filter struct {
	// Unfinished lets through only moves whose state is not final.
	Unfinished bool
	// VMUUID, when set, lets through only moves of that VM.
	VMUUID string
}

// Match reports whether the filter lets the move through.
func (f Filter) Match(m drover.Move) bool {
	return (!f.Unfinished || !m.State.Final()) && (f.VMUUID == "" || f.VMUUID == m.VMUUID)
}

// Inventory keeps what was last observed, so that a server that starts again
// knows it before the first agent answers.
type Inventory interface {
	Sites() Collection[drover.Site]
	Hosts() Collection[drover.Host]
	Links() Collection[drover.Link]
	// VMs keeps one observation per host and VM (see VMKey): during a move
	// both hosts may see the same VM.
	VMs() Collection[drover.VM]
	// Requirements keeps what operators have said that VMs need: the one sort
	// here that nobody observes, so that it is not to be lost.
	Requirements() Collection[drover.KeptRequirements]
	// Protections keeps what replicas are wanted, and how far each is, by the VM's
	// UUID. Only the server that leads writes them.
	Protections() Collection[Protection]
	// Signals are what was seen of VMs, hosts, and the ways between sites, by UUID,
	// name, and "from/to".
	Signals() Collection[drover.Signals]
	HostSignals() Collection[drover.HostSignals]
	LinkSignals() Collection[drover.LinkSignals]
}

// Protection is a replica that is wanted: what an operator sees of it, and the
// server's own state beside it.
type Protection struct {
	// Protection without what changes all the time: Progress, Age and Allotted.
	Protection drover.Protection `json:"protection"`
	// State is the server's state, a JSON document of its own.
	State json.RawMessage `json:"state,omitempty"`
}

// ProtectionKey returns the UUID of the VM.
func ProtectionKey(p Protection) string { return p.Protection.VMUUID }

// Collection keeps the last observation of each thing of one sort. Methods may
// be called concurrently.
type Collection[T any] interface {
	// Put keeps v under its key, in place of what was there. A value that is
	// kept already is written no second time and wakes no watcher. A value
	// with an empty key gives drover.Invalid.
	Put(ctx context.Context, v T) error
	// Get returns one; a key that is not kept gives drover.NotFound.
	Get(ctx context.Context, key string) (T, error)
	// List returns all by ascending key, and the revision for Watch.
	List(ctx context.Context) ([]T, int64, error)
	// Delete forgets one; a key that is not kept is fine.
	Delete(ctx context.Context, key string) error
	// Watch yields every change after the revision, as Journal.Watch does.
	Watch(ctx context.Context, after int64) iter.Seq2[Change[T], error]
}

// Change is one change of a collection.
type Change[T any] struct {
	Key string
	// Value is nil when the key was deleted.
	Value    *T
	Revision int64
}

// SiteKey returns the site's name.
func SiteKey(s drover.Site) string { return s.Name }

// HostKey returns the host's name.
func HostKey(h drover.Host) string { return h.Name }

// LinkKey returns the link's name.
func LinkKey(l drover.Link) string { return l.Name }

// RequirementsKey returns the VM's UUID.
func RequirementsKey(r drover.KeptRequirements) string { return r.UUID }

// SignalsKey returns the VM's UUID.
func SignalsKey(s drover.Signals) string { return s.UUID }

// HostSignalsKey returns the host's name.
func HostSignalsKey(s drover.HostSignals) string { return s.Host }

// LinkSignalsKey returns "from/to", or nothing when one of them is missing.
func LinkSignalsKey(s drover.LinkSignals) string {
	if s.From == "" || s.To == "" {
		return ""
	}
	return s.From + "/" + s.To
}

// VMKey returns "host/name", or nothing when one of them is missing.
func VMKey(v drover.VM) string {
	if v.Host == "" || v.Name == "" {
		return ""
	}
	return v.Host + "/" + v.Name
}
