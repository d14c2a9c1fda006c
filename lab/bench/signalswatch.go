package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover/agent"
	"github.com/drover-vm/drover/lab/guest/control"
)

const (
	// watchEvery is how often it is seen whether the agent looks at the guest, and
	// watchSlack how far the two clocks, the guest's and ours, may be apart: a
	// request takes a few milliseconds to an emulated guest.
	watchEvery = 5 * time.Millisecond
	watchSlack = 5 * time.Millisecond
)

// errNoThread says that an agent does not look at guests.
var errNoThread = errors.New("the agent has no thread that looks at guests")

// span is a time within a window.
type span struct{ from, to time.Duration }

// surveyWatch sees when an agent looks at a guest: while its thread for that uses a
// processor.
type surveyWatch struct {
	began time.Time
	stat  string // of the thread
	stop  chan struct{}
	wg    sync.WaitGroup
	spans []span
}

// watchSurveys begins to watch. It is the same work whether the agent stands still
// or not.
func watchSurveys(pid int) (*surveyWatch, error) {
	threads, err := surveyThreads(pid)
	if err != nil {
		return nil, err
	}
	w := &surveyWatch{began: time.Now(), stat: threads[0], stop: make(chan struct{})}
	used, err := threadTime(w.stat)
	if err != nil {
		return nil, err
	}
	w.wg.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for last := time.Duration(0); ; {
			select {
			case <-w.stop:
				return
			case <-tick.C:
			}
			now, err := threadTime(w.stat)
			at := time.Since(w.began)
			if err == nil && now > used {
				w.add(span{last - watchSlack, at + watchSlack})
				used = now
			}
			last = at
		}
	})
	return w, nil
}

// add adds a span after all others.
func (w *surveyWatch) add(s span) {
	if n := len(w.spans); n > 0 && s.from <= w.spans[n-1].to {
		w.spans[n-1].to = s.to
		return
	}
	w.spans = append(w.spans, s)
}

// end returns when it looked.
func (w *surveyWatch) end() []span {
	close(w.stop)
	w.wg.Wait()
	return w.spans
}

// surveyThreads are the threads of an agent that look at guests: those with the
// lowest priority. Their files of processor time are returned.
func surveyThreads(pid int) (files []string, err error) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid)) // the pattern is right
	for _, task := range tasks {
		raw, err := os.ReadFile(filepath.Join(task, "stat"))
		if err != nil {
			continue // it has ended
		}
		// After the command's closing bracket, nice is field 17 (proc(5)).
		_, rest, _ := strings.Cut(string(raw), ") ")
		if f := strings.Fields(rest); len(f) >= 17 && f[16] == strconv.Itoa(agent.SurveyNice) {
			files = append(files, filepath.Join(task, "schedstat"))
		}
	}
	if len(files) == 0 {
		return nil, errNoThread
	}
	return files, nil
}

// threadTime reads the processor time of a thread, which schedstat has in ns.
func threadTime(schedstat string) (time.Duration, error) {
	raw, err := os.ReadFile(schedstat)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(raw), " ")
	ns, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("processor time of a thread: %w", err)
	}
	return time.Duration(ns), nil
}

// within are the gaps that overlap one of the spans, which are moved on by shift in
// a window of that length, whose end is its beginning.
func within(gaps []control.Gap, spans []span, shift, window time.Duration) (longest float64, over5 int) {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	for _, g := range gaps {
		for _, s := range spans {
			from, to := ms(s.from+shift), ms(s.to+shift)
			inside := func(by float64) bool { return g.AtMS < to-by && g.AtMS+g.MS > from-by }
			if inside(0) || shift > 0 && inside(ms(window)) {
				if longest = max(longest, g.MS); g.MS > signalsMostPause {
					over5++
				}
				break
			}
		}
	}
	return longest, over5
}

// total is how long the spans are together.
func total(spans []span) (d time.Duration) {
	for _, s := range spans {
		d += s.to - s.from
	}
	return d
}
