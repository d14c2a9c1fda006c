package frame

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
)

var update = flag.Bool("update", false, "write testdata anew: only for a new version, under a new name")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func token() []byte { return []byte("0123456789abcdefghijklmn") }

func hello() Hello {
	return Hello{
		Lowest: 1, Highest: 1, Features: 0, Number: 3, Bundle: BundleID{0: 0xb1, 15: 0x0d},
		Windows: Windows{16 << 20, 48 << 20}, Token: token(),
	}
}

// capture is a connection's bytes, one frame of each kind and all fragments of
// one message.
func capture() []byte {
	h := hello()
	b := h.Append(nil)
	a := Answer{Status: Accepted, Version: 1, Lowest: 1, Highest: 1, Windows: Windows{16 << 20, 48 << 20}}
	b = a.Append(b)
	refused := Answer{Status: Refused, Lowest: 1, Highest: 1, Text: "no such session"}
	b = refused.Append(b)
	message := make([]byte, 2*FragmentBytes+77)
	for i := range message {
		message[i] = byte(i * i >> 7)
	}
	add := func(h Header, payload []byte) { b = h.Append(b, payload) }
	add(Header{Kind: Open, Class: 3, Channel: 1}, []byte("memory"))
	for i := range Fragments(len(message)) {
		from, to := Fragment(len(message), i)
		add(Header{Kind: Data, Class: 3, Code: 9, Fragment: uint8(i), Channel: 1, Sequence: 1, Message: uint32(len(message))}, message[from:to])
	}
	add(Header{Kind: Data, Class: 3, Channel: 1, Sequence: 2}, nil)
	add(Header{Kind: CloseSend, Class: 3, Channel: 1, Sequence: 3}, nil)
	add(Header{Kind: Reset, Class: 4, Channel: 2}, []byte("closed"))
	add(Header{Kind: Ack}, AppendAck(nil, []Count{{3, 6}, {2, 1 << 40}}, []Count{{1, 65789}}))
	add(Header{Kind: Ping, Sequence: 123456789}, nil)
	add(Header{Kind: Pong, Sequence: 123456789}, nil)
	add(Header{Kind: Bye, Code: Clean}, nil)
	add(Header{Kind: Bye, Code: Abort}, []byte("the move was undone"))
	return b
}

// describe decodes a capture into text.
func describe(r io.Reader) (string, error) {
	var out strings.Builder
	h, err := ReadHello(r)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&out, "hello versions %d-%d features %#x number %d bundle %x windows %d %d token %q\n",
		h.Lowest, h.Highest, h.Features, h.Number, h.Bundle, h.Windows.Channel, h.Windows.Bundle, h.Token)
	for range 2 {
		a, err := ReadAnswer(r)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "answer status %d version %d of %d-%d features %#x windows %d %d text %q\n",
			a.Status, a.Version, a.Lowest, a.Highest, a.Features, a.Windows.Channel, a.Windows.Bundle, a.Text)
	}
	for {
		h, payload, err := read(r)
		if errors.Is(err, io.EOF) {
			return out.String(), nil
		}
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "%s class %d code %d fragment %d channel %d sequence %d message %d length %d sum %016x",
			h.Kind, h.Class, h.Code, h.Fragment, h.Channel, h.Sequence, h.Message, h.Length, h.Sum)
		if h.Kind == Ack {
			err := ParseAck(payload, func(c Count) error { fmt.Fprintf(&out, " connection %d: %d", c.ID, c.Value); return nil },
				func(c Count) error { fmt.Fprintf(&out, " channel %d: %d", c.ID, c.Value); return nil })
			if err != nil {
				return "", err
			}
		} else if h.Kind != Data && len(payload) > 0 {
			fmt.Fprintf(&out, " %q", payload)
		}
		fmt.Fprintln(&out)
	}
}

// read reads one frame as a receiver does.
func read(r io.Reader) (Header, []byte, error) {
	head := make([]byte, HeaderBytes)
	if _, err := io.ReadFull(r, head); err != nil {
		return Header{}, nil, err
	}
	h, err := Parse(head)
	if err != nil {
		return h, nil, err
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return h, nil, err
	}
	return h, payload, h.Verify(payload)
}

