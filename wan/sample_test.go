package wan

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/chunk"
)

// blocksFrom cuts content into blocks and names them.
func blocksFrom(p []byte) (blocks [][]byte, prints []uint64) {
	for ; len(p) >= chunk.BlockBytes; p = p[chunk.BlockBytes:] {
		blocks, prints = append(blocks, p[:chunk.BlockBytes]), append(prints, Fingerprint(p[:chunk.BlockBytes]))
	}
	return blocks, prints
}

func random(seed uint64, blocks int) []byte {
	r, p := rand.New(rand.NewPCG(seed, 5)), make([]byte, blocks*chunk.BlockBytes)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func TestKnown(t *testing.T) {
	s := newSite(t, newAuthority(t), "south", Config{Dir: t.TempDir()})
	shared, foreign := random(1, 100), random(2, 100)
	s.golden(t, "a", content(shared).id(), shared)
	s.golden(t, "b", content(foreign).id(), foreign)
	_, mine := blocksFrom(shared)
	_, theirs := blocksFrom(foreign)
	_, nobodys := blocksFrom(random(3, 100))
	ask := func(tenant string, prints []uint64) int {
		t.Helper()
		known, err := s.node.Known(t.Context(), Subject{VM: "vm", Tenant: tenant}, prints)
		must(t, err)
		n := 0
		for i, k := range known {
			if k {
				n++
			}
			if k && prints[i] == 0 {
				t.Error("zeros are known")
			}
		}
		return n
	}
	half := append(append([]uint64{0, 0, 0}, mine[:50]...), nobodys[:50]...)
	for _, tt := range []struct {
		tenant string
		prints []uint64
		want   int
	}{
		{"a", mine, 100},
		{"a", half, 50},
		{"a", append(mine[:60:60], mine[:60]...), 120},
		{"a", theirs, 0}, // what another tenant has is nobody's to learn
		{"b", theirs, 100},
		{"", mine, 0},
		{"c", half, 0},
	} {
		if got := ask(tt.tenant, tt.prints); got != tt.want {
			t.Errorf("tenant %q: %d of %d blocks are held, want %d", tt.tenant, got, len(tt.prints), tt.want)
		}
	}
	for _, prints := range [][]uint64{nil, mine[:MinHeld-1], make([]uint64, MaxHeld+1)} {
		_, err := s.node.Known(t.Context(), Subject{Tenant: "a"}, prints)
		wantKind(t, err, drover.Refused)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.node.Known(ctx, Subject{Tenant: "a"}, mine)
	wantKind(t, err, drover.Canceled)
	none := newSite(t, newAuthority(t), "edge", Config{})
	_, err = none.node.Known(t.Context(), Subject{}, mine)
	wantKind(t, err, drover.Refused)
}

func TestPacked(t *testing.T) {
	noise, _ := blocksFrom(random(4, 256))
	text, _ := blocksFrom(bytes.Repeat([]byte("all work and no play makes a dull page. "), 30000)[:256*chunk.BlockBytes])
	for _, tt := range []struct {
		name        string
		blocks      [][]byte
		least, most drover.Bytes
	}{
		{"noise", noise, 256 * chunk.BlockBytes, 257 * chunk.BlockBytes},
		{"text", text, 100, 32 * chunk.BlockBytes},
		{"nothing", nil, 0, 0},
	} {
		got, err := Packed(tt.blocks)
		must(t, err)
		if got < tt.least || got > tt.most {
			t.Errorf("%s: %d blocks become %s, want %s to %s", tt.name, len(tt.blocks), got, tt.least, tt.most)
		}
	}
}
