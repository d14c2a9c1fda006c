package memory

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// NameZoneConfig says what a zone in memory is like.
type NameZoneConfig struct {
	Zone string
	// Servers are the names of the authoritative servers; the first is the
	// primary. Empty means one, "primary".
	Servers []string
	// Now is the clock; nil means the machine's.
	Now func() time.Time
	// Fault, when set, is asked before each operation ("check", "answers",
	// "lower", "set", "settle", "restore", "owned", "list") on a name, which is
	// empty for the whole zone; an error it returns is the operation's.
	Fault func(op, name string) error
}

// NameZone is a zone with its name servers, which outlives its drivers. Its own
// methods are what others do to it.
type NameZone struct {
	cfg  NameZoneConfig
	zone string

	mu      sync.Mutex
	names   map[string]zoneName
	texts   map[string][]string                      // foreign TXT records
	serial  uint32                                   // counts changes
	copies  map[string]map[string]driver.NameRecords // by server, the primary's left out
	lagging bool
	down    map[string]bool
	changed chan struct{} // closed and replaced at every change
}

// zoneName is what the zone has at a name.
type zoneName struct {
	records driver.NameRecords
	alias   string
	mark    *driver.OwnedName
}

// NewNameZone makes an empty zone. It panics on a name that cannot be one.
func NewNameZone(cfg NameZoneConfig) *NameZone {
	zone, err := driver.NameInZone(cfg.Zone, cfg.Zone)
	if err != nil {
		panic(err)
	}
	if len(cfg.Servers) == 0 {
		cfg.Servers = []string{"primary"}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &NameZone{
		cfg: cfg, zone: zone, names: make(map[string]zoneName), texts: make(map[string][]string), copies: make(map[string]map[string]driver.NameRecords),
		down: make(map[string]bool), changed: make(chan struct{}),
	}
}

// Open returns a driver of the zone. Without the right key it may read only.
func (z *NameZone) Open(rightKey bool) *Names { return &Names{zone: z, rightKey: rightKey} }

// Put gives a name other records, behind the drivers' backs.
func (z *NameZone) Put(name string, records driver.NameRecords) {
	z.edit(name, func(n *zoneName) { n.records = records })
}

// PutAlias makes a name an alias.
func (z *NameZone) PutAlias(name, target string) {
	z.edit(name, func(n *zoneName) { n.alias = target })
}

// PutText adds a TXT record that is not Drover's.
func (z *NameZone) PutText(name, text string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.texts[name] = append(z.texts[name], text)
	z.publish()
}

// Texts returns the TXT records of PutText.
func (z *NameZone) Texts(name string) []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.texts[name])
}

// Serial is a number that every change of the zone changes.
func (z *NameZone) Serial() uint32 {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.serial
}

// Lag stops, or lets go on, the other servers' following the primary.
func (z *NameZone) Lag(on bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.lagging = on
	z.tell()
}

// SetDown stops or starts a server.
func (z *NameZone) SetDown(server string, down bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.down[server] = down
	z.tell()
}

func (z *NameZone) edit(name string, f func(*zoneName)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	n := z.names[name]
	f(&n)
	z.names[name] = n
	z.publish()
}

// publish makes a change.
func (z *NameZone) publish() {
	z.serial++
	z.tell()
}

// tell tells the other servers what the primary has, and whoever waits.
func (z *NameZone) tell() {
	if !z.lagging {
		for _, server := range z.cfg.Servers[1:] {
			theirs := make(map[string]driver.NameRecords, len(z.names))
			for name, n := range z.names {
				theirs[name] = n.records
			}
			z.copies[server] = theirs
		}
	}
	close(z.changed)
	z.changed = make(chan struct{})
}

// answers is what all servers say; the caller holds the lock.
func (z *NameZone) answers(name string) []driver.NameAnswer {
	var list []driver.NameAnswer
	for i, server := range z.cfg.Servers {
		a := driver.NameAnswer{Server: server, Records: z.names[name].records}
		if i > 0 {
			a.Records = z.copies[server][name]
		}
		if z.down[server] {
			a.Records, a.Fault = driver.NameRecords{}, "it does not answer"
		}
		a.Records.Addresses = slices.Clone(a.Records.Addresses)
		list = append(list, a)
	}
	return list
}

