package memory

import (
	"context"

	"github.com/drover-vm/drover/driver"
)

// watch keeps, for one reader, the newest event of each VM in their order.
type watch struct {
	some   chan struct{} // a token when there may be an event
	ended  chan struct{}
	order  []string
	events map[string]driver.VMEvent
}

// Watch sends the names of VMs that changed.
func (h *Hypervisor) Watch(ctx context.Context) (<-chan driver.VMEvent, error) {
	w := &watch{some: make(chan struct{}, 1), ended: make(chan struct{}), events: map[string]driver.VMEvent{}}
	err := h.call(ctx, "watch", "", func() error {
		h.watches = append(h.watches, w)
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make(chan driver.VMEvent)
	go func() {
		defer close(out)
		defer h.unwatch(w)
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.ended:
				return
			case <-w.some:
			}
			for event, ok := h.take(w); ok; event, ok = h.take(w) {
				select {
				case out <- event:
				case <-ctx.Done():
					return
				case <-w.ended:
					return
				}
			}
		}
	}()
	return out, nil
}

// notify puts an event into every watch. The lock is held.
func (h *Hypervisor) notify(name, what string) {
	for _, w := range h.watches {
		if _, waiting := w.events[name]; !waiting {
			w.order = append(w.order, name)
		}
		w.events[name] = driver.VMEvent{Name: name, What: what, At: h.fleet.clock()}
		select {
		case w.some <- struct{}{}:
		default:
		}
	}
}

func (h *Hypervisor) take(w *watch) (driver.VMEvent, bool) {
	h.fleet.mu.Lock()
	defer h.fleet.mu.Unlock()
	if len(w.order) == 0 {
		return driver.VMEvent{}, false
	}
	name := w.order[0]
	w.order = w.order[1:]
	event := w.events[name]
	delete(w.events, name)
	return event, true
}

func (h *Hypervisor) unwatch(w *watch) {
	h.fleet.mu.Lock()
	defer h.fleet.mu.Unlock()
	for i, other := range h.watches {
		if other == w {
			h.watches = append(h.watches[:i:i], h.watches[i+1:]...)
			return
		}
	}
}

// endWatches closes every watch. The lock is held.
func (h *Hypervisor) endWatches() {
	for _, w := range h.watches {
		close(w.ended)
	}
	h.watches = nil
}
