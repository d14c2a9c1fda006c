package wan

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
)

// TestHeaderBytes holds the wire format of version 1: agents of different
// versions have to understand each other.
func TestHeaderBytes(t *testing.T) {
	h := Header{Token: token(0xab)[:16], Channel: Copy, Name: "vda"}
	const want = "4452574e" + "01" + "03" + "10" + "03" + "00000000" + "abababababababababababababababab" + "766461"
	if got := hex.EncodeToString(h.append(nil)); got != want {
		t.Errorf("encoded as\n%s, want\n%s", got, want)
	}
}

func TestHeaderRefused(t *testing.T) {
	good := Header{Token: token(1), Channel: Memory}.append(nil)
	change := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[at] = b
		return c
	}
	for name, raw := range map[string][]byte{
		"empty": nil, "short": good[:headerSize-1], "cut token": good[:len(good)-1],
		"magic": change(0, 'X'), "version": change(4, 2), "no channel": change(5, 0), "other channel": change(5, 4),
		"short token": change(6, MinToken-1), "long token": change(6, MaxToken+1), "long name": change(7, maxName+1),
		"reserved": change(8, 1), "name on memory": append(change(7, 3), "vda"...),
		"no name":  change(5, byte(Copy)),
		"bad name": append(func() []byte { c := change(5, byte(Copy)); c[7] = 3; return c }(), "a/b"...),
	} {
		if h, err := readHeader(bytes.NewReader(raw)); drover.KindOf(err) != drover.Invalid || err == nil {
			t.Errorf("%s: read as %+v, %v", name, h, err)
		}
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(Header{Token: token(1), Channel: Memory}.append(nil))
	f.Add(Header{Token: token(2)[:16], Channel: Copy, Name: "vda"}.append(nil))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := bytes.NewReader(raw)
		h, err := readHeader(r)
		if err != nil {
			return
		}
		used := raw[:len(raw)-r.Len()]
		if again := h.append(nil); !bytes.Equal(again, used) {
			t.Errorf("%x was read as %+v, which is written as %x", used, h, again)
		}
	})
}

func FuzzFrame(f *testing.F) {
	for _, c := range []copyFrame{
		{kind: frameBegin, length: 1 << 30},
		{kind: frameData, off: 4096, length: 512, checksum: 7},
		{kind: frameZero, off: 1 << 20, length: 1 << 40},
		{kind: frameEnd, digest: [32]byte{1}},
		{kind: frameVerified, length: 5},
		{kind: frameDone},
		{kind: frameFailed, text: "no space"},
	} {
		f.Add(c.head())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := bytes.NewReader(raw)
		c, err := readFrame(r)
		if err != nil {
			return
		}
		if c.off < 0 || c.length < 0 || c.off+c.length < 0 || c.kind == frameData && c.length > pieceBytes {
			t.Fatalf("accepted %+v", c)
		}
		if c.kind == frameFailed {
			return // its text is made printable
		}
		used := raw[:len(raw)-r.Len()]
		if diff := cmp.Diff(used, c.head()); diff != "" {
			t.Errorf("read as %+v: %s", c, diff)
		}
	})
}
