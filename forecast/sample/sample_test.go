package sample

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
)

// synthetic is a memory in a time of its own: each page that is written is
// written at times that go on for ever, regular or not.
type synthetic struct {
	now    time.Time
	states []State
	every  []time.Duration // how often each page is written; 0 never
	phase  []time.Duration
	reads  map[int64]int
	cost   time.Duration // of a look
}

var start = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)

func newSynthetic(n int) *synthetic {
	s := &synthetic{
		now: start, states: make([]State, n), every: make([]time.Duration, n), phase: make([]time.Duration, n),
		reads: map[int64]int{}, cost: time.Microsecond,
	}
	return s
}

func (s *synthetic) Pages() int64 { return int64(len(s.states)) }

func (s *synthetic) State(page int64) (State, error) {
	s.now = s.now.Add(s.cost)
	return s.states[page], nil
}

func (s *synthetic) Read(page int64, p []byte) error {
	if s.states[page] != Present {
		return errors.New("a page was read that is not there")
	}
	s.reads[page]++
	clear(p)
	if s.every[page] >= 0 {
		binary.LittleEndian.PutUint64(p, uint64(page)+1)
	}
	if s.every[page] > 0 {
		binary.LittleEndian.PutUint64(p[8:], uint64((s.now.Sub(start)+s.phase[page])/s.every[page]))
	}
	return nil
}

// distinct is the truth: how many pages change in a window that begins at any
// time, on average.
func (s *synthetic) distinct(w time.Duration) float64 {
	sum := 0.0
	for _, e := range s.every {
		if e > 0 {
			sum += math.Min(1, float64(w)/float64(e))
		}
	}
	return sum
}

func (s *synthetic) options(seed uint64, pages int) Options {
	return Options{
		Windows: Windows, Pages: pages, Busy: time.Hour, Chunk: 64, Rest: time.Millisecond, Rand: rand.New(rand.NewPCG(seed, 1)),
		Hash: func(p []byte) uint64 {
			a, b := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
			if a == 0 && b == 0 {
				return 0
			}
			return a*1e9 + b + 1
		},
		Now: func() time.Time { return s.now },
		Sleep: func(_ context.Context, d time.Duration) error {
			s.now = s.now.Add(max(0, d))
			return nil
		},
		Stop: func() error { return nil },
	}
}

// zeros makes a page present and zero.
func (s *synthetic) zero(page int) { s.states[page], s.every[page] = Present, -1 }

// TestUnbiased draws memories, and wants the mean of many surveys to be the
// truth: shares and, for each window, distinct pages.
func TestUnbiased(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n, surveys, looked = 4096, 60, 512
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
		m := newSynthetic(n)
		hot := rapid.IntRange(0, n/2).Draw(t, "hot")
		absent := rapid.Float64Range(0, 0.5).Draw(t, "absent")
		zeros := 0
		for i := range n {
			switch u := r.Float64(); {
			case u < absent:
				zeros++
			case u < absent+0.1:
				m.zero(i)
				zeros++
			default:
				m.states[i] = Present
				if i < hot { // hot pages lie together, as they do in guests
					m.every[i] = time.Duration(1 + r.Int64N(int64(20*time.Second)))
					m.phase[i] = time.Duration(r.Int64N(int64(20 * time.Second)))
				}
			}
		}
		var zeroShare float64
		changed := make([]float64, len(Windows))
		for seed := range uint64(surveys) {
			s, err := Look(context.Background(), m, m.options(seed, looked))
			if err != nil {
				t.Fatal(err)
			}
			if s.Looked != looked {
				t.Fatalf("looked at %d pages, want %d", s.Looked, looked)
			}
			zeroShare += s.ZeroShare().Value / surveys
			for w := range Windows {
				changed[w] += float64(s.Changed[w]) / looked * n / surveys
			}
			m.now = m.now.Add(time.Duration(r.Int64N(int64(time.Minute))))
		}
		// Five standard errors of a share that is the mean of surveys × looked pages.
		bound := func(share float64) float64 {
			return 5*math.Sqrt(math.Max(share*(1-share), 1.0/n)/(surveys*looked)) + 1e-9
		}
		if truth := float64(zeros) / n; math.Abs(zeroShare-truth) > bound(truth) {
			t.Errorf("zero share %.4f, truth %.4f", zeroShare, truth)
		}
		for w, window := range Windows {
			if truth := m.distinct(window) / n; math.Abs(changed[w]/n-truth) > bound(truth)+0.002 {
				t.Errorf("%s: %.4f of the pages changed, truth %.4f", window, changed[w]/n, truth)
			}
		}
	})
}

