package haproxy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const owner = driver.Owner("vm/5f0c1d5e-6a3e-4c8b-9a59-0d8f1c1f2a01")

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestUnseen: while the process that a reload left behind has a session,
// nobody can say that the server is drained.
func TestUnseen(t *testing.T) {
	b := newBench(t, true, "admin")
	d := b.open(t)
	defer d.Close()
	ctx := t.Context()
	noError(t, d.Add(ctx, owner, "web", driver.ServerSpec{Name: "a", Address: b.servers[2].addr, Weight: 10}))
	name := driver.ServerName(owner, "a")
	noError(t, d.Drain(ctx, owner, "web", "one"))
	noError(t, d.Drain(ctx, owner, "web", "two"))
	noError(t, d.Ready(ctx, owner, "web", name))
	held := b.hold(t)
	noError(t, d.Drain(ctx, owner, "web", name))
	b.start(t) // -sf: the session stays with the old process

	server := func() driver.Server {
		t.Helper()
		all, err := d.Servers(ctx, "web")
		noError(t, err)
		for _, s := range all {
			if s.Name == name {
				return s
			}
		}
		t.Fatalf("%s is gone: %+v", name, all)
		return driver.Server{}
	}
	if s := server(); s.Sessions != 0 || !s.Unseen || s.Drained() || s.State != driver.ServerDrain {
		t.Errorf("after the reload: %+v", s)
	}
	if _, err := d.Remove(ctx, owner, "web", name, false); drover.KindOf(err) != drover.Refused {
		t.Errorf("Remove: %v, want it refused", err)
	}
	if !held.Alive() {
		t.Error("the session has not outlived the reload")
	}
	held.End()
	for range 200 {
		if server().Drained() {
			break
		}
		noError(t, wait(ctx, endWait))
	}
	if _, err := d.Remove(ctx, owner, "web", name, false); err != nil {
		t.Error(err)
	}
}

// TestStateFileWritten: HAProxy finds drained servers drained at its start, with no driver.
func TestStateFileWritten(t *testing.T) {
	b := newBench(t, true, "admin")
	d := b.open(t)
	noError(t, d.Drain(t.Context(), owner, "web", "one"))
	noError(t, d.Close())
	b.start(t)
	text, err := socket{filepath.Join(b.dir, "admin.sock")}.run(t.Context(), "show servers state web")
	noError(t, err)
	all, err := parseStates(text)
	noError(t, err)
	if all["web/one"].State != driver.ServerDrain || all["web/two"].State != driver.ServerReady {
		t.Errorf("after a start: %+v", all)
	}
}

// TestLostRecord: without the state folder an added server is still known by its name.
func TestLostRecord(t *testing.T) {
	b := newBench(t, false, "admin")
	d := b.open(t)
	spec := driver.ServerSpec{Name: "a", Address: b.servers[2].addr, Weight: 10}
	noError(t, d.Add(t.Context(), owner, "web", spec))
	noError(t, d.Close())
	noError(t, os.RemoveAll(filepath.Join(b.dir, "state")))
	d = b.open(t)
	defer d.Close()
	all, err := d.List(t.Context())
	noError(t, err)
	name := driver.ServerName(owner, "a")
	if len(all) != 1 || all[0].Owner != owner || all[0].Name != name || !all[0].Added {
		t.Errorf("List: %+v", all)
	}
	noError(t, d.Ready(t.Context(), owner, "web", name))
	noError(t, d.Add(t.Context(), owner, "web", spec))
	b.start(t)
	servers, err := d.Servers(t.Context(), "web")
	noError(t, err)
	if s := servers[len(servers)-1]; s.Name != name || s.State != driver.ServerReady {
		t.Errorf("after a reload: %+v", servers)
	}
}

// TestCheckFinds: a socket that may only look, and none at all.
func TestCheckFinds(t *testing.T) {
	for level, finding := range map[string]string{"operator": "may change", "user": "may change", "admin": "answers"} {
		t.Run(level, func(t *testing.T) {
			b := newBench(t, false, level)
			if level == "admin" {
				b.stop(t)
			}
			d := b.open(t)
			defer d.Close()
			checks, err := d.Check(t.Context(), "web")
			noError(t, err)
			last := checks[len(checks)-1]
			if last.OK || last.Fix == "" || !strings.Contains(last.Name, finding) {
				t.Errorf("Check: %+v", checks)
			}
		})
	}
}

// TestOldRecord: a state folder that this driver cannot read is not overwritten.
func TestOldRecord(t *testing.T) {
	for name, text := range map[string]string{"no JSON": "{", "another version": `{"version": 99}`} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			noError(t, os.WriteFile(filepath.Join(dir, recordFile), []byte(text), 0o600))
			if _, err := New(Config{Socket: "/run/none.sock", StateDir: dir}); drover.KindOf(err) != drover.Corrupt {
				t.Errorf("New: %v, want an error of kind corrupt", err)
			}
		})
	}
	if _, err := New(Config{Socket: "admin.sock", StateDir: t.TempDir()}); drover.KindOf(err) != drover.Invalid {
		t.Errorf("New with a relative path: %v", err)
	}
}

// FuzzView: whatever a socket answers is taken or refused.
func FuzzView(f *testing.F) {
	f.Add("# pxname,svname,qcur,scur,stot,status,algo\nweb,BACKEND,,,,,roundrobin\nweb,a,0,1,2,UP,\n",
		"1\n# be_name srv_name srv_addr srv_admin_state srv_uweight srv_iweight srv_port srv_check_state\nweb a 127.0.0.1 0 1 1 80 6\n")
	f.Fuzz(func(t *testing.T, stat, states string) {
		v, err := parseView(stat, states)
		if err != nil {
			return
		}
		for _, b := range v.backends {
			for _, s := range b.Servers {
				if s.Backend != b.Name {
					t.Errorf("%+v in %q", s, b.Name)
				}
			}
		}
	})
}
