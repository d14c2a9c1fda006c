package chunk

import (
	"sync"
	"testing"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"
)

func TestFingerprint(t *testing.T) {
	block := make([]byte, BlockBytes)
	if fp := FingerprintOf(block); fp != 0 {
		t.Errorf("a block of zeros has fingerprint %x", fp)
	}
	for _, at := range []int{0, 7, 8, 2047, BlockBytes - 1} {
		clear(block)
		block[at] = 1
		if got, want := FingerprintOf(block), Fingerprint(xxh3.Hash(block)); got != want {
			t.Errorf("one bit in byte %d: fingerprint %x, want %x", at, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { FingerprintOf(block) }); n != 0 {
		t.Errorf("FingerprintOf allocates %v times", n)
	}
}

// TestIndexIsAMap runs random sequences against a map. Keys are few and
// crowded at both ends of the shards, so that entries are pushed on, into the
// spill, too.
func TestIndexIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := NewIndex(1 << 20)
		model := map[Fingerprint]Ref{}
		key := rapid.Custom(func(t *rapid.T) Fingerprint {
			return Fingerprint(rapid.Uint64Range(0, 3).Draw(t, "shard")<<(64-indexShardBits) +
				rapid.SampledFrom([]uint64{0, 1<<(64-indexShardBits) - 61}).Draw(t, "place") +
				rapid.Uint64Range(0, 60).Draw(t, "key"))
		})
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			fp := key.Draw(t, "fingerprint")
			r := Ref{rapid.Uint16().Draw(t, "source"), rapid.Uint32().Draw(t, "block")}
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				x.Add(fp, r)
				if fp != 0 {
					model[fp] = r
				}
			case 2:
				x.put(fp, r, false)
				if _, ok := model[fp]; !ok && fp != 0 {
					model[fp] = r
				}
			case 3:
				if old, ok := model[fp]; ok {
					x.Forget(fp, old)
					delete(model, fp)
				} else {
					x.Forget(fp, r)
				}
			case 4:
				if old, ok := model[fp]; ok && old != r {
					x.Forget(fp, r) // of another place: stays
				}
			}
			if x.Len() != int64(len(model)) {
				t.Fatalf("%d entries, want %d", x.Len(), len(model))
			}
		}
		for s := range uint64(4) {
			for _, place := range []uint64{0, 1<<(64-indexShardBits) - 61} {
				for k := range uint64(61) {
					fp := Fingerprint(s<<(64-indexShardBits) + place + k)
					got, ok := x.Lookup(fp)
					want, known := model[fp]
					if ok != known || got != want {
						t.Fatalf("%x: got %v %v, want %v %v", fp, got, ok, want, known)
					}
				}
			}
		}
	})
}

func TestIndexLimit(t *testing.T) {
	const limit = 2 << 20
	x, r := NewIndex(limit), seeded(1)
	var keys []Fingerprint
	for i := range 300_000 {
		fp := Fingerprint(r.Uint64())
		x.Add(fp, Ref{Block: uint32(i)})
		keys = append(keys, fp)
	}
	if x.Bytes() > limit {
		t.Errorf("%d bytes, limit %d", x.Bytes(), limit)
	}
	if x.Dropped() == 0 || x.Len()+x.Dropped() != int64(len(keys)) {
		t.Errorf("%d stored, %d dropped, of %d", x.Len(), x.Dropped(), len(keys))
	}
	if x.Len()*slotBytes*10 < limit*7 { // the load, and a step of growth
		t.Errorf("a full index of %d bytes holds only %d entries", limit, x.Len())
	}
	var found int64
	for i, fp := range keys {
		if got, ok := x.Lookup(fp); ok {
			found++
			if got.Block != uint32(i) {
				t.Fatalf("key %d points to %d", i, got.Block)
			}
		}
	}
	if found != x.Len() {
		t.Errorf("found %d of %d", found, x.Len())
	}
	x.Add(keys[0], Ref{Source: 7}) // what is there is replaced even when it is full
	if got, ok := x.Lookup(keys[0]); !ok || got.Source != 7 {
		t.Errorf("got %v %v after replacing", got, ok)
	}
}

func TestIndexMemoryPerEntry(t *testing.T) {
	x, r := NewIndex(1<<30), seeded(2)
	for n := range 1 << 20 {
		x.Add(Fingerprint(r.Uint64()), Ref{})
		// Small ones pay for 64 first tables.
		if n > 1<<16 && n%10_000 == 0 && x.Bytes() > 20*x.Len() {
			t.Fatalf("%d bytes for %d entries", x.Bytes(), x.Len())
		}
	}
}

func TestIndexConcurrent(t *testing.T) {
	x := NewIndex(1 << 20)
	key := func(i int) Fingerprint { return Fingerprint(uint64(i+1) * 0x9e3779b97f4a7c15) }
	for i := range 1000 {
		x.Add(key(i), Ref{Source: uint16(i), Block: uint32(i)})
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				if w%2 == 0 {
					x.Add(key(1000+i), Ref{Source: uint16(1000 + i), Block: uint32(1000 + i)})
					continue
				}
				k := i % 1000
				if got, ok := x.Lookup(key(k)); !ok || got != (Ref{uint16(k), uint32(k)}) {
					t.Errorf("key %d: %v %v while others add", k, got, ok)
					return
				}
			}
		})
	}
	wg.Wait()
	if x.Len() != 6000 {
		t.Errorf("%d entries, want 6000", x.Len())
	}
}
