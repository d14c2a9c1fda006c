package vxlan

import (
	"net/netip"
	"testing"
)

func TestBeacon(t *testing.T) {
	for _, a := range []string{"10.99.0.1", "fd99::1"} {
		g := &guard{vni: 77, local: netip.MustParseAddr(a)}
		b := g.frame(kindQuestion)
		if len(b) != beaconBytes {
			t.Fatalf("%d bytes", len(b))
		}
		from, kind, ok := parseBeacon(b, 77)
		if !ok || kind != kindQuestion || from != g.local {
			t.Errorf("%v: read back %v, %d, %v", a, from, kind, ok)
		}
		if _, _, ok := parseBeacon(b, 78); ok {
			t.Error("a beacon of another segment was taken")
		}
		if _, _, ok := parseBeacon(b[:40], 77); ok {
			t.Error("half a beacon was taken")
		}
		b[20]++ // the version
		if _, _, ok := parseBeacon(b, 77); ok {
			t.Error("a beacon of another version was taken")
		}
	}
}

func FuzzParseBeacon(f *testing.F) {
	g := &guard{vni: 77, local: netip.MustParseAddr("10.99.0.1")}
	f.Add(g.frame(kindBeacon))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		from, kind, ok := parseBeacon(b, 77)
		if ok && (!from.IsValid() || kind > kindQuestion) {
			t.Errorf("%x: %v, %d", b, from, kind)
		}
	})
}

func FuzzParseMarks(f *testing.F) {
	f.Add("vm/1 10.99.0.2 blue br-blue")
	f.Add("- -")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseClaim(s)
		if err == nil && !c.remote.IsValid() {
			t.Errorf("%q: %+v", s, c)
		}
	})
}
