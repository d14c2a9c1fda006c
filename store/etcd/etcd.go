// Package etcd keeps moves and the inventory in etcd: one that is embedded in
// the server (Embed), or one that exists already. Both are spoken to through
// the same client, so there is one code path.
//
// Keys below the prefix:
//
//	move/NAME       the record's document (see store.EncodeRecord)
//	lock/VM-UUID    the name of the VM's unfinished move
//	request/ID      the name of the move that the request made
//	SORT/KEY        an item of the inventory (site/NAME, vm/HOST/NAME, …), JSON
//
// A revision is etcd's own. Compaction is left to etcd: watching from a
// revision that it has compacted gives drover.NotFound.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
)

// Store is a Journal and an Inventory in etcd. The client stays its caller's,
// to close.
type Store struct {
	store.Inventory

	client *clientv3.Client
	prefix string
}

var (
	_ store.Journal   = (*Store)(nil)
	_ store.Inventory = (*Store)(nil)
)

// New returns the store whose keys begin with prefix ("/drover/"). Servers that
// share one have the same prefix; a slash is added where it is missing.
func New(client *clientv3.Client, prefix string) *Store {
	if !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	s := &Store{client: client, prefix: prefix}
	s.Inventory = store.NewInventory(s)
	return s
}

func (s *Store) move(name string) string  { return s.prefix + "move/" + name }
func (s *Store) lock(uuid string) string  { return s.prefix + "lock/" + uuid }
func (s *Store) request(id string) string { return s.prefix + "request/" + id }
func absent(key string) clientv3.Cmp      { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

func holds(key, value string) clientv3.Cmp { return clientv3.Compare(clientv3.Value(key), "=", value) }

// Create implements store.Journal.
func (s *Store) Create(ctx context.Context, r store.Record) (store.Record, bool, error) {
	if err := store.CheckCreate(r); err != nil {
		return store.Record{}, false, err
	}
	doc, err := store.EncodeRecord(r)
	if err != nil {
		return store.Record{}, false, err
	}
	name := r.Move.Name
	op := "create move " + name
	move, lock := s.move(name), s.lock(r.Move.VMUUID)
	free := []clientv3.Cmp{absent(move), absent(lock)}
	put := []clientv3.Op{clientv3.OpPut(move, string(doc)), clientv3.OpPut(lock, name)}
	see := []clientv3.Op{clientv3.OpGet(lock), clientv3.OpGet(move)}
	if r.RequestID != "" {
		request := s.request(r.RequestID)
		free = append(free, absent(request))
		put = append(put, clientv3.OpPut(request, name))
		see = append(see, clientv3.OpGet(request))
	}
	res, err := s.client.Txn(ctx).If(free...).Then(put...).Else(see...).Commit()
	if err != nil {
		return store.Record{}, false, writeError(ctx, op, err)
	}
	if res.Succeeded {
		kept, err := decode([]byte(doc), res.Header.Revision)
		return kept, true, err
	}
	found := func(i int) string {
		if kvs := res.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			return string(kvs[0].Value)
		}
		return ""
	}
	if r.RequestID != "" {
		if made := found(2); made != "" {
			kept, err := s.Get(ctx, made)
			return kept, false, err
		}
	}
	if other := found(0); other != "" {
		return store.Record{}, false, store.Locked(r, other)
	}
	return store.Record{}, false, store.NameTaken(r)
}

// Get implements store.Journal.
func (s *Store) Get(ctx context.Context, name string) (store.Record, error) {
	res, err := s.client.Get(ctx, s.move(name))
	if err != nil {
		return store.Record{}, readError(ctx, "get move "+name, err)
	}
	if len(res.Kvs) == 0 {
		return store.Record{}, store.NoMove(name)
	}
	return decode(res.Kvs[0].Value, res.Kvs[0].ModRevision)
}

