package page_test

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/drover-vm/drover/wan/page"
)

var update = flag.Bool("update", false, "rewrite the listings of the captured streams")

// TestGolden reads what QEMU really wrote (testdata/capture) and compares what a
// Reader finds with the listing kept beside it. Streams of earlier versions
// have to stay readable.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.stream.zst")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captured streams in testdata: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".stream.zst")
		t.Run(name, func(t *testing.T) {
			stream := unpack(t, file)
			got := list(t, stream)
			golden := strings.TrimSuffix(file, ".stream.zst") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
				t.Errorf("%s (-want +got):\n%s", golden, d)
			}
		})
	}
}

func unpack(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	stream, err := dec.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// listing writes a line for each run of records that are alike.
type listing struct {
	out  strings.Builder
	what string
	// of the run so far
	records int
	end     uint64 // address behind it
	bytes   int
	sum     hash.Hash
}

func (l *listing) add(phase page.Phase, rec page.Record, blocks []page.Block) {
	what := fmt.Sprintf("%-7s %-5s", phase, rec.Kind)
	if rec.Kind != page.Bytes {
		what += fmt.Sprintf(" %s named=%t fill=%d", blocks[rec.Block].Name, !rec.Continue, rec.Fill)
	}
	if what != l.what || rec.Addr != l.end {
		l.flush()
		l.what, l.sum = what, sha256.New()
		l.out.WriteString(what)
		if rec.Kind != page.Bytes {
			fmt.Fprintf(&l.out, " at %#x", rec.Addr)
		}
	}
	l.records++
	l.bytes += len(rec.Data)
	l.sum.Write(rec.Data)
	if rec.Kind != page.Bytes {
		l.end = rec.Addr + page.PageBytes
	}
}

// flush ends a run. In how many records bytes come is no matter.
func (l *listing) flush() {
	switch {
	case l.records == 0:
	case l.end == 0:
		fmt.Fprintf(&l.out, " × %d, %x\n", l.bytes, l.sum.Sum(nil)[:4])
	default:
		fmt.Fprintf(&l.out, " × %d, %x\n", l.records, l.sum.Sum(nil)[:4])
	}
	l.records, l.bytes, l.end = 0, 0, 0
}

// list is a stream's listing: its blocks, and what its records hold.
func list(t *testing.T, stream []byte) string {
	t.Helper()
	var l listing
	r := page.NewReader(bytes.NewReader(stream))
	whole := make([]byte, 0, len(stream))
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		whole = append(page.AppendHeader(whole, rec, r.Blocks()), rec.Data...)
		l.add(r.Phase(), rec, r.Blocks())
	}
	l.flush()
	if !bytes.Equal(whole, stream) {
		t.Fatalf("%d bytes came out as others (%d)", len(stream), len(whole))
	}
	var blocks strings.Builder
	for i, b := range r.Blocks() {
		fmt.Fprintf(&blocks, "block %d: %s, %d bytes\n", i, b.Name, b.Bytes)
	}
	return blocks.String() + l.out.String()
}