// Names is the in-memory twin of the drivers of name servers.
type Names struct {
	zone     *NameZone
	rightKey bool
	mu       sync.Mutex
	closed   bool
}

var _ driver.Names = (*Names)(nil)

// enter is enterZone for an operation on a name, which it returns as the zone
// has it.
func (d *Names) enter(ctx context.Context, op, name string, signed bool) (string, error) {
	name, err := driver.NameInZone(name, d.zone.zone)
	if err != nil {
		return "", err
	}
	return name, d.enterZone(ctx, op, name, signed)
}

// enterZone checks what every operation needs and returns with the zone locked
// when the error is nil. A signed operation needs the right key.
func (d *Names) enterZone(ctx context.Context, op, name string, signed bool) error {
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	z := d.zone
	if closed {
		return drover.Errorf(drover.Canceled, op, "the driver is closed")
	}
	if err := ctx.Err(); err != nil {
		return drover.E(nameContextKind(err), op, err)
	}
	if z.cfg.Fault != nil {
		if err := z.cfg.Fault(op, name); err != nil {
			return err
		}
	}
	z.mu.Lock()
	switch {
	case signed && z.down[z.cfg.Servers[0]]:
		z.mu.Unlock()
		return drover.Errorf(drover.Unavailable, op, "the primary does not answer")
	case signed && !d.rightKey:
		z.mu.Unlock()
		return drover.Errorf(drover.Denied, op, "the server does not take the key")
	}
	return nil
}

func nameContextKind(err error) drover.Kind {
	if errors.Is(err, context.DeadlineExceeded) {
		return drover.Unavailable
	}
	return drover.Canceled
}

// Check implements driver.Names.
func (d *Names) Check(ctx context.Context, names ...string) error {
	for _, name := range names {
		if _, err := driver.NameInZone(name, d.zone.zone); err != nil {
			return err
		}
	}
	err := d.enterZone(ctx, "check", "", true)
	if err == nil {
		d.zone.mu.Unlock()
	}
	return err
}

// Answers implements driver.Names.
func (d *Names) Answers(ctx context.Context, name string) ([]driver.NameAnswer, error) {
	name, err := d.enter(ctx, "answers", name, false)
	if err != nil {
		return nil, err
	}
	defer d.zone.mu.Unlock()
	return d.zone.answers(name), nil
}

// WaitAnswers implements driver.Names.
func (d *Names) WaitAnswers(ctx context.Context, name string, want driver.NameRecords) ([]driver.NameAnswer, error) {
	if len(want.Addresses) > 0 {
		var err error
		if want.Addresses, err = driver.CheckNameAddresses(want.Addresses); err != nil {
			return nil, err
		}
	}
	name, err := d.enter(ctx, "answers", name, false)
	if err != nil {
		return nil, err
	}
	for {
		list, changed := d.zone.answers(name), d.zone.changed
		d.zone.mu.Unlock()
		wrong := slices.IndexFunc(list, func(a driver.NameAnswer) bool { return a.Fault != "" || !want.Answer(a.Records) })
		if wrong < 0 {
			return list, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return list, drover.E(nameContextKind(ctx.Err()), "wait for answers", fmt.Errorf("%w; %s answers otherwise", ctx.Err(), list[wrong].Server))
		}
		d.zone.mu.Lock()
	}
}

// Lower implements driver.Names.
func (d *Names) Lower(ctx context.Context, owner driver.Owner, name string, ttl time.Duration) (driver.OwnedName, error) {
	if err := driver.CheckNameTTL(ttl); err != nil {
		return driver.OwnedName{}, err
	}
	return d.change(ctx, "lower", owner, name, func(n zoneName) (driver.NameRecords, error) {
		if len(n.records.Addresses) == 0 {
			return n.records, drover.Errorf(drover.NotFound, "lower", "%s has no addresses", name)
		}
		return n.records.Lowered(ttl), nil
	})
}

// Set implements driver.Names.
func (d *Names) Set(ctx context.Context, owner driver.Owner, name string, addresses []netip.Addr, ttl time.Duration) (driver.OwnedName, error) {
	list, err := driver.CheckNameAddresses(addresses)
	if err == nil && ttl != 0 {
		err = driver.CheckNameTTL(ttl)
	}
	if err != nil {
		return driver.OwnedName{}, err
	}
	return d.change(ctx, "set", owner, name, func(n zoneName) (driver.NameRecords, error) {
		before := n.records
		if n.mark != nil {
			before = n.mark.Before
		}
		return driver.NameRecords{Addresses: list}.WithTTL(ttl, before), nil
	})
}

