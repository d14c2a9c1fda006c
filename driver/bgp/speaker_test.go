package bgp

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var (
	web4 = netip.MustParsePrefix("192.0.2.10/32")
	web6 = netip.MustParsePrefix("2001:db8::10/128")
	web  = driver.VMOwner("5f1a3c6e-1111-4222-8333-444455556666")
)

// fake is the configuration of a speaker whose child is of a kind that needs
// no router.
func fake(t *testing.T, kind string) Config {
	self, err := os.Executable()
	must(t, err)
	return Config{
		Dir: t.TempDir(), AS: 65001, NextHop4: netip.MustParseAddr("10.0.0.2"), NextHop6: netip.MustParseAddr("fd00::2"),
		Neighbors: []Neighbor{{Address: netip.MustParseAddr("10.0.0.1"), AS: 65000}},
		Command:   []string{"env", asSpeaker + "=" + kind, self},
	}
}

func openFake(t *testing.T, c Config) *Speaker {
	t.Helper()
	s, err := Open(slog.New(slog.NewTextHandler(testLog{t}, nil)), c)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func wantKind(t *testing.T, err error, want drover.Kind) {
	t.Helper()
	if err == nil || drover.KindOf(err) != want {
		t.Fatalf("got %v of kind %v, want %v", err, drover.KindOf(err), want)
	}
}

// fault waits until the neighbour's fault contains a text.
func fault(t *testing.T, s *Speaker, i int, text string) {
	t.Helper()
	eventually(t, func() string {
		list, err := s.Neighbors(t.Context())
		must(t, err)
		if n := list[i]; n.State == driver.SessionEstablished || !strings.Contains(n.Fault, text) {
			return fmt.Sprintf("%+v, want the fault %q", n, text)
		}
		return ""
	})
}

// TestForgotten: a route that the child has taken but not sent is asked for
// again, and the call that announced it hears of it.
func TestForgotten(t *testing.T) {
	t.Parallel()
	s := openFake(t, fake(t, forgetful))
	waitEstablished(t, s)
	must(t, s.Announce(t.Context(), web, web4, web6))
}

// TestUnconvincible: what is not sent is not called sent.
func TestUnconvincible(t *testing.T) {
	t.Parallel()
	s := openFake(t, fake(t, unconvincible))
	waitEstablished(t, s)
	wantKind(t, s.Announce(t.Context(), web, web4), drover.Unavailable)
	list, err := s.List(t.Context())
	must(t, err)
	if len(list) != 1 || list[0].Sent != 0 {
		t.Fatalf("on record %+v, want one route sent to nobody", list)
	}
}

// TestBadChildren: a child that does not work says why, and ends with its
// speaker.
func TestBadChildren(t *testing.T) {
	t.Parallel()
	for kind, text := range map[string]string{crashing: "no reason at all", babbling: "read an event"} {
		s := openFake(t, fake(t, kind))
		fault(t, s, 0, text)
		err := s.Announce(t.Context(), web, web4)
		wantKind(t, err, drover.Unavailable)
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v does not say why", kind, err)
		}
	}
	openFake(t, fake(t, deaf)) // Close must not hang
	c := fake(t, crashing)
	c.Command = []string{filepath.Join(c.Dir, "missing")}
	fault(t, openFake(t, c), 0, "no such file")
}

// TestRecord: what is written is read back, one speaker at a time has it, and a
// damaged one is not taken for an empty one.
func TestRecord(t *testing.T) {
	t.Parallel()
	c := fake(t, crashing)
	s := openFake(t, c)
	wantKind(t, s.Announce(t.Context(), web, web4, web6), drover.Unavailable)
	_, err := Open(slog.New(slog.DiscardHandler), c)
	wantKind(t, err, drover.Unavailable)
	must(t, s.Close())

	s = openFake(t, c)
	wantKind(t, s.Announce(t.Context(), driver.MoveOwner("other"), web6), drover.Exists)
	must(t, s.Close())

	path := filepath.Join(c.Dir, recordName)
	good, err := os.ReadFile(path)
	must(t, err)
	for _, bad := range []string{
		string(good[:len(good)/2]),
		strings.Replace(string(good), `"version":1`, `"version":2`, 1),
		strings.Replace(string(good), "/32", "/24", 1),
		strings.Replace(string(good), "vm/", "", 1),
		strings.Replace(string(good), web6.String(), web4.String(), 1),
	} {
		must(t, os.WriteFile(path, []byte(bad), 0o600))
		_, err := Open(slog.New(slog.DiscardHandler), c)
		wantKind(t, err, drover.Corrupt)
		if now, _ := os.ReadFile(path); string(now) != bad {
			t.Errorf("the damaged record was changed from %s to %s", bad, now)
		}
	}
	must(t, os.WriteFile(path, good, 0o600))
	openFake(t, c)
}

// TestDiskFull: what cannot be put on record is not announced, and what cannot
// be taken off it is not withdrawn.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	c := fake(t, forgetful)
	s := openFake(t, c)
	waitEstablished(t, s)
	must(t, s.Announce(t.Context(), web, web4))
	block := filepath.Join(c.Dir, recordName+".new")
	must(t, os.MkdirAll(filepath.Join(block, "in the way"), 0o755))
	wantKind(t, s.Announce(t.Context(), web, web6), drover.Internal)
	wantKind(t, s.Withdraw(t.Context(), web, web4), drover.Internal)
	list, err := s.List(t.Context())
	must(t, err)
	if len(list) != 1 || list[0].Prefix != web4 || list[0].Sent != 1 {
		t.Fatalf("on record %+v, want what was before", list)
	}
	must(t, os.RemoveAll(block))
	must(t, s.Announce(t.Context(), web, web6))
}

// TestLimits: no family without a next hop, and no more routes than maxRoutes.
func TestLimits(t *testing.T) {
	t.Parallel()
	c := fake(t, crashing)
	c.NextHop6 = netip.Addr{}
	s := openFake(t, c)
	wantKind(t, s.Announce(t.Context(), web, web6), drover.Invalid)
	prefixes := make([]netip.Prefix, maxRoutes+1)
	for i := range prefixes {
		prefixes[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + byte(i>>16), byte(i >> 8), byte(i)}), 32)
	}
	wantKind(t, s.Announce(t.Context(), web, prefixes...), drover.Exhausted)
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("on record %d routes, %v, want none", len(list), err)
	}
}