// TestCaptureStillOpens decodes what version 1 wrote, and writes the same.
func TestCaptureStillOpens(t *testing.T) {
	const bin, txt = "testdata/version1.bin", "testdata/version1.txt"
	if *update {
		text, err := describe(bytes.NewReader(capture()))
		must(t, err)
		must(t, os.WriteFile(bin, capture(), 0o644))
		must(t, os.WriteFile(txt, []byte(text), 0o644))
	}
	raw, err := os.ReadFile(bin)
	must(t, err)
	want, err := os.ReadFile(txt)
	must(t, err)
	got, err := describe(bytes.NewReader(raw))
	must(t, err)
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("decoded differently (-want +got):\n%s", d)
	}
	if !bytes.Equal(raw, capture()) {
		t.Error("the same values are encoded differently now: that needs a new version")
	}
}

// TestEveryBitCounts flips each bit of small frames, hello and answer.
func TestEveryBitCounts(t *testing.T) {
	h := hello()
	data := Header{Kind: Data, Class: 4, Code: 1, Channel: 7, Sequence: 5, Message: 20}
	refused := Answer{Status: Refused, Lowest: 1, Highest: 1, Text: "no"}
	for name, tt := range map[string]struct {
		b    []byte
		read func(io.Reader) error
	}{
		"hello":  {h.Append(nil), func(r io.Reader) error { _, err := ReadHello(r); return err }},
		"answer": {refused.Append(nil), func(r io.Reader) error { _, err := ReadAnswer(r); return err }},
		"frame":  {data.Append(nil, make([]byte, 20)), func(r io.Reader) error { _, _, err := read(r); return err }},
	} {
		must(t, tt.read(bytes.NewReader(tt.b)))
		for i := range len(tt.b) * 8 {
			b := bytes.Clone(tt.b)
			b[i/8] ^= 1 << (i % 8)
			err := tt.read(bytes.NewReader(b))
			if err == nil {
				t.Errorf("%s: bit %d flipped and not noticed", name, i)
			}
			if name == "frame" && !errors.Is(err, ErrCorrupt) {
				t.Errorf("frame: bit %d flipped: %v, want corrupt", i, err)
			}
		}
		for n := range tt.b {
			if err := tt.read(bytes.NewReader(tt.b[:n])); err == nil {
				t.Errorf("%s: cut after %d bytes and not noticed", name, n)
			}
		}
	}
}

