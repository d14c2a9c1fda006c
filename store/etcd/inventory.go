package etcd

import (
	"context"
	"iter"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

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
	s     *Store
	sort  string
	keyOf func(T) string
}

func (c collection[T]) prefix() string { return c.s.prefix + c.sort }

func (c collection[T]) Put(ctx context.Context, v T) error {
	key, doc, err := store.EncodeItem(c.sort, c.keyOf, v)
	if err != nil {
		return err
	}
	full := c.prefix() + key
	// Most observations say what is known already; those cost no write.
	_, err = c.s.client.Txn(ctx).If(holds(full, string(doc))).Else(clientv3.OpPut(full, string(doc))).Commit()
	if err != nil {
		return writeError(ctx, "keep "+c.sort+key, err)
	}
	return nil
}

func (c collection[T]) Get(ctx context.Context, key string) (v T, err error) {
	res, err := c.s.client.Get(ctx, c.prefix()+key)
	if err != nil {
		return v, readError(ctx, "get "+c.sort+key, err)
	}
	if len(res.Kvs) == 0 {
		return v, store.NoItem(c.sort, key)
	}
	return store.DecodeItem[T](c.sort, res.Kvs[0].Value)
}

func (c collection[T]) List(ctx context.Context) (all []T, revision int64, err error) {
	revision, err = c.s.scan(ctx, c.prefix(), func(kv *mvccpb.KeyValue) error {
		v, err := store.DecodeItem[T](c.sort, kv.Value)
		all = append(all, v)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return all, revision, nil
}

func (c collection[T]) Delete(ctx context.Context, key string) error {
	if _, err := c.s.client.Delete(ctx, c.prefix()+key); err != nil {
		return writeError(ctx, "forget "+c.sort+key, err)
	}
	return nil
}

func (c collection[T]) Watch(ctx context.Context, after int64) iter.Seq2[store.Change[T], error] {
	return func(yield func(store.Change[T], error) bool) {
		for ev, err := range c.s.events(ctx, c.prefix(), after) {
			var change store.Change[T]
			if err == nil {
				change, err = c.change(ev)
			}
			if !yield(change, err) || err != nil {
				return
			}
		}
	}
}

func (c collection[T]) change(ev *clientv3.Event) (store.Change[T], error) {
	change := store.Change[T]{Key: strings.TrimPrefix(string(ev.Kv.Key), c.prefix()), Revision: ev.Kv.ModRevision}
	if ev.Type == clientv3.EventTypeDelete {
		return change, nil
	}
	v, err := store.DecodeItem[T](c.sort, ev.Kv.Value)
	if err != nil {
		return store.Change[T]{}, err
	}
	change.Value = &v
	return change, nil
}
