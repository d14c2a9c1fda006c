package disk

import (
	"context"

	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/chunk"
)

// blockBytes is the unit in which disks are compared.
const blockBytes = chunk.BlockBytes

// Channel is one disk's path to the other agent and back: a channel of package
// bundle, or a pair in memory. Messages arrive in order and exactly once, or
// the channel fails. Send and Receive may be called concurrently with each
// other, each by one goroutine at a time.
type Channel interface {
	// Send queues a message of at most 1 MiB, which it copies. It waits while
	// the receiver's window is closed.
	Send(ctx context.Context, kind uint8, payload []byte) error
	// Receive returns the next message. Its payload is the caller's until
	// release, which must be called. io.EOF means that the other end has sent
	// its last.
	Receive(ctx context.Context) (kind uint8, payload []byte, release func(), err error)
	// CloseSend says that nothing more will be sent.
	CloseSend() error
	// Close gives the channel up. What was sent before a CloseSend still
	// arrives.
	Close()
}

// Over makes a Channel of one of a bundle.
func Over(c *bundle.Channel) Channel { return overBundle{c} }

type overBundle struct{ *bundle.Channel }

func (c overBundle) Receive(ctx context.Context) (uint8, []byte, func(), error) {
	m, err := c.Channel.Receive(ctx)
	if err != nil {
		return 0, nil, nil, err
	}
	return m.Kind, m.Payload, m.Release, nil
}

// Position is how far a disk has come: of a Source, what the hypervisor has been
// told is written; of a Target, what has been applied. Bytes are those of the
// disk.
type Position struct {
	Operations uint64
	Bytes      uint64
}
