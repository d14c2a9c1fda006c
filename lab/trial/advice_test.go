package trial_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/trial"
)

// adviceWorth is how many guests of the world have to differ at least.
const adviceWorth = 12

// adviceFigure is a number with what it is of.
var adviceFigure = regexp.MustCompile(`[0-9] ?(ms|s|min|h|km|%|[kMG]?B/s|[kMG]i?B|[kMG]?bit/s)\b`)

// TestAdvice asks what each guest of the ready lab world should do, and compares
// with what the lab file says is right. They are asked about as soon as they run:
// what an operator knows of them, and the lab, decides. Then two whose pause and
// sessions count are asked about again, once they have been looked at.
func TestAdvice(t *testing.T) {
	l := &trial.Lab{Bin: shared.Bin, Name: "advice"}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ctx := timeout(t, 6*time.Minute)
	if err := trial.Up(ctx, l, "world"); err != nil {
		t.Fatal(err)
	}
	f, err := labfile.Load("world")
	if err != nil {
		t.Fatal(err)
	}
	right := map[string]*labfile.Advice{}
	for _, g := range f.Guests {
		if g.Advice != nil {
			right[g.Name] = g.Advice
			reasoned(t, adviceFor(t, ctx, l, g.Name, g.Advice.To, drover.Method(g.Advice.Method)))
		}
	}
	if len(right) < adviceWorth {
		t.Errorf("%d guests have an advice in the lab file, want %d", len(right), adviceWorth)
	}
	for _, vm := range []string{"db1", "hot1"} {
		lookedAt(t, ctx, l, vm)
		var a drover.Advice
		// That it should stay is an exit status, too.
		if err := l.Drover(ctx, &a, "advise", vm, "--to", right[vm].To); string(a.Method) != right[vm].Method {
			t.Errorf("%s, looked at: advised %q (%v): %s; want %s", vm, a.Method, err, strings.Join(a.Reasons, "; "), right[vm].Method)
		}
		if m := a.Of(drover.Route); m.Forecast == nil || slices.ContainsFunc(m.Forecast.Unknown, func(u string) bool { return strings.Contains(u, "writes to its memory") }) {
			t.Errorf("%s was looked at, and its forecast does without: %+v", vm, m.Forecast)
		}
	}
}

// lookedAt waits until the VM's memory has been looked at.
func lookedAt(t *testing.T, ctx context.Context, l *trial.Lab, vm string) {
	t.Helper()
	for {
		var s drover.Signals
		if err := l.Drover(ctx, &s, "signals", vm); err == nil && s.Dirty.Known() {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s was not looked at: %v", vm, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// adviceFor asks until the answer is the one that is right: a lab that has just
// started is still learning where everything is.
func adviceFor(t *testing.T, ctx context.Context, l *trial.Lab, vm, to string, want drover.Method) (a drover.Advice) {
	t.Helper()
	const patience = 90 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		var now drover.Advice
		err := l.Drover(ctx, &now, "advise", vm, "--to", to)
		if now.Method == want {
			return now
		}
		if now.Method != "" {
			a = now
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s to %s: advised %q (%v): %s; want %s", vm, to, a.Method, err, strings.Join(a.Reasons, "; "), want)
		case <-time.After(time.Second):
		}
	}
}

// reasoned fails unless the advice says why, and of each other method why not, with
// figures where there are any.
func reasoned(t *testing.T, a drover.Advice) {
	t.Helper()
	if len(a.Reasons) == 0 || len(a.Methods) != len(drover.Methods())+1 {
		t.Errorf("%s: %d reasons for %s, %d methods", a.VM, len(a.Reasons), a.Method, len(a.Methods))
	}
	var all []string
	for _, m := range a.Methods {
		said := slices.Concat(m.For, m.Against)
		if all = append(all, said...); len(said) == 0 {
			t.Errorf("%s by %s: nothing for it, nothing against it", a.VM, m.Method)
		}
		if m.Method != a.Method && !m.Meets && len(m.Against) == 0 {
			t.Errorf("%s by %s: it is not advised, and nothing is against it", a.VM, m.Method)
		}
	}
	if of := a.Of(a.Method); of == nil || len(of.For) == 0 {
		t.Errorf("%s by %s: nothing is for it", a.VM, a.Method)
	}
	if !slices.ContainsFunc(all, adviceFigure.MatchString) {
		t.Errorf("%s: no reason has a figure: %s", a.VM, strings.Join(all, "; "))
	}
	t.Log(fmt.Sprintf("%s to %s: %s", a.VM, a.To, a.Method), a.Reasons[0])
}
