package executor

import (
	"context"

	"github.com/drover-vm/drover"
)

// Watch sends the move as it is, and again when it has changed, progress
// included. A slow reader misses some, never the last. The channel is closed
// after the final state, when ctx ends, or when the executor is closed.
//
// A move that is carried out elsewhere is followed through the journal, which
// has no progress. drover.NotFound: there is none of that name.
func (e *Executor) Watch(ctx context.Context, name string) (<-chan drover.Move, error) {
	out := make(chan drover.Move)
	if w := e.worker(name); w != nil {
		return out, e.watching(ctx, name, func(ctx context.Context) { w.follow(ctx, out) }, out)
	}
	rec, err := e.journal.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return out, e.watching(ctx, name, func(ctx context.Context) {
		if !send(ctx, out, rec.Move) || rec.Move.State.Final() {
			return
		}
		for r, err := range e.journal.Watch(ctx, rec.Revision) {
			if err != nil {
				e.log.WarnContext(ctx, "move is not watched any more", "move", name, "error", err)
				return
			}
			if r.Move.Name == name && (!send(ctx, out, r.Move) || r.Move.State.Final()) {
				return
			}
		}
	}, out)
}

// watching runs f with a context that ends with ctx and with the executor.
func (e *Executor) watching(ctx context.Context, name string, f func(context.Context), out chan drover.Move) error {
	ok := e.goOn(func() {
		defer close(out)
		ctx, stop := until(ctx, e.life.Done())
		defer stop()
		f(ctx)
	})
	if !ok {
		return errClosed("watch move " + name)
	}
	return nil
}

// follow sends the move at each change, the newest only.
func (w *worker) follow(ctx context.Context, out chan<- drover.Move) {
	over := w.over
	for {
		m, changed := w.watch()
		for sent := false; !sent; {
			select {
			case out <- m:
				sent = true
			case <-changed:
				m, changed = w.watch()
			case <-ctx.Done():
				return
			}
		}
		if m.State.Final() || over == nil {
			return
		}
		select {
		case <-changed:
		case <-over:
			over = nil // once more, for what changed last
			if now, _ := w.watch(); now.State == m.State {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func send(ctx context.Context, out chan<- drover.Move, m drover.Move) bool {
	select {
	case out <- m:
		return true
	case <-ctx.Done():
		return false
	}
}
