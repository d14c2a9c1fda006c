package trial

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/guest/journal"
)

// Load is a guest at work: it dirties memory and writes to its disk, and
// every acknowledged write is recorded outside the guest.
type Load struct {
	boot   journal.ID
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	guest *control.Client
	acks  journal.Acks
	err   error
}

// ackRetry is how long the recorder waits before it asks again after the
// stream broke, as it does when the guest reboots.
const ackRetry = 500 * time.Millisecond

// StartLoad has the guest dirty memory and write to its disk. Zero rates leave
// the respective writer off.
func StartLoad(ctx context.Context, guest *control.Client, mem control.Memory, disk control.Disk) (*Load, error) {
	stats, err := guest.Stats(ctx)
	if err != nil {
		return nil, err
	}
	if mem.RateBytesPerS > 0 {
		if err := guest.StartMemory(ctx, mem); err != nil {
			return nil, err
		}
	}
	if disk.RateBytesPerS > 0 {
		if err := guest.StartDisk(ctx, disk); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &Load{guest: guest, boot: stats.BootID, cancel: cancel, done: make(chan struct{})}
	go l.record(ctx)
	return l, nil
}

func (l *Load) record(ctx context.Context) {
	defer close(l.done)
	var next uint64
	for ctx.Err() == nil {
		err := l.at().Acks(ctx, next, func(a journal.Ack) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			if err := l.acks.Add(a); err != nil {
				l.err = errors.Join(l.err, err)
				return err
			}
			next = a.Seq + 1
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		_ = err // the stream breaks when the guest reboots; what was acknowledged stays recorded
		select {
		case <-ctx.Done():
		case <-time.After(ackRetry):
		}
	}
}

// Acked is how many acknowledged writes were recorded so far.
func (l *Load) Acked() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks.Count()
}

// At says that the guest is reached elsewhere from now on.
func (l *Load) At(guest *control.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guest = guest
}

func (l *Load) at() *control.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guest
}

// End ends the recording and leaves the guest at work. To end it again does
// nothing.
func (l *Load) End() {
	l.cancel()
	<-l.done
}

// Stop ends the writers and the recording and returns what was acknowledged.
func (l *Load) Stop(ctx context.Context) (journal.Acks, error) {
	err := errors.Join(l.at().StopMemory(ctx), l.at().StopDisk(ctx))
	l.End()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks, errors.Join(err, l.err)
}

// SameBoot reports an error when the guest has booted since the load began: a
// live move must not be a restart in disguise.
func (l *Load) SameBoot(ctx context.Context) error {
	stats, err := l.at().Stats(ctx)
	if err != nil {
		return err
	}
	if stats.BootID != l.boot {
		return fmt.Errorf("the guest has booted since: boot %s, was %s", stats.BootID, l.boot)
	}
	return nil
}
