package sample

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// PageBytes is the size of a page.
const PageBytes = 4096

// State says what there is of a page.
type State uint8

// The states of a page.
const (
	Absent  State = iota // never touched: the guest would read zeros
	Present              // can be read
	Away                 // there, but must not be read
)

// Memory is a guest's memory.
type Memory interface {
	// Pages is how many there are.
	Pages() int64
	// State says what there is of a page.
	State(page int64) (State, error)
	// Read copies a page that is present.
	Read(page int64, p []byte) error
}

// Windows are the times over which distinct changes are counted, in ascending
// order. The shortest is about a pause, the longest a short round of a move.
var Windows = []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second}

// Options say how a guest's memory is looked at.
type Options struct {
	// Windows are the times over which changes are counted, in ascending order;
	// package sample's are usual.
	Windows []time.Duration
	// Pages is how many pages are looked at, at most. Each is looked at once, and
	// once more after each window.
	Pages int
	// Busy bounds the time that reading may take in all; what was looked at until
	// half of it was used is the sample then, so that the windows can be finished.
	Busy time.Duration
	// Rest is slept after each Chunk pages, so that nobody waits for the lock of the
	// guest's address space, or for a processor, for long.
	Chunk int
	Rest  time.Duration

	Rand *rand.Rand
	// Hash names a page's content; 0 is zeros and nothing else.
	Hash func(page []byte) uint64
	Now  func() time.Time
	// Sleep waits; it ends early with an error when ctx ends.
	Sleep func(ctx context.Context, d time.Duration) error
	// Stop is asked before each Chunk; an error ends the survey with it.
	Stop func() error
}

// Survey is what was seen of a guest's memory.
type Survey struct {
	Windows []time.Duration
	// Pages is the whole memory, Looked how many of them were looked at.
	Pages, Looked int64
	// Zero were absent or zeros, Away could not be read.
	Zero, Away int64
	// Hashes name the content of the others, one for each page.
	Hashes []uint64
	// Changed counts, for each of the Windows, the pages whose content was another
	// at its end than at its beginning.
	Changed []int64
	// Spent is how long the windows really were, on average over the pages.
	Spent []time.Duration
	// Busy is how long reading took.
	Busy time.Duration
	// At is when it ended.
	At time.Time
}

// drawn is one page of the sample.
type drawn struct {
	page int64
	hash uint64
	away bool
	at   time.Time
}

// Look looks at a random sample of the pages, and again after each of Windows.
// Every page has the same chance, and is compared with itself, so the changed
// share is an unbiased estimate of the distinct pages written in a window. Two
// things make it too low: pages written with what they held, which cost a move
// little, and those that held it again at the window's end.
func Look(ctx context.Context, m Memory, o Options) (Survey, error) {
	s := Survey{
		Windows: o.Windows, Pages: m.Pages(), Changed: make([]int64, len(o.Windows)), Spent: make([]time.Duration, len(o.Windows)),
	}
	l := &looker{m: m, o: o, s: &s, buf: make([]byte, PageBytes)}
	pages := Draw(o.Rand, s.Pages, o.Pages)
	first := make([]drawn, 0, len(pages))
	began := o.Now()
	err := l.each(ctx, len(pages), func(i int) (bool, error) {
		d, err := l.look(pages[i])
		first = append(first, d)
		return s.Busy < o.Busy/time.Duration(len(o.Windows)+1), err
	})
	if err != nil {
		return s, err
	}
	l.count(first)
	for w, window := range o.Windows {
		if err := o.Sleep(ctx, window-o.Now().Sub(began)); err != nil {
			return s, err
		}
		var spent time.Duration
		n := 0
		err := l.each(ctx, len(first), func(i int) (bool, error) {
			d, err := l.look(first[i].page)
			if err != nil {
				return false, err
			}
			if d.hash != first[i].hash && !d.away && !first[i].away {
				s.Changed[w]++
			}
			spent += d.at.Sub(first[i].at)
			n++
			return true, nil
		})
		if err != nil {
			return s, err
		}
		if n > 0 {
			s.Spent[w] = spent / time.Duration(n)
		}
	}
	s.At = o.Now()
	return s, nil
}