func TestDraw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Int64Range(0, 5000).Draw(t, "pages")
		n := rapid.IntRange(-1, 6000).Draw(t, "n")
		drawn := Draw(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3)), pages, n)
		if want := int(max(0, min(int64(n), pages))); len(drawn) != want {
			t.Fatalf("%d pages drawn, want %d", len(drawn), want)
		}
		slices.Sort(drawn)
		for i, p := range drawn {
			if p < 0 || p >= pages || i > 0 && p == drawn[i-1] {
				t.Fatalf("page %d of %d, after %v", p, pages, drawn[max(0, i-1)])
			}
		}
	})
}

func TestRuns(t *testing.T) {
	for _, run := range Runs(rand.New(rand.NewPCG(1, 1)), 1000, 4, 32) {
		if len(run) != 32 || run[31] != run[0]+31 || run[0] < 0 || run[31] >= 1000 {
			t.Errorf("run %v", run)
		}
	}
	if runs := Runs(rand.New(rand.NewPCG(1, 1)), 10, 4, 32); len(runs) != 0 {
		t.Errorf("a memory smaller than a run has %v", runs)
	}
}

// TestBudget gives a survey too little time for all pages: it looks at fewer, and
// still is a sample of the whole.
func TestBudget(t *testing.T) {
	m := newSynthetic(10000)
	for i := range 5000 {
		m.states[i] = Present // the lower half
	}
	o := m.options(1, 8192)
	m.cost = time.Millisecond
	o.Busy = 4 * time.Second
	s, err := Look(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	if s.Looked < 900 || s.Looked > 1200 {
		t.Errorf("looked at %d pages in a second of a millisecond each", s.Looked)
	}
	if z := s.ZeroShare().Value; math.Abs(z-0.5) > 0.08 {
		t.Errorf("half of the pages are zeros, seen %.3f", z)
	}
	if s.Busy > o.Busy+time.Second {
		t.Errorf("busy for %s, allowed %s", s.Busy, o.Busy)
	}
}

// TestStop ends a survey in the middle.
func TestStop(t *testing.T) {
	m := newSynthetic(10000)
	o := m.options(1, 8192)
	stop, asked := errors.New("a move begins"), 0
	o.Stop = func() error {
		if asked++; asked > 3 {
			return stop
		}
		return nil
	}
	s, err := Look(t.Context(), m, o)
	if !errors.Is(err, stop) || s.ZeroShare().Known() || s.Curve().Known() {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestAway(t *testing.T) {
	m := newSynthetic(100)
	for i := range m.states {
		m.states[i] = Away
	}
	s, err := Look(t.Context(), m, m.options(1, 50))
	if err != nil || s.Away != 50 || s.Curve().Known() || len(s.Hashes) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

func curve(bytes ...float64) drover.DirtyCurve {
	c := drover.DirtyCurve{At: start, Samples: 1}
	for i, b := range bytes {
		c.Points = append(c.Points, drover.DirtyPoint{WindowSeconds: Windows[i].Seconds(), Bytes: b})
	}
	return c
}

func TestConcave(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bytes := rapid.SliceOfN(rapid.Float64Range(0, 1e9), 3, 3).Draw(t, "bytes")
		slices.Sort(bytes)
		c := curve(bytes...)
		got := Concave(c)
		slope, from := math.Inf(1), drover.DirtyPoint{}
		for i, p := range got.Points {
			if p.Bytes < c.Points[i].Bytes*(1-1e-9) {
				t.Fatalf("%v is below %v", got.Points, c.Points)
			}
			s := (p.Bytes - from.Bytes) / (p.WindowSeconds - from.WindowSeconds)
			if s > slope*(1+1e-9)+1e-6 {
				t.Fatalf("%v is not concave", got.Points)
			}
			slope, from = s, p
		}
	})
	if c := Concave(curve(0, 0, 50e6)); c.Points[0].Bytes != 0.5e6 || c.Points[1].Bytes != 5e6 {
		t.Errorf("nothing seen in the short windows: %v", c.Points)
	}
}

func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hot, cold := rapid.Float64Range(0, 1e9).Draw(t, "hot"), rapid.Float64Range(0, 1e8).Draw(t, "cold")
		tau := rapid.Float64Range(0.03, 3).Draw(t, "tau")
		var bytes []float64
		for _, w := range Windows {
			bytes = append(bytes, hot*(1-math.Exp(-w.Seconds()/tau))+cold*w.Seconds())
		}
		got, ok := Split(curve(bytes...))
		if !ok {
			t.Fatal("no split")
		}
		for i, w := range Windows {
			u := got.ColdBytesPerSecond * w.Seconds()
			if got.HotBytes > 0 {
				u += got.HotBytes * (1 - math.Exp(-w.Seconds()/got.HotSeconds))
			}
			if math.Abs(u-bytes[i]) > 0.12*bytes[i]+PageBytes {
				t.Errorf("%s: the split says %.0f, the curve %.0f (%+v of hot %.0f, cold %.0f, %.2f s)", w, u, bytes[i], got, hot, cold, tau)
			}
		}
	})
	for _, c := range []drover.DirtyCurve{{}, curve(), curve(5)} {
		if _, ok := Split(c); ok {
			t.Errorf("a split of %v", c)
		}
	}
	if got, ok := Split(curve(0, 0, 0)); !ok || got != (HotCold{}) {
		t.Errorf("a guest that writes nothing: %+v, %v", got, ok)
	}
}

