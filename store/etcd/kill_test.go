package etcd_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/store"
	"github.com/drover-vm/drover/store/etcd"
	"github.com/drover-vm/drover/store/storetest"
)

// childFolder names, in a child's environment, the folder that it writes to.
const childFolder = "DROVER_TEST_ETCD_FOLDER"

// child creates and updates moves without end and prints the name and the
// generation of each as soon as it is acknowledged. It reports whether this
// process is one.
func child() bool {
	dir := os.Getenv(childFolder)
	if dir == "" {
		return false
	}
	ctx := context.Background()
	e, err := etcd.Embed(ctx, nil, dir)
	if err != nil {
		fmt.Println("error:", err)
		return true
	}
	s := etcd.New(e.Client(), "/drover")
	for n := 0; ; n++ {
		r, _, err := s.Create(ctx, storetest.Record(n))
		for err == nil && r.Move.Generation < 3 {
			fmt.Println(r.Move.Name, r.Move.Generation)
			r.Move.Generation++
			r, err = s.Update(ctx, r)
		}
		if err != nil {
			fmt.Println("error:", err)
			return true
		}
		fmt.Println(r.Move.Name, r.Move.Generation)
	}
}

// A server that is killed loses nothing that its journal has acknowledged.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	acknowledged := make(map[string]int64)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childFolder+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		var name string
		var generation int64
		if _, err := fmt.Sscan(lines.Text(), &name, &generation); err != nil || strings.HasPrefix(name, "error") {
			t.Errorf("the child says %q", lines.Text())
			break
		}
		acknowledged[name] = generation
		if n == 100 { // in the middle of its work; what it has printed since is read on
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // killed

	if len(acknowledged) < 30 {
		t.Fatalf("only %d moves were acknowledged", len(acknowledged))
	}
	s := etcd.New(embedded(t, dir).Client(), "/drover")
	for name, generation := range acknowledged {
		r, err := s.Get(t.Context(), name)
		if err != nil || r.Move.Generation < generation {
			t.Errorf("move %s was acknowledged with generation %d, found %d, error %v", name, generation, r.Move.Generation, err)
			continue
		}
		// Its VM is locked too: both are one transaction.
		second := storetest.Record(9999)
		second.Move.VMUUID = r.Move.VMUUID
		if _, _, err := s.Create(t.Context(), second); drover.KindOf(err) != drover.Refused {
			t.Errorf("the VM of move %s is not locked: %v", name, err)
		}
	}
	all, _, err := s.List(t.Context(), store.Filter{Unfinished: true})
	if err != nil || len(all) < len(acknowledged) {
		t.Errorf("%d unfinished moves are found of %d, error %v", len(all), len(acknowledged), err)
	}
}