// looker reads pages.
type looker struct {
	m   Memory
	o   Options
	s   *Survey
	buf []byte
}

// look reads one page.
func (l *looker) look(page int64) (drawn, error) {
	d := drawn{page: page, at: l.o.Now()}
	state, err := l.m.State(page)
	switch {
	case err != nil || state == Absent:
		return d, err
	case state == Away:
		d.away = true
		return d, nil
	}
	if err := l.m.Read(page, l.buf); err != nil {
		return d, err
	}
	d.hash = l.o.Hash(l.buf)
	return d, nil
}

// each calls f for 0 to n-1 in chunks, with rests between, until it returns
// false.
func (l *looker) each(ctx context.Context, n int, f func(int) (bool, error)) error {
	for i := 0; i < n; i += l.o.Chunk {
		if err := l.o.Stop(); err != nil {
			return err
		}
		began, more := l.o.Now(), true
		for j := i; j < min(n, i+l.o.Chunk); j++ {
			var err error
			if more, err = f(j); err != nil {
				return err
			}
		}
		l.s.Busy += l.o.Now().Sub(began)
		if !more {
			return nil
		}
		if err := l.o.Sleep(ctx, l.o.Rest); err != nil {
			return err
		}
	}
	return nil
}

// count takes over what the first look saw.
func (l *looker) count(first []drawn) {
	for _, d := range first {
		l.s.Looked++
		switch {
		case d.away:
			l.s.Away++
		case d.hash == 0:
			l.s.Zero++
		default:
			l.s.Hashes = append(l.s.Hashes, d.hash)
		}
	}
}

// Draw returns n of the pages 0 to pages-1, each at most once, in a random order:
// one of each of n equal stretches, so that no part of the memory is missed, and
// the first few are a sample of all of it, too.
func Draw(r *rand.Rand, pages int64, n int) []int64 {
	n = int(min(int64(n), pages))
	if n <= 0 {
		return nil
	}
	drawn := make([]int64, n)
	for i := range drawn {
		// Edges that are no whole pages would make two stretches share one.
		from, to := pages*int64(i)/int64(n), pages*int64(i+1)/int64(n)
		drawn[i] = from + r.Int64N(to-from)
	}
	r.Shuffle(n, func(i, j int) { drawn[i], drawn[j] = drawn[j], drawn[i] })
	return drawn
}

// Runs returns stretches of n pages that follow each other, at random places
// that do not overlap: what a compressor sees of a memory that is sent in order.
func Runs(r *rand.Rand, pages int64, runs, n int) [][]int64 {
	var all [][]int64
	for _, at := range Draw(r, pages/int64(n), runs) {
		run := make([]int64, n)
		for i := range run {
			run[i] = at*int64(n) + int64(i)
		}
		all = append(all, run)
	}
	slices.SortFunc(all, func(a, b []int64) int { return int(a[0] - b[0]) })
	return all
}

// ZeroShare is the part of all pages that hold zeros.
func (s Survey) ZeroShare() drover.Reading { return s.share(s.Zero, s.Looked) }

func (s Survey) share(part, whole int64) drover.Reading {
	if whole <= 0 || s.At.IsZero() {
		return drover.Reading{}
	}
	return drover.Reading{Value: float64(part) / float64(whole), At: s.At, Samples: whole}
}

// Curve is how much distinct memory was written. The windows are as long as they
// were meant to be: a chunk that was late is scaled, by a line through its point.
func (s Survey) Curve() drover.DirtyCurve {
	readable := s.Looked - s.Away
	if readable <= 0 || s.At.IsZero() {
		return drover.DirtyCurve{}
	}
	c := drover.DirtyCurve{At: s.At, Samples: 1}
	most := 0.0
	for i, w := range s.Windows {
		if s.Spent[i] <= 0 {
			return drover.DirtyCurve{}
		}
		scale := w.Seconds() / s.Spent[i].Seconds()
		bytes := float64(s.Changed[i]) / float64(readable) * float64(s.Pages) * PageBytes * math.Min(1, scale)
		// What was written in a short time was in a longer one.
		most = math.Max(most, bytes)
		c.Points = append(c.Points, drover.DirtyPoint{WindowSeconds: w.Seconds(), Bytes: most})
	}
	return c
}
