package memory

import (
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
)

// Sites implements store.Inventory.
func (s *Store) Sites() store.Collection[drover.Site] {
	return collection[drover.Site]{s, "site/", store.SiteKey}
}

// Hosts implements store.Inventory.
func (s *Store) Hosts() store.Collection[drover.Host] {
	return collection[drover.Host]{s, "host/", store.HostKey}
}

// Links implements store.Inventory.
func (s *Store) Links() store.Collection[drover.Link] {
	return collection[drover.Link]{s, "link/", store.LinkKey}
}

// VMs implements store.Inventory.
func (s *Store) VMs() store.Collection[drover.VM] {
	return collection[drover.VM]{s, "vm/", store.VMKey}
}

// Requirements implements store.Inventory.
func (s *Store) Requirements() store.Collection[drover.KeptRequirements] {
	return collection[drover.KeptRequirements]{s, "requirements/", store.RequirementsKey}
}

// Protections implements store.Inventory.
func (s *Store) Protections() store.Collection[store.Protection] {
	return collection[store.Protection]{s, "protection/", store.ProtectionKey}
}

// Signals implements store.Inventory.
func (s *Store) Signals() store.Collection[drover.Signals] {
	return collection[drover.Signals]{s, "signals/", store.SignalsKey}
}

// HostSignals implements store.Inventory.
func (s *Store) HostSignals() store.Collection[drover.HostSignals] {
	return collection[drover.HostSignals]{s, "host-signals/", store.HostSignalsKey}
}

// LinkSignals implements store.Inventory.
func (s *Store) LinkSignals() store.Collection[drover.LinkSignals] {
	return collection[drover.LinkSignals]{s, "link-signals/", store.LinkSignalsKey}
}

// collection is the keys of one sort.
type collection[T any] struct {
	s      *Store
	prefix string
	key    func(T) string
}

func (c collection[T]) Put(ctx context.Context, v T) error {
	key, b, err := store.EncodeItem(c.prefix, c.key, v)
	if err != nil {
		return err
	}
	return c.s.guard(ctx, OpPut, key, func() error {
		if e, ok := c.s.entries[c.prefix+key]; !ok || string(e.value) != string(b) {
			c.s.write(logged{key: c.prefix + key, value: b})
		}
		return nil
	})
}

func (c collection[T]) Get(ctx context.Context, key string) (v T, err error) {
	err = c.s.guard(ctx, OpGet, key, func() error {
		e, ok := c.s.entries[c.prefix+key]
		if !ok {
			return store.NoItem(c.prefix, key)
		}
		v, err = store.DecodeItem[T](c.prefix, e.value)
		return err
	})
	return v, err
}

func (c collection[T]) List(ctx context.Context) (all []T, revision int64, err error) {
	err = c.s.guard(ctx, OpList, c.prefix, func() error {
		revision = c.s.revision
		var keys []string
		for key := range c.s.entries {
			if strings.HasPrefix(key, c.prefix) {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		for _, key := range keys {
			v, err := store.DecodeItem[T](c.prefix, c.s.entries[key].value)
			if err != nil {
				return err
			}
			all = append(all, v)
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return all, revision, nil
}

func (c collection[T]) Delete(ctx context.Context, key string) error {
	return c.s.guard(ctx, OpDelete, key, func() error {
		if _, ok := c.s.entries[c.prefix+key]; ok {
			c.s.write(logged{key: c.prefix + key})
		}
		return nil
	})
}

func (c collection[T]) Watch(ctx context.Context, after int64) iter.Seq2[store.Change[T], error] {
	return func(yield func(store.Change[T], error) bool) {
		for l, err := range c.s.changes(ctx, c.prefix, after) {
			change := store.Change[T]{Key: strings.TrimPrefix(l.key, c.prefix), Revision: l.revision}
			if err == nil && l.value != nil {
				var v T
				if v, err = store.DecodeItem[T](c.prefix, l.value); err == nil {
					change.Value = &v
				}
			}
			if err != nil {
				yield(store.Change[T]{}, err)
				return
			}
			if !yield(change, nil) {
				return
			}
		}
	}
}
