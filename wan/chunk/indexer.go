package chunk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/drover-vm/drover"
)

const (
	// maxIndexAttempts bounds the tries to catalogue a source; registering it
	// again begins anew.
	maxIndexAttempts = 3
	// indexRetryWait passes between them: an image may be busy for a while.
	indexRetryWait = 30 * time.Second
	// samples of a catalogue found at start are compared with the content. If
	// a tenth of the content has changed, 16 samples miss it in one of five
	// cases, and then a tenth of the references miss, too.
	samples = 16
)

// catalogueState is what is known of an entry's catalogue. Library.mu guards it.
type catalogueState struct {
	ready    *Catalogue // nil: not there, or not to be trusted yet
	found    bool       // a file is there from an earlier run: to be checked
	at       int64      // blocks looked at
	bytes    int64      // of the file
	attempts int
	retry    time.Time
	failed   bool
}

// indexJob is what the indexer does now.
type indexJob struct {
	entry  *entry
	cancel context.CancelFunc
	done   chan struct{} // closed when the source is not open any more
}

// errContent says that a source is not what its catalogue says.
var errContent = errors.New("the content is not what was catalogued")

// errYield ends the indexing of a source for one that somebody waits for. It
// goes on later where it was.
var errYield = errors.New("another source is waited for")

// errGone ends the indexing of a source that has been removed meanwhile.
var errGone = errors.New("the source is gone")

