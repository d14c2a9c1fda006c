package etcd

import (
	"context"
	"iter"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/drover-vm/drover/store"
)

var _ store.Documents = (*Store)(nil)

// document is the key of a document in etcd.
func (s *Store) document(sort, key string) string { return s.prefix + sort + "/" + key }

// PutDocument implements store.Documents.
func (s *Store) PutDocument(ctx context.Context, sort, key string, doc []byte) error {
	full := s.document(sort, key)
	// Most observations say what is known already; those cost no write.
	_, err := s.client.Txn(ctx).If(holds(full, string(doc))).Else(clientv3.OpPut(full, string(doc))).Commit()
	if err != nil {
		return writeError(ctx, "keep "+sort+" "+key, err)
	}
	return nil
}

// GetDocument implements store.Documents.
func (s *Store) GetDocument(ctx context.Context, sort, key string) ([]byte, error) {
	res, err := s.client.Get(ctx, s.document(sort, key))
	if err != nil {
		return nil, readError(ctx, "get "+sort+" "+key, err)
	}
	if len(res.Kvs) == 0 {
		return nil, nil
	}
	return res.Kvs[0].Value, nil
}

// ListDocuments implements store.Documents.
func (s *Store) ListDocuments(ctx context.Context, sort string) (all []store.Document, revision int64, err error) {
	prefix := s.document(sort, "")
	revision, err = s.scan(ctx, prefix, func(kv *mvccpb.KeyValue) error {
		all = append(all, store.Document{Key: strings.TrimPrefix(string(kv.Key), prefix), Value: kv.Value})
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return all, revision, nil
}

// DeleteDocument implements store.Documents.
func (s *Store) DeleteDocument(ctx context.Context, sort, key string) error {
	if _, err := s.client.Delete(ctx, s.document(sort, key)); err != nil {
		return writeError(ctx, "forget "+sort+" "+key, err)
	}
	return nil
}

// WatchDocuments implements store.Documents.
func (s *Store) WatchDocuments(ctx context.Context, sort string, after int64) iter.Seq2[store.Document, error] {
	return func(yield func(store.Document, error) bool) {
		prefix := s.document(sort, "")
		for ev, err := range s.events(ctx, prefix, after) {
			var doc store.Document
			if err == nil {
				doc = store.Document{Key: strings.TrimPrefix(string(ev.Kv.Key), prefix), Revision: ev.Kv.ModRevision}
				if ev.Type != clientv3.EventTypeDelete {
					doc.Value = ev.Kv.Value
				}
			}
			if !yield(doc, err) || err != nil {
				return
			}
		}
	}
}
