package bundle

import "time"

// Stats are a bundle's figures at one end, from its beginning.
type Stats struct {
	// Sent and Received are payload bytes by class, without what was sent again.
	Sent, Received [classes]int64
	// WireSent and WireReceived are bytes below TLS where connections count
	// them (see WireCounter), else above. TCP, IP and handshakes before the
	// hello of connections that do not count are not in them.
	WireSent, WireReceived int64
	// Resent are bytes that were sent again after a connection died.
	Resent int64
	// Corrupt and Violations are connections dropped because bytes were not what
	// was sent, or because the far end broke the protocol.
	Corrupt, Violations int64
	// Lost and Connections are connections that died, and that ever joined; Now
	// are those up.
	Lost, Connections int64
	Now               int
	// Cuts are times without any connection, CutTime their sum, the present one
	// included; the wait for the first connection is in CutTime only.
	Cuts    int64
	CutTime time.Duration
	// RTT is the shortest of the connections' last round trips.
	RTT time.Duration
	// Rate is what the far end received in the last second, bytes per second.
	Rate int64
	// Unacknowledged are messages on their way; Unsent are bytes that no
	// connection has taken yet.
	Unacknowledged int
	Unsent         int64
}

// counters are what Stats is made of, guarded by Bundle.mu.
type counters struct {
	sent, received         [classes]int64
	wireSent, wireReceived int64 // of connections that are gone
	resent                 int64
	corrupt, violations    int64
	lost, connections      int64
	cuts                   int64
	rtt                    time.Duration
	acked, ackedBefore     int64
	ring                   [int(time.Second / tick)]int64
	at                     int
	rate, peak             int64
}

// bury keeps what a connection has counted.
func (s *counters) bury(l *link) {
	s.wireSent += l.wire.WireSent()
	s.wireReceived += l.wire.WireReceived()
}

// Stats may be called at any time.
func (b *Bundle) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.stats
	out := Stats{
		Sent: s.sent, Received: s.received, WireSent: s.wireSent, WireReceived: s.wireReceived,
		Resent: s.resent, Corrupt: s.corrupt, Violations: s.violations,
		Lost: s.lost, Connections: s.connections, Now: len(b.links),
		Cuts: s.cuts, CutTime: b.cut.total, RTT: s.rtt, Rate: s.rate, Unacknowledged: b.unacked,
	}
	if b.cut.is {
		out.CutTime += b.now() - b.cut.since
	}
	for _, l := range b.links {
		out.WireSent += l.wire.WireSent()
		out.WireReceived += l.wire.WireReceived()
	}
	for _, c := range b.channels {
		out.Unsent += int64(c.unsent)
	}
	return out
}