func TestMeanCurve(t *testing.T) {
	a, b, old := curve(1e6, 5e6, 9e6), curve(3e6, 7e6, 11e6), curve(1e12, 1e12, 1e12)
	b.At, old.At = start.Add(time.Minute), start.Add(-time.Hour)
	m := MeanCurve([]drover.DirtyCurve{old, a, {}, b}, start.Add(2*time.Minute), 10*time.Minute)
	if m.Samples != 2 || !m.At.Equal(b.At) || m.Points[0].Bytes != 2e6 || m.Points[2].Bytes != 10e6 {
		t.Errorf("%+v", m)
	}
	if m := MeanCurve(nil, start, time.Hour); m.Known() {
		t.Errorf("the mean of nothing is %+v", m)
	}
}

func TestRate(t *testing.T) {
	r := &Rate{Span: time.Minute, Most: 5 * time.Minute}
	at := start
	step := func(d time.Duration, total float64) drover.Reading {
		at = at.Add(d)
		r.Add(at, total)
		return r.PerSecond()
	}
	if got := step(0, 1000); got.Known() {
		t.Errorf("one reading gives %+v", got)
	}
	for i := range 20 {
		if got := step(15*time.Second, 1000+float64(i+1)*150); !got.Known() || math.Abs(got.Value-10) > 1e-9 {
			t.Errorf("reading %d: %+v, want 10", i, got)
		}
	}
	if got := step(15*time.Second, 5); got.Known() {
		t.Errorf("a counter that began anew gives %+v", got)
	}
	step(10*time.Second, 105)
	if got := step(-time.Hour, 205); got.Known() {
		t.Errorf("a clock that jumped back gives %+v", got)
	}
	step(10*time.Second, 305)
	if got := step(24*time.Hour, 405); got.Known() {
		t.Errorf("a clock that jumped ahead gives %+v", got)
	}
}

