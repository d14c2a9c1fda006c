package frame

import (
	"bytes"
	"testing"
)

// FuzzFrames reads any bytes as frames. What decodes encodes to the same.
func FuzzFrames(f *testing.F) {
	all := capture()
	h := hello()
	f.Add(all[len(h.Append(nil)):])
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			// The checksums would stop all but the seeds: the fields are judged
			// without them too.
			head := append([]byte(nil), b[:min(len(b), HeaderBytes)]...)
			head = append(head, make([]byte, HeaderBytes-len(head))...)
			resealHeader(head)
			if h, err := Parse(head); err == nil {
				if h.Length > maxAckBytes && h.Length > FragmentBytes || h.Message > MaxMessage {
					t.Fatalf("%+v is out of bounds", h)
				}
				if h.Kind == Data {
					from, to := Fragment(int(h.Message), int(h.Fragment))
					if to-from != int(h.Length) {
						t.Fatalf("%+v has another length", h)
					}
				}
			}
			r := bytes.NewReader(b)
			h, payload, err := read(r)
			if err != nil {
				return
			}
			if again := h.Append(nil, payload); !bytes.Equal(again, b[:len(again)]) {
				t.Fatalf("%+v encodes to %x", h, again)
			}
			b = b[len(b)-r.Len():]
		}
	})
}

// FuzzAck never calls back for what is not well formed.
func FuzzAck(f *testing.F) {
	f.Add(AppendAck(nil, []Count{{1, 2}}, []Count{{3, 4}}))
	f.Add(AppendAck(nil, nil, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var conns, channels []Count
		err := ParseAck(b, func(c Count) error { conns = append(conns, c); return nil },
			func(c Count) error { channels = append(channels, c); return nil })
		if err != nil {
			if len(conns)+len(channels) > 0 {
				t.Fatalf("%d entries used of a payload that gives %v", len(conns)+len(channels), err)
			}
			return
		}
		if again := AppendAck(nil, conns, channels); !bytes.Equal(again, b) {
			t.Fatalf("encodes to %x", again)
		}
	})
}

// FuzzHello reads hellos and answers.
func FuzzHello(f *testing.F) {
	h := hello()
	f.Add(h.Append(nil))
	a := Answer{Status: Refused, Lowest: 1, Highest: 1, Text: "no such session"}
	f.Add(a.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, sealed := range [][]byte{b, reseal(b)} {
			if h, err := ReadHello(bytes.NewReader(sealed)); err == nil {
				if again := h.Append(nil); !bytes.Equal(again, sealed[:len(again)]) {
					t.Fatalf("%+v encodes to %x", h, again)
				}
				if v, ok := Choose(Oldest, Newest, &h); ok && (v < h.Lowest || v > h.Highest || v < Oldest || v > Newest) {
					t.Fatalf("chose version %d for %+v", v, h)
				}
			}
			if a, err := ReadAnswer(bytes.NewReader(sealed)); err == nil {
				_ = a.Err(&h)
			}
		}
	})
}
