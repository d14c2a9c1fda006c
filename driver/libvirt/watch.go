package libvirt

import (
	"context"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover/driver"
)

// watchedEvents are the events that mean that an observation may have become
// stale.
var watchedEvents = []golibvirt.DomainEventID{
	golibvirt.DomainEventIDLifecycle,
	golibvirt.DomainEventIDMetadataChange,
	golibvirt.DomainEventIDDiskChange,
	golibvirt.DomainEventIDDeviceAdded,
	golibvirt.DomainEventIDDeviceRemoved,
}

// Watch sends events from a connection of its own, so that its end needs no
// answer from a manager that may be hung.
func (h *Hypervisor) Watch(ctx context.Context) (<-chan driver.VMEvent, error) {
	const op = "watch vms"
	c, err := h.connect(ctx)
	if err != nil {
		return nil, wrap(op, err)
	}
	streams, err := do(ctx, c, callLimit, func(rpc *golibvirt.Libvirt) ([]<-chan any, error) {
		var streams []<-chan any
		for _, id := range watchedEvents {
			// The subscription ends with the connection: that is certain,
			// where canceling it needs the manager's answer.
			stream, err := rpc.SubscribeEvents(context.WithoutCancel(ctx), id, nil)
			if err != nil {
				return nil, err
			}
			streams = append(streams, stream)
		}
		return streams, nil
	})
	if err != nil {
		h.release(c)
		return nil, wrap(op, err)
	}
	latest := newLatest()
	var readers sync.WaitGroup
	for _, stream := range streams {
		readers.Go(func() {
			for raw := range stream {
				if event, ok := translateEvent(raw); ok {
					latest.put(event)
				}
			}
		})
	}
	out := make(chan driver.VMEvent)
	c.calls.Go(func() {
		defer close(out)
		defer readers.Wait()
		defer h.forget(c)
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.sock.gone:
				return
			case <-latest.some:
			}
			for event, ok := latest.take(); ok; event, ok = latest.take() {
				select {
				case out <- event:
				case <-ctx.Done():
					return
				case <-c.sock.gone:
					return
				}
			}
		}
	})
	return out, nil
}

// latest keeps the newest event of each VM in the order in which they came,
// so that a slow reader costs a bounded amount of memory.
type latest struct {
	some   chan struct{} // holds a token when there may be an event
	mu     sync.Mutex
	order  []string
	events map[string]driver.VMEvent
}

func newLatest() *latest {
	return &latest{some: make(chan struct{}, 1), events: map[string]driver.VMEvent{}}
}

func (l *latest) put(event driver.VMEvent) {
	l.mu.Lock()
	if _, waiting := l.events[event.Name]; !waiting {
		l.order = append(l.order, event.Name)
	}
	l.events[event.Name] = event
	l.mu.Unlock()
	select {
	case l.some <- struct{}{}:
	default:
	}
}

func (l *latest) take() (driver.VMEvent, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.order) == 0 {
		return driver.VMEvent{}, false
	}
	name := l.order[0]
	l.order = l.order[1:]
	event := l.events[name]
	delete(l.events, name)
	return event, true
}

func translateEvent(raw any) (driver.VMEvent, bool) {
	event := driver.VMEvent{What: "changed", At: time.Now()}
	switch e := raw.(type) {
	case *golibvirt.DomainEventCallbackLifecycleMsg:
		event.Name = e.Msg.Dom.Name
		event.What = lifecycleText(golibvirt.DomainEventType(e.Msg.Event), e.Msg.Detail)
	case *golibvirt.DomainEventCallbackMetadataChangeMsg:
		event.Name = e.Dom.Name
	case *golibvirt.DomainEventCallbackDiskChangeMsg:
		event.Name = e.Msg.Dom.Name
	case *golibvirt.DomainEventCallbackDeviceAddedMsg:
		event.Name = e.Dom.Name
	case *golibvirt.DomainEventCallbackDeviceRemovedMsg:
		event.Name = e.Msg.Dom.Name
	default:
		return event, false
	}
	return event, true
}

func lifecycleText(what golibvirt.DomainEventType, detail int32) string {
	switch what {
	case golibvirt.DomainEventDefined:
		return "defined"
	case golibvirt.DomainEventUndefined:
		return "undefined"
	case golibvirt.DomainEventStarted:
		return "started"
	case golibvirt.DomainEventSuspended, golibvirt.DomainEventPmsuspended:
		return "suspended"
	case golibvirt.DomainEventResumed:
		return "resumed"
	case golibvirt.DomainEventStopped:
		if golibvirt.DomainEventStoppedDetailType(detail) == golibvirt.DomainEventStoppedMigrated {
			return "migrated"
		}
		return "stopped"
	case golibvirt.DomainEventShutdown, golibvirt.DomainEventCrashed:
		return "stopped"
	}
	return "changed"
}
