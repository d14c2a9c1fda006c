package memory

import (
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/drover-vm/drover/store"
)

var _ store.Documents = (*Store)(nil)

// PutDocument implements store.Documents.
func (s *Store) PutDocument(ctx context.Context, sort, key string, doc []byte) error {
	return s.guard(ctx, OpPut, key, func() error {
		full := sort + "/" + key
		if e, ok := s.entries[full]; !ok || string(e.value) != string(doc) {
			s.write(logged{key: full, value: doc})
		}
		return nil
	})
}

// GetDocument implements store.Documents.
func (s *Store) GetDocument(ctx context.Context, sort, key string) (doc []byte, err error) {
	err = s.guard(ctx, OpGet, key, func() error {
		doc = s.entries[sort+"/"+key].value
		return nil
	})
	return doc, err
}

// ListDocuments implements store.Documents.
func (s *Store) ListDocuments(ctx context.Context, sort string) (all []store.Document, revision int64, err error) {
	err = s.guard(ctx, OpList, sort, func() error {
		revision = s.revision
		for full, e := range s.entries {
			if key, ok := strings.CutPrefix(full, sort+"/"); ok {
				all = append(all, store.Document{Key: key, Value: e.value})
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(all, func(a, b store.Document) int { return strings.Compare(a.Key, b.Key) })
	return all, revision, nil
}

// DeleteDocument implements store.Documents.
func (s *Store) DeleteDocument(ctx context.Context, sort, key string) error {
	return s.guard(ctx, OpDelete, key, func() error {
		full := sort + "/" + key
		if _, ok := s.entries[full]; ok {
			s.write(logged{key: full})
		}
		return nil
	})
}

// WatchDocuments implements store.Documents.
func (s *Store) WatchDocuments(ctx context.Context, sort string, after int64) iter.Seq2[store.Document, error] {
	return func(yield func(store.Document, error) bool) {
		prefix := sort + "/"
		for l, err := range s.changes(ctx, prefix, after) {
			if !yield(store.Document{Key: strings.TrimPrefix(l.key, prefix), Value: l.value, Revision: l.revision}, err) {
				return
			}
		}
	}
}
