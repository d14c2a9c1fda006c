package dns

import (
	"context"
	"encoding/base64"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Config says where a zone is served and how to change it.
type Config struct {
	// Zone is the zone's name.
	Zone string
	// Primary is the address that takes updates, "ip" or "ip:port".
	Primary string
	// Servers are the addresses of the authoritative servers to ask, "ip" or
	// "ip:port". When it is empty they are those of the zone's NS records, as
	// the primary has them.
	Servers []string
	Key     Key
}

// Key is the secret that is shared with the primary (TSIG).
type Key struct {
	Name string
	// Algorithm is "hmac-sha224" to "hmac-sha512"; empty means hmac-sha256.
	Algorithm string
	// Secret in base64.
	Secret string
}

// defaultPort is the name servers' port.
const defaultPort = "53"

// maxServers bounds the list of authoritative servers: zones have 13 at most,
// as all their names have to fit in one answer.
const maxServers = 16

// Server is a zone on its name servers.
type Server struct {
	log       *slog.Logger
	zone      string // absolute, in lower case, with the final dot
	primary   string
	servers   []authority // nil: ask the primary
	keyName   string
	algorithm string
	secrets   map[string]string

	mu     sync.Mutex
	closed bool
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	calls  sync.WaitGroup
}

var _ driver.Names = (*Server)(nil)

// New opens a zone. Nothing is sent yet; Check proves that it works.
func New(log *slog.Logger, cfg Config) (*Server, error) {
	zone, err := driver.NameInZone(cfg.Zone, cfg.Zone)
	if err != nil {
		return nil, drover.E(drover.Invalid, "zone", err)
	}
	s := &Server{log: log.With("zone", zone), zone: dns.Fqdn(zone)}
	if s.primary, err = endpoint(cfg.Primary); err != nil {
		return nil, drover.E(drover.Invalid, "primary", err)
	}
	if len(cfg.Servers) > maxServers {
		return nil, drover.Errorf(drover.Invalid, "servers", "%d of them: want at most %d", len(cfg.Servers), maxServers)
	}
	for _, text := range cfg.Servers {
		address, err := endpoint(text)
		if err != nil {
			return nil, drover.E(drover.Invalid, "servers", err)
		}
		s.servers = append(s.servers, authority{name: text, addresses: []string{address}})
	}
	if err := s.setKey(cfg.Key); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// algorithms that are still good for signing (RFC 8945, 6).
var algorithms = map[string]string{
	"":            dns.HmacSHA256,
	"hmac-sha224": dns.HmacSHA224,
	"hmac-sha256": dns.HmacSHA256,
	"hmac-sha384": dns.HmacSHA384,
	"hmac-sha512": dns.HmacSHA512,
}

func (s *Server) setKey(key Key) error {
	var ok bool
	if s.algorithm, ok = algorithms[strings.ToLower(strings.TrimSuffix(key.Algorithm, "."))]; !ok {
		return drover.Errorf(drover.Invalid, "key algorithm", "%q: want hmac-sha224, -sha256, -sha384 or -sha512", key.Algorithm)
	}
	if _, ok := dns.IsDomainName(key.Name); !ok || key.Name == "" || key.Name == "." {
		return drover.Errorf(drover.Invalid, "key name", "%q is not a name", key.Name)
	}
	if raw, err := base64.StdEncoding.DecodeString(key.Secret); err != nil || len(raw) == 0 {
		return drover.Errorf(drover.Invalid, "key secret", "want base64, as tsig-keygen prints it") // never print it
	}
	s.keyName = dns.CanonicalName(key.Name)
	s.secrets = map[string]string{s.keyName: key.Secret}
	return nil
}

// endpoint returns "ip:port" of an address with or without a port.
func endpoint(text string) (string, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return net.JoinHostPort(a.String(), defaultPort), nil
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil || ap.Port() == 0 {
		return "", drover.Errorf(drover.Invalid, "", "%q: want ip or ip:port", text)
	}
	return ap.String(), nil
}

// begin counts a call and ties its context to the driver's; the caller calls
// the function it returns when the call ends.
func (s *Server) begin(ctx context.Context, op string) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ctx, nil, drover.Errorf(drover.Canceled, op, "the driver is closed")
	}
	if err := ctx.Err(); err != nil {
		return ctx, nil, drover.E(kindOfContext(err), op, err)
	}
	s.calls.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel(); s.calls.Done() }, nil
}

// Close ends all calls under way and waits for them.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.calls.Wait()
	return nil
}

// Check implements driver.Names.
func (s *Server) Check(ctx context.Context, names ...string) error {
	op := "check updates of " + strings.TrimSuffix(s.zone, ".")
	ctx, end, err := s.begin(ctx, op)
	if err != nil {
		return err
	}
	defer end()
	m := s.newUpdate()
	if len(names) == 0 {
		m.Remove([]dns.RR{textRecord(markName(s.zone), checkText)})
	}
	for _, name := range names {
		n, err := driver.NameInZone(name, s.zone)
		if err != nil {
			return err
		}
		m.Remove(records(dns.Fqdn(n), driver.NameRecords{
			Addresses: []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()},
		}))
		m.Remove([]dns.RR{textRecord(markName(dns.Fqdn(n)), checkText)})
	}
	_, err = s.update(ctx, m)
	return wrap(op, err)
}

