package reduce

import "context"

// Channel carries messages in order, each exactly once, with back-pressure; the bundle's channels are
// such. Send and Receive may be called by one goroutine each at a time.
type Channel interface {
	// Send copies the payload, of 1 MiB at most, and returns when there was room for it.
	Send(ctx context.Context, kind uint8, payload []byte) error
	// Receive returns the next message, io.EOF after the far CloseSend.
	Receive(ctx context.Context) (Message, error)
	// Drain returns when everything sent has been released at the far end.
	Drain(ctx context.Context) error
	// CloseSend says that no more will be sent.
	CloseSend() error
}

// Message is a message received.
type Message struct {
	Kind    uint8
	Payload []byte
	// Release says that the payload is not used any more, and opens the sender's window.
	Release func()
}

// The kinds of messages of a memory stream.
const (
	// KindBatch is a batch; on the memory channel.
	KindBatch uint8 = 1 + iota
	// KindAbort says why this end gives up, as text; on the memory channel from the sender, on the fill channel
	// from the receiver.
	KindAbort
	// KindMiss asks for blocks; on the fill channel, to the sender.
	KindMiss
	// KindApplied is the number of a batch, as a uvarint: it and all before it are complete at the
	// receiver; on the fill channel, to the sender.
	KindApplied
	// KindFill brings blocks; on the fill channel, to the receiver.
	KindFill
	// KindReturn is bytes from the destination's QEMU to the source's; on the return channel.
	KindReturn
)
