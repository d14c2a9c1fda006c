package wireguard

import (
	"golang.zx2c4.com/wireguard/conn"
)

// bind is WireGuard's sockets, with two differences: they are made in the driver's
// network namespace, whichever thread asks; and datagrams above the WAN's MTU
// are sent one by one. In a batch, the kernel would be asked to cut them itself
// (UDP_SEGMENT), which it refuses for pieces that need fragments.
type bind struct {
	conn.Bind
	whole4, whole6 int // the largest payloads that are sent whole
	within         func(func() error) error
}

// Headers outside of a datagram's payload.
const (
	ip4Header, ip6Header, udpHeader = 20, 40, 8
)

func newBind(wanMTU int, within func(func() error) error) *bind {
	return &bind{
		Bind:   conn.NewDefaultBind(),
		whole4: wanMTU - ip4Header - udpHeader,
		whole6: wanMTU - ip6Header - udpHeader,
		within: within,
	}
}

// Open makes the sockets.
func (b *bind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = b.within(func() (err error) {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}

// Send sends runs of datagrams that fit as batches, and others one by one, in order.
func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	whole := b.whole4
	if ep.DstIP().Is6() && !ep.DstIP().Is4In6() {
		whole = b.whole6
	}
	for start := 0; start < len(bufs); {
		end := start + 1
		for len(bufs[start]) <= whole && end < len(bufs) && len(bufs[end]) <= whole {
			end++
		}
		if err := b.Bind.Send(bufs[start:end], ep); err != nil {
			return err
		}
		start = end
	}
	return nil
}
