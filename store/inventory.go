package store

import (
	"context"
	"encoding/json"
	"iter"

	"github.com/drover-vm/drover"
)

// Document is an item of an inventory as it is kept.
type Document struct {
	Key string
	// Value is JSON; nil when the key was deleted.
	Value []byte
	// Revision is that of the change; it is told by WatchDocuments only.
	Revision int64
}

// Documents is what a technology does for an Inventory: it keeps documents by
// their sort ("host") and key, and does not look into them. NewInventory makes the
// Inventory of it. The rules of Collection hold for its methods.
type Documents interface {
	PutDocument(ctx context.Context, sort, key string, doc []byte) error
	// GetDocument returns nil when nothing is kept under the key.
	GetDocument(ctx context.Context, sort, key string) ([]byte, error)
	// ListDocuments returns all of one sort by ascending key, as they were at the
	// revision.
	ListDocuments(ctx context.Context, sort string) (all []Document, revision int64, err error)
	DeleteDocument(ctx context.Context, sort, key string) error
	WatchDocuments(ctx context.Context, sort string, after int64) iter.Seq2[Document, error]
}

// NewInventory returns the inventory whose documents d keeps.
func NewInventory(d Documents) Inventory { return inventory{d} }

type inventory struct{ d Documents }

func (i inventory) Sites() Collection[drover.Site] {
	return collection[drover.Site]{i.d, "site", SiteKey}
}

func (i inventory) Hosts() Collection[drover.Host] {
	return collection[drover.Host]{i.d, "host", HostKey}
}

func (i inventory) Links() Collection[drover.Link] {
	return collection[drover.Link]{i.d, "link", LinkKey}
}

func (i inventory) VMs() Collection[drover.VM] {
	return collection[drover.VM]{i.d, "vm", VMKey}
}

func (i inventory) Requirements() Collection[drover.KeptRequirements] {
	return collection[drover.KeptRequirements]{i.d, "requirements", RequirementsKey}
}

func (i inventory) Protections() Collection[Protection] {
	return collection[Protection]{i.d, "protection", ProtectionKey}
}

func (i inventory) Signals() Collection[drover.Signals] {
	return collection[drover.Signals]{i.d, "signals", SignalsKey}
}

func (i inventory) HostSignals() Collection[drover.HostSignals] {
	return collection[drover.HostSignals]{i.d, "host-signals", HostSignalsKey}
}

func (i inventory) LinkSignals() Collection[drover.LinkSignals] {
	return collection[drover.LinkSignals]{i.d, "link-signals", LinkSignalsKey}
}

// collection is the documents of one sort.
type collection[T any] struct {
	d     Documents
	sort  string
	keyOf func(T) string
}

func (c collection[T]) Put(ctx context.Context, v T) error {
	op := "keep " + c.sort
	key := c.keyOf(v)
	if key == "" {
		return drover.Errorf(drover.Invalid, op, "it has no name")
	}
	doc, err := json.Marshal(v)
	if err != nil {
		return drover.E(drover.Invalid, op+" "+key, err)
	}
	return c.d.PutDocument(ctx, c.sort, key, doc)
}

func (c collection[T]) Get(ctx context.Context, key string) (v T, err error) {
	doc, err := c.d.GetDocument(ctx, c.sort, key)
	switch {
	case err != nil:
		return v, err
	case doc == nil:
		return v, drover.Errorf(drover.NotFound, c.sort+" "+key, "there is no %s of that name", c.sort)
	}
	return c.decode(doc)
}

// decode reads an item; one that cannot be read gives drover.Corrupt.
func (c collection[T]) decode(doc []byte) (v T, err error) {
	if err := json.Unmarshal(doc, &v); err != nil {
		return v, drover.E(drover.Corrupt, c.sort, err)
	}
	return v, nil
}

func (c collection[T]) List(ctx context.Context) ([]T, int64, error) {
	docs, revision, err := c.d.ListDocuments(ctx, c.sort)
	if err != nil {
		return nil, 0, err
	}
	var all []T
	for _, doc := range docs {
		v, err := c.decode(doc.Value)
		if err != nil {
			return nil, 0, err
		}
		all = append(all, v)
	}
	return all, revision, nil
}

func (c collection[T]) Delete(ctx context.Context, key string) error {
	return c.d.DeleteDocument(ctx, c.sort, key)
}

func (c collection[T]) Watch(ctx context.Context, after int64) iter.Seq2[Change[T], error] {
	return func(yield func(Change[T], error) bool) {
		for doc, err := range c.d.WatchDocuments(ctx, c.sort, after) {
			change := Change[T]{Key: doc.Key, Revision: doc.Revision}
			if err == nil && doc.Value != nil {
				var v T
				if v, err = c.decode(doc.Value); err == nil {
					change.Value = &v
				}
			}
			if err != nil {
				yield(Change[T]{}, err)
				return
			}
			if !yield(change, nil) {
				return
			}
		}
	}
}