func TestBounds(t *testing.T) {
	for name, h := range map[string]Header{
		"no kind":                 {},
		"unknown kind":            {Kind: 9},
		"class":                   {Kind: Data, Class: Classes, Channel: 1, Sequence: 1},
		"data without channel":    {Kind: Data, Sequence: 1},
		"data without sequence":   {Kind: Data, Channel: 1},
		"ping with channel":       {Kind: Ping, Channel: 1},
		"ping with class":         {Kind: Ping, Class: 1},
		"open with sequence":      {Kind: Open, Channel: 1, Sequence: 1},
		"close-send with code":    {Kind: CloseSend, Channel: 1, Sequence: 1, Code: 1},
		"bye with unknown code":   {Kind: Bye, Code: 2},
		"ack with message":        {Kind: Ack, Message: 1},
		"fragment out of message": {Kind: Data, Channel: 1, Sequence: 1, Message: 10, Fragment: 1},
		"message too long":        {Kind: Data, Channel: 1, Sequence: 1, Message: MaxMessage + 1},
		"fragment too short":      {Kind: Data, Channel: 1, Sequence: 1, Message: 10},
	} {
		_, err := Parse(h.Append(nil, nil))
		if drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	long := Header{Kind: Open, Channel: 1}
	if _, err := Parse(long.Append(nil, make([]byte, MaxText+1))); drover.KindOf(err) != drover.Invalid {
		t.Errorf("long name: %v, want invalid", err)
	}
}

func TestFragments(t *testing.T) {
	for _, n := range []int{0, 1, FragmentBytes - 1, FragmentBytes, FragmentBytes + 1, MaxMessage} {
		next := 0
		for i := range Fragments(n) {
			from, to := Fragment(n, i)
			if from != next || to-from > FragmentBytes || (to == from && n > 0) {
				t.Errorf("%d bytes: fragment %d is %d to %d", n, i, from, to)
			}
			next = to
		}
		if next != n || Fragments(n) > MaxFragments {
			t.Errorf("%d bytes: %d fragments end at %d", n, Fragments(n), next)
		}
	}
}

// TestVersions negotiates with peers of another age.
func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		lowest, highest uint8 // this end's
		from, to        uint8 // the hello's
		want            uint8
		ok              bool
	}{
		{1, 1, 1, 1, 1, true},
		{1, 1, 1, 2, 1, true},  // an initiator of version 2 that still speaks 1
		{1, 1, 2, 2, 1, false}, // one that does not
		{1, 2, 1, 1, 1, true},  // the acceptor is of version 2
		{1, 2, 1, 3, 2, true},
		{2, 3, 1, 1, 1, false},
	} {
		h := hello()
		h.Lowest, h.Highest, h.Extension = tt.from, tt.to, []byte("version 2 says more")
		h.Features = 0xff
		got, err := ReadHello(bytes.NewReader(h.Append(nil)))
		must(t, err)
		if d := cmp.Diff(h, got); d != "" {
			t.Errorf("hello (-want +got):\n%s", d)
		}
		if v, ok := Choose(tt.lowest, tt.highest, &got); ok != tt.ok || ok && v != tt.want {
			t.Errorf("%d-%d with %d-%d: version %d, %v; want %d, %v", tt.lowest, tt.highest, tt.from, tt.to, v, ok, tt.want, tt.ok)
		}
	}
	for _, tt := range []struct {
		a    Answer
		want drover.Kind
	}{
		{Answer{Status: WrongVersion, Lowest: 2, Highest: 3}, drover.Invalid},
		{Answer{Status: Accepted, Version: 2}, drover.Invalid},
		{Answer{Status: Accepted, Version: 1, Features: 1}, drover.Invalid},
		{Answer{Status: Refused, Text: "no such session"}, drover.Denied},
		{Answer{Status: Unreachable}, drover.Unavailable},
	} {
		h := hello()
		got, err := ReadAnswer(bytes.NewReader(tt.a.Append(nil)))
		must(t, err)
		if err := got.Err(&h); drover.KindOf(err) != tt.want {
			t.Errorf("%+v: %v, want %s", tt.a, err, tt.want)
		}
	}
	h := hello()
	if err := (&Answer{Status: Accepted, Version: 1}).Err(&h); err != nil {
		t.Errorf("accepted: %v", err)
	}
}

func TestHelloIsReadExactly(t *testing.T) {
	h := hello()
	r := bytes.NewReader(append(h.Append(nil), "rest"...))
	_, err := ReadHello(r)
	must(t, err)
	if r.Len() != 4 {
		t.Errorf("%d bytes are left, want 4", r.Len())
	}
}

func TestTextIsHarmless(t *testing.T) {
	a := Answer{Status: Refused, Text: "\x1b[2J" + strings.Repeat("ü", 200)}
	got, err := ReadAnswer(bytes.NewReader(a.Append(nil)))
	must(t, err)
	if strings.ContainsRune(got.Text, 0x1b) || !strings.HasSuffix(got.Text, "ü") {
		t.Errorf("text %q", got.Text)
	}
}

func TestNoAllocations(t *testing.T) {
	payload, b := make([]byte, FragmentBytes), make([]byte, FrameBytes)
	n := testing.AllocsPerRun(100, func() {
		h := Header{Kind: Data, Class: 3, Channel: 1, Sequence: 1, Message: FragmentBytes}
		h.Encode(b, payload)
		g, err := Parse(b)
		if err != nil || g.Verify(payload) != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for a frame, want none", n)
	}
}

func BenchmarkFrame(b *testing.B) {
	payload, buf := make([]byte, FragmentBytes), make([]byte, FrameBytes)
	b.SetBytes(FragmentBytes)
	b.ReportAllocs()
	for b.Loop() {
		h := Header{Kind: Data, Class: 3, Channel: 1, Sequence: 1, Message: FragmentBytes}
		h.Encode(buf, payload)
		g, err := Parse(buf)
		if err != nil || g.Verify(payload) != nil {
			b.Fatal(err)
		}
	}
}