// TestLifetimes watches sessions of known lifetimes by looking now and then, and
// wants their quantiles back.
func TestLifetimes(t *testing.T) {
	for name, draw := range map[string]func(*rand.Rand) float64{
		"exponential": func(r *rand.Rand) float64 { return 60 * r.ExpFloat64() },
		"even":        func(r *rand.Rand) float64 { return 100 + 100*r.Float64() },
		"heavy":       func(r *rand.Rand) float64 { return 5 * math.Pow(1-r.Float64(), -1/1.3) },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 7))
			const every, from, until = 1.0, 2000.0, 6000.0
			var lives []Life
			var truth []float64
			for at := 0.0; at < until; at += 0.2 {
				l := draw(r)
				truth = append(truth, l)
				// Seen at the looks between from and until that fall into its life.
				first := math.Max(math.Ceil(at/every), from/every) * every
				last := math.Min(math.Floor((at+l)/every), until/every) * every
				if first > last {
					continue
				}
				ended := at+l < until
				to := last - at
				if ended {
					to += every / 2
				}
				span := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
				lives = append(lives, Life{From: span(first - at), To: span(to), Ended: ended})
			}
			slices.Sort(truth)
			got := Lifetimes(lives, start, 20)
			for _, q := range []struct{ q, got, bound float64 }{{0.5, got.P50Seconds, 0.12}, {0.9, got.P90Seconds, 0.12}, {0.99, got.P99Seconds, 0.25}} {
				want := truth[int(q.q*float64(len(truth)))]
				if math.Abs(q.got-want) > q.bound*want {
					t.Errorf("quantile %.2f is %.1f s, truth %.1f s", q.q, q.got, want)
				}
			}
		})
	}
	if got := Lifetimes([]Life{{0, time.Second, false}, {time.Second, time.Second, true}}, start, 1); got.Known() {
		t.Errorf("nobody ended, and %+v", got)
	}
}

func TestMeanLife(t *testing.T) {
	r := func(v float64) drover.Reading { return drover.Reading{Value: v, At: start} }
	if d, ok := MeanLife(r(30), r(0.5)); !ok || d != time.Minute {
		t.Errorf("%v, %v", d, ok)
	}
	for _, c := range [][2]drover.Reading{{r(30), r(0)}, {r(30), {}}, {{}, r(1)}, {r(1e300), r(1e-300)}, {r(math.NaN()), r(1)}} {
		if d, ok := MeanLife(c[0], c[1]); ok {
			t.Errorf("%+v gives %v", c, d)
		}
	}
}

func TestHours(t *testing.T) {
	var week []drover.LinkHour
	known := func(v float64) drover.Reading { return drover.Reading{Value: v, At: start} }
	for i := range 3 * drover.HoursOfWeek {
		at := start.Add(time.Duration(i) * 5 * time.Hour)
		week = Hours(week, at, float64(drover.HourOfWeek(at)), known(0.5), drover.Reading{})
	}
	if len(week) != drover.HoursOfWeek {
		t.Fatalf("%d hours", len(week))
	}
	for i, h := range week {
		if h.Hour != i || h.RTTMillis != float64(i) || h.LossShare != 0.5 || h.FreeBPS != 0 || h.Samples != 3 {
			t.Fatalf("hour %d: %+v", i, h)
		}
	}
	// After many more of another value the old ones are as good as forgotten.
	for range 10 * HourSamples {
		week = Hours(week, start, 1000, drover.Reading{}, known(1e6))
	}
	if h := week[drover.HourOfWeek(start)]; math.Abs(h.RTTMillis-1000) > 1 || h.LossShare != 0.5 {
		t.Errorf("%+v", h)
	}
}
