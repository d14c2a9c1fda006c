package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// Balancer is a load balancer of a site: which servers stand behind its
// backends, how many sessions each has, and how new ones are spread.
//
// Methods may be called concurrently and, but for Add, be repeated: a call that
// finds things as it wants them changes nothing. A backend that is missing gives
// drover.NotFound; so does a server, except in Remove and Restore, where a missing
// one is fine. A call whose context ends may have taken effect or not;
// repeating it settles that.
//
// A server that Drover adds is named by ServerName, so that it carries its owner.
// Servers that are there without Drover are drained and weighted on behalf of an
// owner, who may restore them, but never removed. What another owner has
// changed gives drover.Exists.
//
// What was added and changed survives a reload of the balancer and a restart
// of the driver.
type Balancer interface {
	// Backends observes every backend with its servers.
	Backends(ctx context.Context) ([]Backend, error)
	// Servers observes the servers of one backend.
	Servers(ctx context.Context, backend string) ([]Server, error)
	// Add puts a server into the backend, in maintenance: it is checked if the
	// spec says so, but gets no traffic before Ready. The same server added again
	// by its owner is fine, with another address drover.Exists. A backend that
	// cannot take servers at run time gives drover.Refused.
	Add(ctx context.Context, owner Owner, backend string, spec ServerSpec) error
	// SetWeight sets the server's share of new sessions, 0 to MaxWeight.
	SetWeight(ctx context.Context, owner Owner, backend, server string, weight int) error
	// Drain lets the server's sessions go on and gives it no new ones.
	Drain(ctx context.Context, owner Owner, backend, server string) error
	// Ready gives the server new sessions again, by its weight.
	Ready(ctx context.Context, owner Owner, backend, server string) error
	// Restore gives a server that is there without Drover the weight and the state
	// back that it had before the owner's first change.
	Restore(ctx context.Context, owner Owner, backend, server string) error
	// Remove takes a server out that the owner added. One that has sessions, or
	// may have some in a process that a reload left behind, gives drover.Refused
	// unless force is set, which ends them and says how many. A server that is not
	// Drover's gives drover.Refused too.
	Remove(ctx context.Context, owner Owner, backend, server string, force bool) (ended int, err error)
	// List returns every server that Drover added or changed, with its owner,
	// read from the balancer itself as far as it has a place for a mark.
	List(ctx context.Context) ([]OwnedServer, error)
	// Check says for a preflight whether servers can be added to the backend and
	// changed in it; an error only when the check itself could not be made.
	Check(ctx context.Context, backend string) ([]drover.Check, error)
	// Close ends the driver's own work. Servers stay as they are.
	Close() error
}

// MaxWeight is the largest weight of a server, HAProxy's limit.
const MaxWeight = 256

// ServerState says what new sessions a server gets.
type ServerState string

// The states of a server.
const (
	// ServerReady takes new sessions while its health check allows it.
	ServerReady ServerState = "ready"
	// ServerDrain keeps its sessions and takes no new ones.
	ServerDrain ServerState = "drain"
	// ServerMaint takes none.
	ServerMaint ServerState = "maint"
)

// ServerHealth is what the balancer's health check says.
type ServerHealth string

// The results of a health check.
const (
	HealthNone    ServerHealth = "none"    // no check is configured
	HealthPending ServerHealth = "pending" // not yet checked
	HealthUp      ServerHealth = "up"
	HealthDown    ServerHealth = "down"
)

// Backend is a set of servers that share sessions.
type Backend struct {
	Name string
	// Algorithm is the balancer's own word for how it shares them.
	Algorithm string
	Servers   []Server
}

// Server is one server of a backend, as observed.
type Server struct {
	Backend, Name string
	// Owner is who added it; empty for a server that is there without Drover.
	Owner Owner
	// Address is not valid where the balancer only knows a host name so far.
	Address netip.AddrPort
	State   ServerState
	// Weight is the present one, InitialWeight that of the balancer's own
	// configuration or, for an added server, the one it was added with.
	Weight, InitialWeight int
	Health                ServerHealth
	// CheckStatus is the balancer's own word for Health, such as L7OK.
	CheckStatus string
	// Sessions is how many there are now, Queued how many wait for the server,
	// Total how many there were since the balancer's start.
	Sessions, Queued int
	Total            uint64
	// Unseen says that a process that a reload left behind still runs: it may
	// hold sessions of this server that Sessions does not count.
	Unseen bool
}

