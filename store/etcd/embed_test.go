package etcd

import (
	"log/slog"
	"strings"
	"testing"
)

// The journal of a move must survive its server, so every write is synced; and
// nobody but its own process may reach it, so it listens nowhere.
func TestEmbedSyncsAndListensNowhere(t *testing.T) {
	e, err := Embed(t.Context(), nil, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.server.Server.Cfg.UnsafeNoFsync {
		t.Error("etcd does not sync its writes")
	}
	if n := len(e.server.Clients) + len(e.server.Peers); n != 0 {
		t.Errorf("etcd listens in %d places, want none", n)
	}
	if q := e.server.Server.Cfg.QuotaBackendBytes; q != quotaBytes {
		t.Errorf("its quota is %d, want %d", q, quotaBytes)
	}
	if r := e.server.Server.Cfg.AutoCompactionRetention; r <= 0 {
		t.Errorf("it keeps changes for %v, want it to forget some time", r)
	}
}

func TestEtcdLogsThroughSlog(t *testing.T) {
	var out strings.Builder
	e, err := Embed(t.Context(), slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "part=etcd") || strings.Contains(s, "level=ERROR") {
		t.Errorf("the log of a start and an end:\n%s", s)
	}
}
