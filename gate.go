package drover

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Gate is what stands between a VM's start at its destination and the moment
// from which there is no way back, in moves that start it anew (warm, cold):
// until it is committed, the source can start the VM again from its own
// disks, without what was written at the destination meanwhile.
type Gate struct {
	// Health is checked once the VM has been started; nil: that it runs.
	Health *HealthCheck `json:"health,omitempty"`
	// Manual waits for an operator's word, however the check ends well.
	Manual bool `json:"manual,omitempty"`
	// OnUnhealthy is what follows a check that fails; empty is UnhealthyReturn.
	OnUnhealthy Unhealthy `json:"on_unhealthy,omitempty"`
}

// Unhealthy is what becomes of a VM that is not well at its destination.
type Unhealthy string

// What becomes of it.
const (
	// UnhealthyReturn takes it back to its source.
	UnhealthyReturn Unhealthy = "return"
	// UnhealthyKeep leaves it running until an operator commits or returns it.
	UnhealthyKeep Unhealthy = "keep"
	// UnhealthyCommit ends the move as if it were well, and says so.
	UnhealthyCommit Unhealthy = "commit"
)

// HealthKind is a way to see whether a VM is well.
type HealthKind string

// The ways.
const (
	// HealthTCP: a connection to Target, "ip:port", is accepted.
	HealthTCP HealthKind = "tcp"
	// HealthHTTP: GET of Target, a URL, is answered with a status from 200 to 399.
	HealthHTTP HealthKind = "http"
	// HealthCommand: a program in the agent's folder of checks, with its
	// arguments after spaces, exits with status 0.
	HealthCommand HealthKind = "command"
)

// HealthCheck says how a VM is seen to be well.
type HealthCheck struct {
	Kind   HealthKind `json:"kind"`
	Target string     `json:"target"`
	// From is the agent that checks; empty: the destination host's.
	From string `json:"from,omitempty"`
	// Limit is how long the VM may take to become well; zero is
	// DefaultHealthLimit.
	Limit time.Duration `json:"limit_ns,omitempty"`
}

const (
	// DefaultHealthLimit is what servers with a database need to boot and start.
	DefaultHealthLimit = 2 * time.Minute
	// MaxHealthLimit: who needs longer waits at a manual gate.
	MaxHealthLimit = 24 * time.Hour
	// maxHealthTarget bounds what is asked for, far above any URL in use.
	maxHealthTarget = 2048
)

// String returns the check as ParseHealth reads it.
func (h HealthCheck) String() string {
	if h.Kind == HealthHTTP {
		return h.Target
	}
	return string(h.Kind) + ":" + h.Target
}

// ParseHealth reads "tcp:PORT", "tcp:IP:PORT", "http://…", "https://…" (also
// with "http:" before it) or "command:NAME ARG…". The address that a port alone
// belongs to is the caller's to fill in; see Complete.
func ParseHealth(s string) (HealthCheck, error) {
	kind, target, _ := strings.Cut(s, ":")
	h := HealthCheck{Kind: HealthKind(kind), Target: target}
	switch {
	case strings.HasPrefix(s, "http://"), strings.HasPrefix(s, "https://"):
		h = HealthCheck{Kind: HealthHTTP, Target: s}
	case h.Kind == HealthTCP || h.Kind == HealthHTTP || h.Kind == HealthCommand:
	default:
		return HealthCheck{}, Errorf(Invalid, "health", "%q: want tcp:PORT, tcp:IP:PORT, http://ADDRESS/PATH or command:NAME", s)
	}
	if h.Kind == HealthTCP && !strings.Contains(target, ":") {
		return h, h.checkPort(target)
	}
	return h, h.Validate()
}

// Complete fills in the VM's address where the check names a port alone.
func (h HealthCheck) Complete(address netip.Addr) (HealthCheck, error) {
	if h.Kind != HealthTCP || strings.Contains(h.Target, ":") {
		return h, nil
	}
	if !address.IsValid() {
		return h, Errorf(Invalid, "health", "tcp:%s: the VM's address is not known: want tcp:IP:PORT", h.Target)
	}
	h.Target = net.JoinHostPort(address.String(), h.Target)
	return h, h.Validate()
}

func (h HealthCheck) checkPort(port string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Errorf(Invalid, "health", "%s: %q is not a port: want 1 to 65535", h.Kind, port)
	}
	return nil
}

// Validate reports what is wrong with a check; the kind is Invalid.
func (h HealthCheck) Validate() error {
	bad := func(format string, args ...any) error { return Errorf(Invalid, "health", format, args...) }
	switch {
	case h.Limit < 0 || h.Limit > MaxHealthLimit:
		return bad("limit %v: want up to %v", h.Limit, MaxHealthLimit)
	case len(h.Target) > maxHealthTarget || strings.ContainsFunc(h.Target, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return bad("%s: want at most %d printable characters", h.Kind, maxHealthTarget)
	}
	if h.From != "" {
		if err := CheckName("health from", h.From); err != nil {
			return err
		}
	}
	switch h.Kind {
	case HealthTCP:
		host, port, err := net.SplitHostPort(h.Target)
		if err != nil {
			return bad("tcp: %q: want IP:PORT", h.Target)
		}
		if _, err := netip.ParseAddr(host); err != nil {
			return bad("tcp: %q is not an address: want IP:PORT", host)
		}
		return h.checkPort(port)
	case HealthHTTP:
		u, err := url.Parse(h.Target)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			return bad("http: %q: want http://ADDRESS/PATH", h.Target)
		}
	case HealthCommand:
		fields := strings.Fields(h.Target)
		if len(fields) == 0 {
			return bad("command: want the name of a program in the agent's folder of checks")
		}
		return CheckName("health command", fields[0])
	default:
		return bad("%q is no way to check: want tcp, http or command", h.Kind)
	}
	return nil
}

// Validate reports what is wrong with a gate; the kind is Invalid.
func (g Gate) Validate() error {
	switch g.OnUnhealthy {
	case "", UnhealthyReturn, UnhealthyKeep, UnhealthyCommit:
	default:
		return Errorf(Invalid, "on-unhealthy", "%q: want return, keep or commit", g.OnUnhealthy)
	}
	if g.Health == nil {
		return nil
	}
	return g.Health.Validate()
}

// GateState is where a move is with its gate.
type GateState string

// The states of a gate.
const (
	GateAhead     GateState = "ahead"     // the VM has not been started yet
	GateChecking  GateState = "checking"  // it has been, and is being checked
	GateWaiting   GateState = "waiting"   // for an operator's word
	GateCommitted GateState = "committed" // there is no way back
	GateReturned  GateState = "returned"  // the VM goes, or went, back
)

// GateRecord is what has become of a move's gate.
type GateRecord struct {
	Gate
	State GateState `json:"state"`
	// Healthy is nil until the check has ended; Detail is what it saw.
	Healthy *bool  `json:"healthy,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// String says it in a few words.
func (g GateRecord) String() string {
	s := string(g.State)
	switch {
	case g.Healthy == nil:
	case *g.Healthy:
		s += ", healthy"
	default:
		s += ", unhealthy"
	}
	if g.Detail != "" {
		s += fmt.Sprintf(": %s", g.Detail)
	}
	return s
}
