package frame

import (
	"encoding/binary"

	"github.com/drover-vm/drover"
)

const (
	// MaxAckConns and MaxAckChannels bound the entries of one ack.
	MaxAckConns    = 64
	MaxAckChannels = 512

	ackHead     = 8
	ackEntry    = 16
	maxAckBytes = ackHead + (MaxAckConns+MaxAckChannels)*ackEntry
)

// Count is one entry of an ack: a connection's counted frames or a channel's
// consumed bytes, from the beginning.
type Count struct {
	ID    uint32
	Value uint64
}

// AppendAck appends an ack's payload to b. There are at most MaxAckConns and
// MaxAckChannels entries.
func AppendAck(b []byte, conns, channels []Count) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(conns)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(channels)))
	b = binary.BigEndian.AppendUint32(b, 0)
	for _, list := range [2][]Count{conns, channels} {
		for _, c := range list {
			b = binary.BigEndian.AppendUint32(b, c.ID)
			b = binary.BigEndian.AppendUint32(b, 0)
			b = binary.BigEndian.AppendUint64(b, c.Value)
		}
	}
	return b
}

// ParseAck calls conn and channel for the entries of an ack's payload. It calls
// neither unless the whole payload is well formed; else it gives
// drover.Invalid.
func ParseAck(b []byte, conn, channel func(Count) error) error {
	const op = "wan ack"
	if len(b) < ackHead || binary.BigEndian.Uint32(b[4:]) != 0 {
		return drover.Errorf(drover.Invalid, op, "payload of %d bytes, want at least %d", len(b), ackHead)
	}
	n, m := int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	if n > MaxAckConns || m > MaxAckChannels || len(b) != ackHead+(n+m)*ackEntry {
		return drover.Errorf(drover.Invalid, op, "%d and %d entries in %d bytes", n, m, len(b))
	}
	b = b[ackHead:]
	for i := range n + m {
		e := b[i*ackEntry:]
		if binary.BigEndian.Uint32(e) == 0 || binary.BigEndian.Uint32(e[4:]) != 0 {
			return drover.Errorf(drover.Invalid, op, "entry %d is %x", i, e[:8])
		}
	}
	for i := range n + m {
		e := b[i*ackEntry:]
		c := Count{binary.BigEndian.Uint32(e), binary.BigEndian.Uint64(e[8:])}
		use := conn
		if i >= n {
			use = channel
		}
		if err := use(c); err != nil {
			return err
		}
	}
	return nil
}
