package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/drover-vm/drover"
)

// plainEvery is how often a running step is mentioned where the line cannot
// be redrawn: often enough to see that it goes on, seldom enough for a log.
const plainEvery = 5 * time.Second

// progressLine shows how far a move has come: on a terminal one line that is
// redrawn, elsewhere a line for each change.
type progressLine struct {
	w        io.Writer
	terminal bool
	width    func() int
	now      func() time.Time

	last  drover.Move
	drawn bool
	key   string
	at    time.Time
}

func (a *app) newProgressLine() *progressLine {
	p := &progressLine{w: a.err, now: time.Now, width: func() int { return 0 }}
	if f, ok := a.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = true
		p.width = func() int {
			w, _, err := term.GetSize(int(f.Fd()))
			if err != nil {
				return 0
			}
			return w
		}
	}
	return p
}

// show takes the move's new state in and shows it.
func (p *progressLine) show(m drover.Move) {
	p.last = m
	p.draw()
}

// again shows the last state with the time that has passed since.
func (p *progressLine) again() {
	if p.terminal {
		p.draw()
	}
}

func (p *progressLine) draw() {
	if p.last.State.Final() {
		return // the result says it
	}
	if p.last.State == drover.MoveRunning && currentStep(p.last) == "" && !allDone(p.last) {
		return // between two steps
	}
	text := progressText(p.last, p.now())
	if p.terminal {
		if w := p.width(); w > 1 && len(text) >= w {
			text = text[:w-1]
		}
		fmt.Fprintf(p.w, "\r\x1b[K%s", text)
		p.drawn = true
		return
	}
	key := string(p.last.State) + "/" + currentStep(p.last)
	if g := p.last.Progress; g != nil && g.Phase != "" {
		key += "/" + g.Phase
	}
	key += "/" + gateLine(p.last)
	if key == p.key && p.now().Sub(p.at) < plainEvery {
		return
	}
	p.key, p.at = key, p.now()
	fmt.Fprintln(p.w, text)
}

// say shows a line of its own, once while it stays the same.
func (p *progressLine) say(text string) {
	if p.key == text {
		return
	}
	p.end()
	p.key = text
	fmt.Fprintln(p.w, text)
}

// end removes a line that would be redrawn.
func (p *progressLine) end() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

// currentStep names the step that is under way, "undo NAME" on the way back.
func currentStep(m drover.Move) string {
	for _, s := range m.Steps {
		switch s.State {
		case drover.StepRunning:
			return s.Name
		case drover.StepUndoing:
			return "undo " + s.Name
		}
	}
	return ""
}

// allDone reports whether every step has been done, so that only measuring is
// left.
func allDone(m drover.Move) bool {
	for _, s := range m.Steps {
		if s.State != drover.StepDone {
			return false
		}
	}
	return len(m.Steps) > 0
}

// progressText is one line: step, phase, bytes, rate, ETA, elapsed. The parts
// that are not known are left out.
func progressText(m drover.Move, now time.Time) string {
	var parts []string
	add := func(s string) {
		if s != "" {
			parts = append(parts, s)
		}
	}
	step := currentStep(m)
	switch {
	case step != "":
		add(step)
	case m.State == drover.MovePending:
		add("waiting for its turn")
	case allDone(m):
		add("waiting until clients are answered again")
	default:
		add(string(m.State))
	}
	if g := m.Progress; g != nil && strings.TrimPrefix(step, "undo ") == g.Step {
		add(g.Phase)
		if g.TotalBytes > 0 {
			add(fmt.Sprintf("%s of %s", g.DoneBytes, g.TotalBytes))
		}
		add(rate(g.Rate))
		if left := leftText(g); left != "" {
			add(left)
		} else if g.ETASeconds >= 0 && g.TotalBytes > 0 {
			add(fmt.Sprintf("ETA %.0f s", math.Ceil(g.ETASeconds)))
		}
		add(pathText(g.Path))
	}
	add(gateLine(m))
	if m.State == drover.MoveUndoing && m.Fault != "" {
		add(m.Fault)
	}
	if elapsed := now.Sub(m.Created); !m.Created.IsZero() && elapsed >= 0 {
		add(fmt.Sprintf("elapsed %.0f s", elapsed.Seconds()))
	}
	return strings.Join(parts, "  ")
}

// pathText is the data path in a few words.
func pathText(p *drover.PathProgress) string {
	if p == nil {
		return ""
	}
	var parts []string
	if p.WireBytes > 0 {
		parts = append(parts, fmt.Sprintf("%s on the wire", p.WireBytes))
	}
	if p.CutSeconds > 0 {
		parts = append(parts, fmt.Sprintf("WAN cut for %.0f s", p.CutSeconds))
	}
	if p.ThrottlePercent > 0 {
		parts = append(parts, fmt.Sprintf("guest held back by %d %%", p.ThrottlePercent))
	}
	return strings.Join(parts, "  ")
}