// Drained reports whether the server has no session and gets none.
func (s Server) Drained() bool {
	return s.State != ServerReady && s.Sessions == 0 && s.Queued == 0 && !s.Unseen
}

// OwnedServer is a server that Drover added or changed.
type OwnedServer struct {
	Owner         Owner
	Backend, Name string
	// Added says that Drover added it; otherwise it changed it, and Restore undoes that.
	Added bool
	// Missing says that the balancer does not have it, for instance because its
	// configuration was changed.
	Missing bool
}

// ServerCheck is the health check of an added server, by the rules of its
// backend. Zero values are the balancer's defaults.
type ServerCheck struct {
	Interval time.Duration
	// Rise and Fall are how many checks in a row must succeed or fail.
	Rise, Fall int
}

// ServerSpec is a server to add.
type ServerSpec struct {
	// Name tells servers of an owner apart: the full name is ServerName's.
	Name    string
	Address netip.AddrPort
	Weight  int
	// Check is the health check; nil for none.
	Check *ServerCheck
}

// Validate reports what is wrong with a spec.
func (s ServerSpec) Validate() error {
	if err := drover.CheckName("server", s.Name); err != nil {
		return err
	}
	switch {
	case !s.Address.IsValid() || s.Address.Port() == 0 || s.Address.Addr().IsUnspecified():
		return fmt.Errorf("server %s: address %v: want ADDRESS:PORT", s.Name, s.Address)
	case s.Address.Addr().Zone() != "":
		return fmt.Errorf("server %s: address %v: a link's own address cannot be balanced to", s.Name, s.Address)
	}
	if err := CheckWeight(s.Weight); err != nil {
		return fmt.Errorf("server %s: %w", s.Name, err)
	}
	if c := s.Check; c != nil && (c.Interval < 0 || c.Rise < 0 || c.Fall < 0) {
		return fmt.Errorf("server %s: check %+v: want no negative values", s.Name, *c)
	}
	return nil
}

// CheckWeight reports a weight out of range.
func CheckWeight(weight int) error {
	if weight < 0 || weight > MaxWeight {
		return fmt.Errorf("weight %d: want 0 to %d", weight, MaxWeight)
	}
	return nil
}

// serverMark begins the names of servers that Drover added.
const serverMark = "drover-"

// maxServerName bounds a server's full name: the mark, the longest owner and
// the longest name fit.
const maxServerName = 160

var serverNames = regexp.MustCompile(`^[A-Za-z0-9_.:-]+$`)

// ServerName is the full name of a server of the owner: "drover-vm:UUID:web".
func ServerName(owner Owner, name string) string {
	return serverMark + strings.Replace(string(owner), "/", ":", 1) + ":" + name
}

// ParseServerName takes a full name apart; ok is false for a server that is
// there without Drover.
func ParseServerName(full string) (owner Owner, name string, ok bool) {
	rest, ok := strings.CutPrefix(full, serverMark)
	if !ok {
		return "", "", false
	}
	parts := strings.SplitN(rest, ":", 3)
	if len(parts) != 3 || drover.CheckName("server", parts[2]) != nil {
		return "", "", false
	}
	owner = Owner(parts[0] + "/" + parts[1])
	return owner, parts[2], owner.Validate() == nil
}

// CheckServerNames reports names of a backend or a server that no balancer has;
// an empty server is left out.
func CheckServerNames(backend, server string) error {
	if len(backend) > maxServerName || !serverNames.MatchString(backend) {
		return fmt.Errorf("backend %q: want letters, digits and _.:- only", backend)
	}
	if server != "" && (len(server) > maxServerName || !serverNames.MatchString(server)) {
		return fmt.Errorf("server %q: want letters, digits and _.:- only", server)
	}
	return nil
}

// ErrNotOurs is why a server that is there without Drover is not removed.
var ErrNotOurs = errors.New("it was not added by Drover")
