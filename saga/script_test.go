package saga_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover/saga"
)

var rewrite = flag.Bool("rewrite", false, "write the scripts' golden output anew instead of comparing it")

// A script in testdata is a move told line by line. Lines that begin with "> "
// are events; what follows each is golden: the journal after it, and what is
// next. Lines that begin with "#" say what the script is about.
//
// An event is an event's name, with the step's where it needs one:
//
//	> begin a
//	> settle not passed
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := tell(string(b))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(b), got); d != "" {
				t.Errorf("go test ./saga -rewrite writes it anew (-script +now):\n%s", d)
			}
		})
	}
}

// tell plays a script and returns it with its output.
func tell(script string) string {
	var out strings.Builder
	table := table()
	j := saga.New(table)
	for line := range strings.Lines(script) {
		switch event, ok := strings.CutPrefix(line, "> "); {
		case strings.HasPrefix(line, "#"):
			out.WriteString(line)
		case ok:
			out.WriteString(line)
			n, err := saga.Apply(table, j, parse(table, strings.TrimSpace(event), saga.Next(table, j)))
			if err != nil {
				fmt.Fprintf(&out, "  refused: %v\n", err)
				continue
			}
			j = n
			d := saga.Next(table, j)
			next := string(d.Verb)
			if d.Step >= 0 {
				next += " " + table[d.Step].Name
			}
			fmt.Fprintf(&out, "  %s\n  next: %s\n", j, next)
		}
	}
	return out.String()
}

// parse reads an event. Where it names no step, the step is the one that is
// next.
func parse(table saga.Table, s string, d saga.Decision) saga.Event {
	e := saga.Event{What: saga.What(s), Step: d.Step}
	if what, reason, ok := strings.Cut(s, ": "); ok {
		return saga.Event{What: saga.What(what), Reason: reason}
	}
	if i := strings.LastIndexByte(s, ' '); i > 0 {
		if step := table.Index(s[i+1:]); step >= 0 {
			e.What, e.Step = saga.What(s[:i]), step
		}
	}
	return e
}
