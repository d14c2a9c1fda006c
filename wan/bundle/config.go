package bundle

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

const (
	// DefaultConns: with four, a loss on one leaves three quarters of the rate,
	// and a kernel's usual 4 MiB of send buffer each are enough for 1 Gbit/s at
	// 100 ms. More of them cost memory and fairness.
	DefaultConns = 4
	// maxConns bounds what a configuration may ask for, maxAttached what an
	// acceptor holds: after a cut, new connections come before the old ones are
	// known to be dead.
	maxConns    = 32
	maxAttached = 4 * maxConns
	// DefaultCutLimit is how long a bundle without a connection lives.
	DefaultCutLimit = 5 * time.Minute
	// DefaultWindow of each channel: 1 Gbit/s at 100 ms is 12.5 MB under way;
	// the rest is for frames that wait for one that was lost.
	DefaultWindow = 16 << 20
	// minBundleWindow leaves room for a few messages of any length.
	minBundleWindow = 4 * (frame.MaxMessage + frame.MessageOverhead)
	// maxWindow is what a hello can say.
	maxWindow = 1 << 31
	// maxChannels bounds those open at once; a move has some ten.
	maxChannels = 256
)

// Config is one end's.
type Config struct {
	// Dial makes a connection to the acceptor, TLS and all, ready for the
	// hello. Initiate needs it.
	Dial func(ctx context.Context) (net.Conn, error)
	// Token names the session: the hello says it, and Attach compares.
	Token []byte
	// Conns is how many connections the initiator holds; zero is DefaultConns.
	Conns int
	// CutLimit is how long the bundle waits without any connection before it
	// fails; zero is DefaultCutLimit.
	CutLimit time.Duration
	// Window is what this end holds of each channel that was not released, in
	// bytes; zero is DefaultWindow. All channels together have three times that.
	Window int
	// Rate limits what this end sends; zero is unlimited. See SetRate.
	Rate drover.BitRate
	// Gate is shared by the bundles of a process; nil is a gate of its own.
	Gate *Gate
	// Log is told of connections that come and go; nil discards.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	const op = "wan bundle"
	if c.Conns == 0 {
		c.Conns = DefaultConns
	}
	if c.CutLimit == 0 {
		c.CutLimit = DefaultCutLimit
	}
	if c.Window == 0 {
		c.Window = DefaultWindow
	}
	if c.Gate == nil {
		c.Gate = NewGate()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Token = bytes.Clone(c.Token)
	switch {
	case len(c.Token) < frame.MinToken || len(c.Token) > frame.MaxToken:
		return c, drover.Errorf(drover.Invalid, op, "token of %d bytes, want %d to %d", len(c.Token), frame.MinToken, frame.MaxToken)
	case c.Conns < 1 || c.Conns > maxConns:
		return c, drover.Errorf(drover.Invalid, op, "%d connections, want 1 to %d", c.Conns, maxConns)
	case c.CutLimit < 0:
		return c, drover.Errorf(drover.Invalid, op, "cut limit of %s, want more than none", c.CutLimit)
	case c.Window < 0 || c.Window > maxWindow/3:
		return c, drover.Errorf(drover.Invalid, op, "window of %d bytes, want 1 to %d", c.Window, maxWindow/3)
	case c.Rate < 0:
		return c, drover.Errorf(drover.Invalid, op, "rate of %d bit/s, want 0 or more", c.Rate)
	}
	return c, nil
}

// windows are what this end tells the other.
func (c *Config) windows() frame.Windows {
	return frame.Windows{Channel: uint32(c.Window), Bundle: uint32(max(3*c.Window, minBundleWindow))}
}