func (d *Names) change(ctx context.Context, op string, owner driver.Owner, name string, want func(zoneName) (driver.NameRecords, error)) (driver.OwnedName, error) {
	none := driver.OwnedName{}
	if err := owner.Validate(); err != nil {
		return none, err
	}
	name, err := d.enter(ctx, op, name, true)
	if err != nil {
		return none, err
	}
	z := d.zone
	defer z.mu.Unlock()
	n := z.names[name]
	switch {
	case n.alias != "":
		return none, drover.Errorf(drover.Refused, op, "%s is an alias", name)
	case n.mark == nil && len(z.texts["_drover."+name]) > 0:
		return none, drover.Errorf(drover.Refused, op, "the text at %s is not Drover's", name)
	case n.mark != nil && n.mark.Owner != owner:
		return none, drover.Errorf(drover.Exists, op, "%s changes %s already", n.mark.Owner, name)
	case n.mark != nil && !n.mark.Now.SameAddresses(n.records):
		return none, drover.Errorf(drover.Refused, op, "somebody else has changed %s", name)
	}
	records, err := want(n)
	if err != nil {
		return none, err
	}
	if n.mark == nil {
		n.mark = &driver.OwnedName{Name: name, Owner: owner, Before: n.records, Since: z.cfg.Now().UTC().Truncate(time.Second)}
	}
	mark := *n.mark
	if z.names[name].mark != nil && mark.Now.Answer(records) && records.Answer(n.records) {
		return mark, nil
	}
	mark.Now, n.records = records, records
	n.mark = &mark
	z.names[name] = n
	z.publish()
	return mark, nil
}

// Settle implements driver.Names.
func (d *Names) Settle(ctx context.Context, owner driver.Owner, name string) error {
	return d.end(ctx, "settle", owner, name, func(n zoneName) (driver.NameRecords, error) {
		before := n.mark.Before
		if len(before.Addresses) == 0 {
			before = n.mark.Now
		}
		if n.mark.Now.SameAddresses(n.records) {
			return n.records.WithTTL(0, before), nil
		}
		return n.records, nil
	})
}

// Restore implements driver.Names.
func (d *Names) Restore(ctx context.Context, owner driver.Owner, name string) error {
	return d.end(ctx, "restore", owner, name, func(n zoneName) (driver.NameRecords, error) {
		if !n.mark.Now.SameAddresses(n.records) {
			return n.records, drover.Errorf(drover.Refused, "restore", "somebody else has changed %s", name)
		}
		return n.mark.Before, nil
	})
}

func (d *Names) end(ctx context.Context, op string, owner driver.Owner, name string, want func(zoneName) (driver.NameRecords, error)) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	name, err := d.enter(ctx, op, name, true)
	if err != nil {
		return err
	}
	z := d.zone
	defer z.mu.Unlock()
	n := z.names[name]
	if n.mark == nil || n.mark.Owner != owner {
		return nil
	}
	if n.records, err = want(n); err != nil {
		return err
	}
	n.mark = nil
	z.names[name] = n
	z.publish()
	return nil
}

// Owned implements driver.Names.
func (d *Names) Owned(ctx context.Context, name string) (driver.OwnedName, error) {
	name, err := d.enter(ctx, "owned", name, true)
	if err != nil {
		return driver.OwnedName{}, err
	}
	defer d.zone.mu.Unlock()
	if m := d.zone.names[name].mark; m != nil {
		return *m, nil
	}
	return driver.OwnedName{}, drover.Errorf(drover.NotFound, "read the mark of "+name, "it has none")
}

// List implements driver.Names.
func (d *Names) List(ctx context.Context) ([]driver.OwnedName, error) {
	if err := d.enterZone(ctx, "list", "", true); err != nil {
		return nil, err
	}
	defer d.zone.mu.Unlock()
	var list []driver.OwnedName
	for _, n := range d.zone.names {
		if n.mark != nil {
			list = append(list, *n.mark)
		}
	}
	slices.SortFunc(list, func(a, b driver.OwnedName) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Close implements driver.Names.
func (d *Names) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}