// List implements store.Journal.
func (s *Store) List(ctx context.Context, f store.Filter) ([]store.Record, int64, error) {
	var records []store.Record
	revision, err := s.scan(ctx, s.move(""), func(kv *mvccpb.KeyValue) error {
		r, err := decode(kv.Value, kv.ModRevision)
		if err == nil && f.Match(r.Move) {
			records = append(records, r)
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(records, store.Oldest)
	return records, revision, nil
}

// Update implements store.Journal.
func (s *Store) Update(ctx context.Context, r store.Record) (store.Record, error) {
	doc, err := store.EncodeRecord(r)
	if err != nil {
		return store.Record{}, err
	}
	op := "update move " + r.Move.Name
	kept, err := s.Get(ctx, r.Move.Name)
	if err != nil {
		return store.Record{}, err
	}
	if before, err := store.EncodeRecord(kept); err == nil && string(before) == string(doc) {
		return kept, nil // made already
	}
	if err := store.CheckUpdate(kept, r); err != nil {
		return store.Record{}, err
	}
	key := s.move(r.Move.Name)
	then := []clientv3.Op{clientv3.OpPut(key, string(doc))}
	if r.Move.State.Final() {
		then = append(then, clientv3.OpDelete(s.lock(r.Move.VMUUID)))
	}
	// The checks above were made on what was read; that it is still that is the
	// transaction's to say.
	res, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", kept.Revision)).
		Then(then...).Else(clientv3.OpGet(key)).Commit()
	switch {
	case err != nil:
		return store.Record{}, writeError(ctx, op, err)
	case res.Succeeded:
		return decode(doc, res.Header.Revision)
	}
	if kvs := res.Responses[0].GetResponseRange().GetKvs(); len(kvs) > 0 {
		if kept, err = decode(kvs[0].Value, kvs[0].ModRevision); err == nil {
			err = store.CheckUpdate(kept, r)
		}
		return store.Record{}, err
	}
	return store.Record{}, store.NoMove(r.Move.Name)
}

// Watch implements store.Journal.
func (s *Store) Watch(ctx context.Context, after int64) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		for ev, err := range s.events(ctx, s.move(""), after) {
			if err != nil {
				yield(store.Record{}, err)
				return
			}
			if ev.Type == clientv3.EventTypeDelete {
				continue // moves are not deleted by Drover
			}
			r, err := decode(ev.Kv.Value, ev.Kv.ModRevision)
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

func decode(doc []byte, revision int64) (store.Record, error) {
	r, err := store.DecodeRecord(doc)
	r.Revision = revision
	return r, err
}

// pageKeys bounds one answer of a scan: etcd builds an answer in memory, and a
// client refuses one above 2 GiB.
const pageKeys = 512

// scan calls f for every key below prefix, in order, as they were at one
// revision, and returns that.
func (s *Store) scan(ctx context.Context, prefix string, f func(*mvccpb.KeyValue) error) (int64, error) {
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	var revision int64
	for {
		res, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(pageKeys))
		if err != nil {
			return 0, readError(ctx, "list "+prefix, err)
		}
		if revision == 0 {
			revision = res.Header.Revision
		}
		for _, kv := range res.Kvs {
			if err := f(kv); err != nil {
				return 0, err
			}
		}
		if !res.More {
			return revision, nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}

// events yields what changes below prefix after the revision.
func (s *Store) events(ctx context.Context, prefix string, after int64) iter.Seq2[*clientv3.Event, error] {
	return func(yield func(*clientv3.Event, error) bool) {
		// The watch ends with the loop, also where that is left early.
		ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		defer cancel()
		for res := range s.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(after+1)) {
			if err := res.Err(); err != nil {
				if ctx.Err() != nil {
					return
				}
				if res.CompactRevision != 0 || errors.Is(err, rpctypes.ErrCompacted) {
					err = store.Compacted(after)
				} else {
					err = readError(ctx, "watch "+prefix, err)
				}
				yield(nil, err)
				return
			}
			for _, ev := range res.Events {
				if ctx.Err() != nil || !yield(ev, nil) {
					return
				}
			}
		}
		if ctx.Err() == nil {
			yield(nil, drover.E(drover.Unavailable, "watch "+prefix, errors.New("etcd has ended the watch")))
		}
	}
}

// readError gives a failed read its kind.
func readError(ctx context.Context, op string, err error) error {
	switch {
	case ctx.Err() != nil:
		return drover.E(drover.Canceled, op, err)
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrInvalidAuthToken):
		return drover.E(drover.Denied, op, err)
	default:
		return drover.E(drover.Unavailable, op, err)
	}
}

// writeError gives a failed write its kind: whether it was made is not known,
// except where etcd says that it was turned away.
func writeError(ctx context.Context, op string, err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return drover.E(drover.Exhausted, op, fmt.Errorf("etcd's quota is used up: compact, defragment and disarm its alarm: %w", err))
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return drover.E(drover.Invalid, op, err)
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrInvalidAuthToken):
		return drover.E(drover.Denied, op, err)
	case ctx.Err() != nil:
		return drover.E(drover.Unknown, op, err)
	case errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrTooManyRequests):
		return drover.E(drover.Unavailable, op, err)
	default:
		return drover.E(drover.Unknown, op, err)
	}
}
