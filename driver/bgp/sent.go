package bgp

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// GoBGP's messages that are read here, and their attributes. It has no event
// for an UPDATE that was written to a connection, only a count and this message
// of its log, and a count cannot tell which routes were in it. If another
// version says it otherwise, no Announce is ever confirmed, and every test
// against a real router fails.
const (
	sentMessage     = "sent update"
	sentNLRI        = "nlri"
	sentWithdrawals = "withdrawals"
	sentAttributes  = "attributes"
	closedMessage   = "outgoing connection IO error"
	neighborKey     = "Key"
	errorKey        = "Error"
	codeKey         = "Code"
	subcodeKey      = "Subcode"
)

// sentHandler is GoBGP's log: it makes events of what was sent and of what
// keeps a session from coming up, and passes warnings on.
type sentHandler struct {
	child    *child
	neighbor netip.Addr // of the logger, when it has one
}

// Enabled is true for all: the message that matters is one for debugging.
func (h *sentHandler) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs notes the neighbour that a logger is for.
func (h *sentHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	for _, a := range attrs {
		if a.Key == neighborKey {
			n.neighbor, _ = netip.ParseAddr(a.Value.String())
		}
	}
	return &n
}

// WithGroup is not used by GoBGP.
func (h *sentHandler) WithGroup(string) slog.Handler { return h }

// Handle makes the events.
func (h *sentHandler) Handle(_ context.Context, r slog.Record) error {
	if h.neighbor.IsValid() {
		if r.Message == sentMessage {
			h.sent(r)
			return nil
		}
		if text := faultOf(r); text != "" {
			h.child.emit(event{Fault: &faultEvent{Neighbor: h.neighbor, Text: text}})
		}
	}
	if r.Level >= slog.LevelWarn {
		h.child.emit(event{Log: &logEvent{Level: int(r.Level), Text: h.line(r)}})
	}
	return nil
}

func (h *sentHandler) sent(r slog.Record) {
	s := &sentEvent{Neighbor: h.neighbor}
	r.Attrs(func(a slog.Attr) bool {
		switch v := a.Value.Any().(type) {
		case []wire.PathNLRI:
			if a.Key == sentNLRI {
				s.Announced = appendPrefixes(s.Announced, v)
			} else if a.Key == sentWithdrawals {
				s.Withdrawn = appendPrefixes(s.Withdrawn, v)
			}
		case []wire.PathAttributeInterface:
			for _, attr := range v {
				switch attr := attr.(type) {
				case *wire.PathAttributeMpReachNLRI:
					s.Announced = appendPrefixes(s.Announced, attr.Value)
				case *wire.PathAttributeMpUnreachNLRI:
					s.Withdrawn = appendPrefixes(s.Withdrawn, attr.Value)
				}
			}
		}
		return true
	})
	if len(s.Announced)+len(s.Withdrawn) > 0 { // an end-of-RIB has none
		h.child.emit(event{Sent: s})
	}
}

func appendPrefixes(to []netip.Prefix, nlris []wire.PathNLRI) []netip.Prefix {
	to = slices.Grow(to, len(nlris))
	for _, n := range nlris {
		if p, ok := n.NLRI.(*wire.IPAddrPrefix); ok {
			to = append(to, p.Prefix)
		}
	}
	return to
}

// faultOf is what a message says about why a session is not there, if it does.
func faultOf(r slog.Record) string {
	if r.Message == closedMessage {
		return "the router closes the connection, it may not know the edge"
	}
	var cause, code string
	var number, sub int64 = -1, 0
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case errorKey:
			cause = a.Value.String()
		case codeKey:
			number = a.Value.Int64()
		case subcodeKey:
			sub = a.Value.Int64()
		}
		return true
	})
	switch {
	case number == wire.BGP_ERROR_FSM_ERROR:
		return refused
	case number >= 0:
		code = wire.NewNotificationErrorCode(uint8(number), uint8(sub)).String()
	}
	switch {
	case code != "":
		return r.Message + ": " + code
	case cause != "":
		return r.Message + ": " + cause
	}
	return ""
}

// line is a message with its attributes, for the agent's log.
func (h *sentHandler) line(r slog.Record) string {
	var b strings.Builder
	b.WriteString(r.Message)
	if h.neighbor.IsValid() {
		b.WriteString(" neighbor=" + h.neighbor.String())
	}
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(" " + a.String())
		return true
	})
	return b.String()
}
