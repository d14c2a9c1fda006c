package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/zeebo/blake3"
)

const (
	// blockBytes is the unit of an identity; see the package comment.
	blockBytes = 1 << 20
	// identityMagic begins what an identity is the digest of.
	identityMagic = "drover content 1\n"
	// maxHashers bounds the blocks read and digested at a time, each with a
	// buffer of one block.
	maxHashers = 8
	// racyAge is how long a file must have been left alone before its
	// modification time can be trusted to tell it from a later version.
	racyAge = 2 * time.Second
)

// zeroBlock is compared with, never written.
var zeroBlock [blockBytes]byte

// Identify digests the image's guest-visible content, or remembers having
// done so. An image that is being written gives drover.Refused.
func (s *Store) Identify(ctx context.Context, path string) (driver.ContentID, error) {
	op := "identify volume " + path
	if err := s.admit(op, path); err != nil {
		return driver.ContentID{}, err
	}
	id, err := s.ids.get(ctx, func() (cacheKey, bool, error) {
		chain, err := s.chain(path)
		if err != nil {
			return cacheKey{}, false, err
		}
		key, newest := keyOf(chain)
		return key, time.Since(newest) > racyAge, nil
	}, func() (driver.ContentID, error) { return s.digest(ctx, path) })
	return id, fault(op, err)
}

// digest computes an identity.
func (s *Store) digest(ctx context.Context, path string) (driver.ContentID, error) {
	select {
	case s.identify <- struct{}{}:
		defer func() { <-s.identify }()
	case <-ctx.Done():
		return driver.ContentID{}, ctx.Err()
	}
	r, err := s.OpenRead(ctx, path, false)
	if err != nil {
		return driver.ContentID{}, err
	}
	id, err := digestContent(ctx, r)
	return id, errors.Join(err, r.Close())
}

// leaf is a block on its way through the hashers.
type leaf struct {
	index int64
	buf   []byte
	sum   [32]byte
	zero  bool
	err   error
	done  chan struct{}
}

// digestContent digests what r reads as: one goroutine finds the blocks that
// may hold data, several read and digest them, and this one joins the digests
// in order.
func digestContent(ctx context.Context, r driver.ImageReader) (driver.ContentID, error) {
	ctx, cancel := context.WithCancel(ctx)
	hashers := min(maxHashers, max(2, runtime.GOMAXPROCS(0)))
	free := make(chan *leaf, 2*hashers)
	for range cap(free) {
		free <- &leaf{buf: make([]byte, blockBytes), done: make(chan struct{}, 1)}
	}
	work := make(chan *leaf, cap(free))
	order := make(chan *leaf, cap(free))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range hashers {
		wg.Go(func() {
			for l := range work {
				l.hash(r)
				l.done <- struct{}{}
			}
		})
	}
	var listErr error // read after order is closed
	wg.Go(func() {
		defer close(order)
		defer close(work)
		listErr = eachBlock(ctx, r, func(index int64) bool {
			select {
			case l := <-free:
				l.index = index
				work <- l
				order <- l
				return true
			case <-ctx.Done():
				return false
			}
		})
	})
	root := blake3.New()
	io.WriteString(root, identityMagic)
	var num [8]byte
	binary.LittleEndian.PutUint64(num[:], uint64(r.Size()))
	root.Write(num[:])
	for l := range order {
		<-l.done
		if l.err != nil {
			return driver.ContentID{}, l.err
		}
		if !l.zero {
			binary.LittleEndian.PutUint64(num[:], uint64(l.index))
			root.Write(num[:])
			root.Write(l.sum[:])
		}
		free <- l
	}
	if err := errors.Join(listErr, ctx.Err()); err != nil {
		return driver.ContentID{}, err
	}
	var id driver.ContentID
	root.Sum(id[:0])
	return id, nil
}

// eachBlock yields the index of every block that an extent touches, once.
func eachBlock(ctx context.Context, r driver.ImageReader, yield func(index int64) bool) error {
	next := int64(0)
	return r.Extents(ctx, func(e driver.Extent) bool {
		if e.Zero {
			return true
		}
		for next = max(next, e.Offset/blockBytes); next*blockBytes < e.Offset+e.Length; next++ {
			if !yield(next) {
				return false
			}
		}
		return true
	})
}

func (l *leaf) hash(r driver.ImageReader) {
	off := l.index * blockBytes
	b := l.buf[:min(blockBytes, r.Size()-off)]
	_, l.err = r.ReadAt(b, off)
	if l.err == nil {
		if l.zero = bytes.Equal(b, zeroBlock[:len(b)]); !l.zero {
			l.sum = blake3.Sum256(b)
		}
	}
}

// keyOf is what an identity is cached under, and when the chain last changed.
func keyOf(chain []header) (cacheKey, time.Time) {
	h := blake3.New()
	newest := int64(math.MinInt64)
	for _, c := range chain {
		var num [8]byte
		for _, v := range []uint64{uint64(len(c.path)), c.inode, uint64(c.fileSize), uint64(c.mtime)} {
			binary.LittleEndian.PutUint64(num[:], v)
			h.Write(num[:])
		}
		io.WriteString(h, c.path)
		newest = max(newest, c.mtime)
	}
	var k cacheKey
	h.Sum(k[:0])
	return k, time.Unix(0, newest)
}

// errChanged is what an identity fails with when the image did not hold still.
func errChanged() error {
	return drover.Errorf(drover.Refused, "", "the image changed while it was read: nothing may write to it")
}
