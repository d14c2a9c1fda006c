package wan

import (
	"context"
	"time"

	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/disk"
	"github.com/drover-vm/drover/wan/reduce"
)

// paced is a disk's channel that tells a controller how long the path took each
// message and what the compressor needed for it.
type paced struct {
	disk.Channel
	level *leveler
}

// Send sends a message.
func (m paced) Send(ctx context.Context, kind uint8, payload []byte) error {
	began := time.Now()
	err := m.Channel.Send(ctx, kind, payload)
	m.level.sent(time.Since(began))
	return err
}

// memoryMessages is a bundle's channel in package reduce's shape.
type memoryMessages struct{ *bundle.Channel }

var _ reduce.Channel = memoryMessages{}

// Receive returns the next message.
func (m memoryMessages) Receive(ctx context.Context) (reduce.Message, error) {
	msg, err := m.Channel.Receive(ctx)
	if err != nil {
		return reduce.Message{}, err
	}
	return reduce.Message{Kind: msg.Kind, Payload: msg.Payload, Release: msg.Release}, nil
}

// leveler chooses the disks' compression: it tells a controller what the
// statistics and the sending say.
type leveler struct {
	*reduce.Controller
	stats *reduce.Stats
	seen  chan int64 // one place: nanoseconds of compression that were told
}

func newLeveler(stats *reduce.Stats) *leveler {
	l := &leveler{
		Controller: reduce.NewController(reduce.LevelS2, reduce.LevelBetter, 1, time.Now), stats: stats, seen: make(chan int64, 1),
	}
	l.seen <- 0
	return l
}

func (l *leveler) sent(took time.Duration) {
	before := <-l.seen
	now := l.stats.CompressNanoseconds.Load()
	l.seen <- now
	l.Compressed(time.Duration(now - before))
	l.Sent(took)
}
