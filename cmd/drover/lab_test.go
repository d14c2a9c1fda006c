package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/drover-vm/drover/lab"
)

// TestLabScripts runs the lab commands as a shell does; it starts a real lab of
// two hosts with agents and a server.
func TestLabScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test starts a lab and needs root: run it as root")
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/lab",
		Setup: func(env *testscript.Env) error {
			dir := filepath.Join(env.WorkDir, "labs")
			env.Setenv(lab.DirEnv, dir)
			// A script that fails leaves its lab up.
			env.Defer(func() {
				if _, err := lab.Down(context.Background(), lab.Options{Dir: dir}, "", true); err != nil {
					t.Error(err)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status},
	})
}