// Lower implements driver.Names.
func (s *Server) Lower(ctx context.Context, owner driver.Owner, name string, ttl time.Duration) (driver.OwnedName, error) {
	if err := driver.CheckNameTTL(ttl); err != nil {
		return driver.OwnedName{}, err
	}
	return s.change(ctx, "lower the TTL of "+name, owner, name, func(have state) (driver.NameRecords, error) {
		if len(have.records.Addresses) == 0 {
			return have.records, drover.Errorf(drover.NotFound, "", "it has no addresses")
		}
		return have.records.Lowered(ttl), nil
	})
}

// Set implements driver.Names.
func (s *Server) Set(ctx context.Context, owner driver.Owner, name string, addresses []netip.Addr, ttl time.Duration) (driver.OwnedName, error) {
	list, err := driver.CheckNameAddresses(addresses)
	if err != nil {
		return driver.OwnedName{}, err
	}
	if ttl != 0 {
		if err := driver.CheckNameTTL(ttl); err != nil {
			return driver.OwnedName{}, err
		}
	}
	return s.change(ctx, "set the addresses of "+name, owner, name, func(have state) (driver.NameRecords, error) {
		return driver.NameRecords{Addresses: list}.WithTTL(ttl, have.before()), nil
	})
}

// change gives a name what want says of what is there, under the owner's mark.
func (s *Server) change(ctx context.Context, op string, owner driver.Owner, name string, want func(state) (driver.NameRecords, error)) (driver.OwnedName, error) {
	none := driver.OwnedName{}
	if err := owner.Validate(); err != nil {
		return none, err
	}
	name, err := driver.NameInZone(name, s.zone)
	if err != nil {
		return none, err
	}
	ctx, end, err := s.begin(ctx, op)
	if err != nil {
		return none, err
	}
	defer end()
	have, err := s.read(ctx, name)
	if err != nil {
		return none, wrap(op, err)
	}
	if err := have.changeable(owner); err != nil {
		return none, wrap(op, err)
	}
	records, err := want(have)
	if err != nil {
		return none, wrap(op, err)
	}
	mark := driver.OwnedName{Name: name, Owner: owner, Before: have.before(), Now: records, Since: time.Now().UTC().Truncate(time.Second)}
	if have.mark != nil {
		mark.Since = have.mark.Since
	}
	if have.is(mark) {
		return mark, nil
	}
	if err := s.replace(ctx, have, records, &mark); err != nil {
		return none, wrap(op, err)
	}
	s.log.InfoContext(ctx, "name changed", "name", name, "owner", owner, "addresses", records.Addresses, "ttl4", records.TTL4, "ttl6", records.TTL6)
	return mark, nil
}

// Settle implements driver.Names.
func (s *Server) Settle(ctx context.Context, owner driver.Owner, name string) error {
	return s.end(ctx, "settle "+name, owner, name, func(have state) (driver.NameRecords, error) {
		if !have.records.SameAddresses(have.mark.Now) {
			return have.records, nil
		}
		return have.records.WithTTL(0, have.mark.settled()), nil
	})
}

// Restore implements driver.Names.
func (s *Server) Restore(ctx context.Context, owner driver.Owner, name string) error {
	return s.end(ctx, "restore "+name, owner, name, func(have state) (driver.NameRecords, error) {
		return have.mark.Before, have.untouched()
	})
}

// end removes the owner's mark and gives the name what want says.
func (s *Server) end(ctx context.Context, op string, owner driver.Owner, name string, want func(state) (driver.NameRecords, error)) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	name, err := driver.NameInZone(name, s.zone)
	if err != nil {
		return err
	}
	ctx, end, err := s.begin(ctx, op)
	if err != nil {
		return err
	}
	defer end()
	have, err := s.read(ctx, name)
	if err != nil {
		return wrap(op, err)
	}
	if have.mark == nil || have.mark.Owner != owner {
		return nil
	}
	records, err := want(have)
	if err == nil {
		err = s.replace(ctx, have, records, nil)
	}
	if err != nil {
		return wrap(op, err)
	}
	s.log.InfoContext(ctx, "name given back", "name", name, "owner", owner, "addresses", records.Addresses)
	return nil
}

// Owned implements driver.Names.
func (s *Server) Owned(ctx context.Context, name string) (driver.OwnedName, error) {
	name, err := driver.NameInZone(name, s.zone)
	if err != nil {
		return driver.OwnedName{}, err
	}
	op := "read the mark of " + name
	ctx, end, err := s.begin(ctx, op)
	if err != nil {
		return driver.OwnedName{}, err
	}
	defer end()
	have, err := s.read(ctx, name)
	if err != nil {
		return driver.OwnedName{}, wrap(op, err)
	}
	if have.mark == nil {
		return driver.OwnedName{}, drover.Errorf(drover.NotFound, op, "it has none")
	}
	return have.mark.OwnedName, nil
}