// Run makes catalogues until ctx ends, one source at a time, images first, no
// faster than IndexRate and not while moves are under way (Pause), save for
// those that somebody waits for (WaitIndexed). It must run
// once at a time; another gives drover.Refused. It returns nil when ctx ends.
func (l *Library) Run(ctx context.Context) error {
	if !l.running.TryLock() {
		return drover.Errorf(drover.Refused, "run indexer", "it runs already")
	}
	defer l.running.Unlock()
	for ctx.Err() == nil {
		e, wait, changed := l.nextJob()
		if e != nil {
			l.index(ctx, e)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// nextJob returns the source to index next, or how long to wait for one.
func (l *Library) nextJob() (job *entry, wait time.Duration, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	wait = time.Hour // or until something changes
	for _, e := range l.entries {
		c := &e.catalogue
		if c.ready != nil || c.failed {
			continue
		}
		if d := c.retry.Sub(now); d > 0 {
			wait = min(wait, d)
		} else if job == nil || e.before(job) {
			job = e
		}
	}
	return job, wait, l.changed
}

// before says which of two sources is indexed first: one that somebody waits
// for; one whose catalogue has
// only to be checked; then by kind, since images help every VM; then as they
// came.
func (e *entry) before(o *entry) bool {
	switch {
	case (e.wanted > 0) != (o.wanted > 0):
		return e.wanted > 0
	case e.catalogue.found != o.catalogue.found:
		return e.catalogue.found
	case e.source.Kind != o.source.Kind:
		return e.source.Kind < o.source.Kind
	default:
		return e.seq < o.seq
	}
}

// index gets one source its catalogue: the one that is there, when it passes
// the check, or a new one.
func (l *Library) index(ctx context.Context, e *entry) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	l.mu.Lock()
	l.job = &indexJob{entry: e, cancel: cancel, done: done}
	l.mu.Unlock()
	defer func() {
		cancel()
		unlock := l.lockFiles()
		l.mu.Lock()
		l.job = nil
		if l.entries[e.source.ID] == nil { // a part begun while it was removed
			_ = os.Remove(l.cataloguePath(e.source.ID) + partSuffix)
		}
		l.mu.Unlock()
		unlock()
		close(done)
	}()
	if e.catalogue.found { // written by this goroutine or before it was listed
		c, err := l.checkFound(ctx, e)
		switch kind := drover.KindOf(err); {
		case err == nil:
			l.finishIndex(e, c)
		case ctx.Err() != nil:
		case kind == drover.Corrupt, kind == drover.NotFound, errors.Is(err, errContent):
			l.rejectFound(e, err)
		default:
			l.putOff(e, err)
		}
		return
	}
	if err := l.build(ctx, e); err != nil && ctx.Err() == nil && !errors.Is(err, errGone) && !errors.Is(err, errYield) {
		l.putOff(e, err)
	}
}

// putOff notes that a try failed for a reason that may pass.
func (l *Library) putOff(e *entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &e.catalogue
	c.attempts++
	c.failed = c.attempts >= maxIndexAttempts
	c.retry = time.Now().Add(l.retryWait)
	l.log.Warn("catalogue not made", "source", e.source.ID, "kind", e.source.Kind, "attempt", c.attempts, "gives up", c.failed, "error", err)
	l.note()
}

func (l *Library) header(e *entry) catHeader {
	return catHeader{id: e.source.ID, kind: e.source.Kind, blocks: e.source.Blocks, stamp: e.stamp}
}

// checkFound reads all of a catalogue of an earlier run, and compares a few
// blocks of it with the content.
func (l *Library) checkFound(ctx context.Context, e *entry) (*Catalogue, error) {
	c, err := OpenCatalogue(l.cataloguePath(e.source.ID))
	if err != nil {
		return nil, err
	}
	if c.head != l.header(e) {
		return nil, drover.Errorf(drover.Corrupt, "check catalogue", "it is of another content")
	}
	type sample struct {
		block int64
		fp    Fingerprint
	}
	var picked [samples]sample
	var seen int64
	err = c.Each(ctx, func(first int64, fps []Fingerprint) error {
		for i, fp := range fps {
			if fp == 0 {
				continue
			}
			// Reservoir sampling: every block is as likely as the others.
			at := seen
			if seen >= samples {
				at = rand.Int64N(seen + 1)
			}
			if at < samples {
				picked[at] = sample{first + int64(i), fp}
			}
			seen++
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r, err := l.openReader(ctx, e)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var buf [BlockBytes]byte
	for _, s := range picked[:min(seen, samples)] {
		if err := readPadded(r, r.Size(), buf[:], s.block*BlockBytes); err != nil {
			return nil, err
		}
		if FingerprintOf(buf[:]) != s.fp {
			return nil, fmt.Errorf("block %d: %w", s.block, errContent)
		}
	}
	return c, nil
}

// rejectFound gets rid of a catalogue that failed its check. A memory whose
// content differs from its catalogue did not survive a crash, and goes too: at
// the other end its id means what it was.
func (l *Library) rejectFound(e *entry, why error) {
	l.log.Warn("a catalogue is not usable", "source", e.source.ID, "kind", e.source.Kind, "error", why)
	unlock := l.lockFiles()
	defer unlock()
	l.mu.Lock()
	current := l.entries[e.source.ID] == e
	e.catalogue = catalogueState{}
	var drop dropList
	if current && e.source.Kind == KindMemory && errors.Is(why, errContent) {
		drop = l.drop(e.source.ID)
	}
	l.note()
	l.mu.Unlock()
	if current {
		os.Remove(l.cataloguePath(e.source.ID))
	}
	if err := drop.run(); err != nil {
		l.log.Warn("a memory that did not survive could not be removed", "source", e.source.ID, "error", err)
	}
}

// build makes the catalogue of a source.
func (l *Library) build(ctx context.Context, e *entry) error {
	r, err := l.openReader(ctx, e)
	if err != nil {
		return err
	}
	defer r.Close()
	path := l.cataloguePath(e.source.ID)
	c, err := BuildCatalogue(ctx, path, e.source, r, BuildOptions{
		Rate: l.options.IndexRate, Stamp: e.stamp,
		Hurry: func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return e.wanted > 0
		},
		Wait: func(ctx context.Context) error { return l.awaitTurn(ctx, e) },
		Progress: func(block int64) {
			l.mu.Lock()
			e.catalogue.at = block
			l.mu.Unlock()
		},
	})
	if err != nil {
		return err
	}
	l.finishIndex(e, c)
	return nil
}

// awaitTurn returns when no move is under way, or somebody waits for the source.
func (l *Library) awaitTurn(ctx context.Context, e *entry) error {
	for {
		l.mu.Lock()
		paused, gone, changed := l.paused > 0 && e.wanted == 0, l.entries[e.source.ID] != e, l.changed
		yield := e.wanted == 0 && l.waitedFor()
		l.mu.Unlock()
		switch {
		case gone:
			return errGone
		case yield:
			return errYield
		}
		if !paused {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// waitedFor reports whether somebody waits for a source that can be indexed
// now. Library.mu is held.
func (l *Library) waitedFor() bool {
	for _, e := range l.entries {
		if c := &e.catalogue; e.wanted > 0 && c.ready == nil && !c.failed && !c.retry.After(time.Now()) {
			return true
		}
	}
	return false
}

// finishIndex puts a catalogue to use.
func (l *Library) finishIndex(e *entry, c *Catalogue) {
	var bytes int64
	if fi, err := os.Stat(c.path); err == nil {
		bytes = fi.Size()
	}
	unlock := l.lockFiles()
	defer unlock()
	l.mu.Lock()
	if l.entries[e.source.ID] != e {
		l.mu.Unlock()
		os.Remove(c.path) // removed or replaced while it was catalogued
		return
	}
	c.onCorrupt = func() { l.distrust(e, c) }
	e.catalogue = catalogueState{ready: c, at: e.source.Blocks, bytes: bytes}
	l.note()
	l.mu.Unlock()
	l.log.Info("catalogued", "source", e.source.ID, "kind", e.source.Kind, "blocks", e.source.Blocks, "indexed", c.indexed)
	l.trim()
}

// distrust has a catalogue that turned out damaged made again.
func (l *Library) distrust(e *entry, c *Catalogue) {
	l.log.Warn("a catalogue is damaged and made again", "source", e.source.ID, "kind", e.source.Kind)
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.catalogue.ready == c {
		e.catalogue = catalogueState{}
		l.note()
	}
}

// Catalogue returns a source's catalogue. Errors: drover.NotFound when the
// source is not here or not indexed yet.
func (l *Library) Catalogue(id SourceID) (*Catalogue, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, err := l.catalogue(id)
	if err == nil {
		l.touch(l.entries[id])
	}
	return c, err
}

// Peek is Catalogue for who only looks: the source counts as used no later than
// before, so that looking at all of them keeps none from being evicted.
func (l *Library) Peek(id SourceID) (*Catalogue, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.catalogue(id)
}

// catalogue finds one. mu is held.
func (l *Library) catalogue(id SourceID) (*Catalogue, error) {
	const op = "find catalogue"
	e := l.entries[id]
	switch {
	case e == nil:
		return nil, drover.Errorf(drover.NotFound, op, "source %v", id)
	case e.catalogue.ready == nil:
		return nil, drover.Errorf(drover.NotFound, op, "source %v is not indexed yet", id)
	}
	return e.catalogue.ready, nil
}

// WaitIndexed waits until all the sources have catalogues. They are indexed
// before all others, as fast as the machine can and also while moves are under
// way: one of those waits. Errors: ctx's, drover.NotFound for a source that is not here (any more),
// drover.Unavailable when the indexer has given up on one.
func (l *Library) WaitIndexed(ctx context.Context, ids ...SourceID) error {
	const op = "wait for catalogues"
	l.want(1, ids)
	defer l.want(-1, ids)
	for {
		ready := true
		l.mu.Lock()
		changed := l.changed
		for _, id := range ids {
			e := l.entries[id]
			if e == nil || e.catalogue.failed {
				l.mu.Unlock()
				if e == nil {
					return drover.Errorf(drover.NotFound, op, "source %v", id)
				}
				return drover.Errorf(drover.Unavailable, op, "source %v could not be read", id)
			}
			ready = ready && e.catalogue.ready != nil
		}
		l.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// want counts who waits for the sources.
func (l *Library) want(by int, ids []SourceID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if e := l.entries[id]; e != nil {
			e.wanted = max(0, e.wanted+by) // an entry may have been replaced
		}
	}
	l.note()
}

// Pause stops the indexer while a move is under way; every Pause needs its
// Resume. Moves count.
func (l *Library) Pause() { l.pause(1) }

// Resume ends one Pause.
func (l *Library) Resume() { l.pause(-1) }

func (l *Library) pause(by int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused += by
	l.note()
}
