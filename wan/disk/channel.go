package disk

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/drover-vm/drover"
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

// Missing compares what was acknowledged at the source (Source.Positions) with
// what was applied at the destination (Target.Positions), and returns an error
// of drover.Refused that names the disks that differ: the VM may not run at the
// destination then. Exports that are at the destination only had nothing
// written.
func Missing(acknowledged, applied map[string]Position) error {
	var differ []string
	for _, name := range slices.Sorted(maps.Keys(acknowledged)) {
		if a, b := acknowledged[name], applied[name]; a != b {
			differ = append(differ, fmt.Sprintf("%s has %d of %d writes (%d of %d bytes)", name, b.Operations, a.Operations, b.Bytes, a.Bytes))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(applied)) {
		if _, known := acknowledged[name]; !known && applied[name] != (Position{}) {
			differ = append(differ, name+" was not written to by this source")
		}
	}
	if len(differ) == 0 {
		return nil
	}
	return drover.Errorf(drover.Refused, "compare disks", "%v", differ)
}
