package disk

import (
	"testing"

	"github.com/drover-vm/drover/wan/chunk"
)

// BenchmarkPath writes 64 MiB through both ends, NBD servers and clients
// included, with a channel in memory: what the agents themselves cost.
func BenchmarkPath(b *testing.B) {
	const size = 64 << 20
	random := randomBytes(1, size)
	text := make([]byte, size)
	for i := range text {
		text[i] = "The quick brown fox, and not a few dogs. "[i%41] ^ byte(i>>13)&3 ^ random[i]&1
	}
	gold := &golden{content: random}
	for _, c := range []struct {
		name    string
		content []byte
		known   bool
	}{{"zeros", make([]byte, size), false}, {"text", text, false}, {"random", random, false}, {"golden", random, true}} {
		b.Run(c.name, func(b *testing.B) {
			p := newPath(b, pathOptions{dial: dialImages(b, map[string]*image{"d": {disk: make([]byte, size)}}), resolver: gold})
			if c.known {
				for k := range size / blockBytes {
					p.known.Index.Add(chunk.FingerprintOf(random[k*blockBytes:][:blockBytes]), chunk.Ref{Source: 3, Block: uint32(k)})
				}
			}
			client := p.client("d")
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.WriteAt(c.content, 0); err != nil {
					b.Fatal(err)
				}
				if err := client.Flush(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
