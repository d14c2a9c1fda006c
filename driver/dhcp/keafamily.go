package dhcp

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// endless is Kea's lifetime of a lease that does not end.
	endless = 1<<32 - 1
	// hold6 is how long an IPv6 address is held for a client that has not
	// asked, in seconds: a day. Unlike kea-dhcp4, kea-dhcp6 tells a client that
	// asks the lifetime which the lease has, and one that is told an endless
	// one never renews it.
	hold6 = 24 * 60 * 60
)

// keaDefault is the state of a lease that its client has.
const (
	keaDefault = iota
	keaDeclined
	keaReclaimed
)

// keaFamily is one of Kea's two servers.
type keaFamily struct {
	v4     bool
	socket string
}

// hold is how long an address is held for a client that has not asked.
func (f keaFamily) hold() int64 {
	if f.v4 {
		return endless
	}
	return hold6
}

// verb returns a lease command's name.
func (f keaFamily) verb(name string) string {
	if f.v4 {
		return "lease4-" + name
	}
	return "lease6-" + name
}

// keaLease is a lease in Kea's JSON.
type keaLease struct {
	Address      string  `json:"ip-address"`
	Subnet       uint32  `json:"subnet-id"`
	MAC          string  `json:"hw-address,omitempty"`
	ClientID     string  `json:"client-id,omitempty"`
	DUID         string  `json:"duid,omitempty"`
	IAID         *uint32 `json:"iaid,omitempty"`
	Type         string  `json:"type,omitempty"`
	Hostname     string  `json:"hostname,omitempty"`
	ValidSeconds int64   `json:"valid-lft"`
	Preferred    *int64  `json:"preferred-lft,omitempty"`
	// Since is when the client was last heard of, in seconds since 1970. The
	// command's argument is called expire and means its end.
	Since   int64                      `json:"cltt,omitempty"`
	Expire  int64                      `json:"expire,omitempty"`
	State   int                        `json:"state"`
	Forward bool                       `json:"fqdn-fwd"`
	Reverse bool                       `json:"fqdn-rev"`
	Context map[string]json.RawMessage `json:"user-context,omitempty"`
}

// keaMark is the owner's mark in a lease's user context.
type keaMark struct {
	Owner driver.Owner `json:"owner"`
	MAC   string       `json:"mac"`
	// Hostname is what was asked for: the lease's becomes the client's own.
	Hostname string `json:"hostname,omitempty"`
	// Had is how long the lease was to last, in seconds, when the client had it
	// before; zero when Drover made it.
	Had int64 `json:"had,omitempty"`
}

// markKey is the mark's key in the user context.
const markKey = "drover"

// mark returns the owner's mark, if there is one.
func (l keaLease) mark() (keaMark, bool) {
	var m keaMark
	raw, ok := l.Context[markKey]
	if !ok || json.Unmarshal(raw, &m) != nil || m.Owner.Validate() != nil {
		return keaMark{}, false
	}
	return m, true
}

// address returns the lease's address, invalid for a prefix or nonsense.
func (l keaLease) address() netip.Addr {
	a, err := netip.ParseAddr(l.Address)
	if err != nil || l.Type != "" && l.Type != "IA_NA" {
		return netip.Addr{}
	}
	return a
}

// live reports whether the address is the client's at the time.
func (l keaLease) live(now time.Time) bool {
	return l.State == keaDeclined || l.State == keaDefault && (l.ValidSeconds >= endless || l.Since+l.ValidSeconds > now.Unix())
}

// mac is the client's MAC: what the mark says, what Kea has found out, or what
// the DUID is made of.
func (l keaLease) mac() string {
	if m, ok := l.mark(); ok {
		return m.MAC
	}
	if mac, err := driver.NormalMAC(l.MAC); err == nil {
		return mac
	}
	return duidMAC(l.duid())
}

func (l keaLease) duid() []byte {
	duid, _ := hex.DecodeString(strings.ReplaceAll(l.DUID, ":", ""))
	return duid
}

// duidMAC returns the MAC in a DUID-LLT or DUID-LL (RFC 8415, 11.2 and 11.4).
func duidMAC(duid []byte) string {
	for kind, at := range map[byte]int{1: 8, 3: 4} {
		if len(duid) == at+6 && duid[0] == 0 && duid[1] == kind && duid[2] == 0 && duid[3] == 1 {
			if mac, err := driver.NormalMAC(net.HardwareAddr(duid[at:]).String()); err == nil {
				return mac
			}
		}
	}
	return ""
}

// colons writes bytes as Kea wants them.
func colons(raw []byte) string {
	parts := make([]string, len(raw))
	for i, b := range raw {
		parts[i] = hex.EncodeToString([]byte{b})
	}
	return strings.Join(parts, ":")
}

// keaSubnet is a subnet as Kea is configured.
type keaSubnet struct {
	ID     uint32 `json:"id"`
	Prefix string `json:"subnet"`
	Pools  []struct {
		Pool string `json:"pool"`
	} `json:"pools"`
	Reservations []keaReservation `json:"reservations"`

	prefix netip.Prefix
	pools  []pool
}

// keaReservation is a reservation of Kea's configuration.
type keaReservation struct {
	MAC       string   `json:"hw-address"`
	DUID      string   `json:"duid"`
	Hostname  string   `json:"hostname"`
	Address   string   `json:"ip-address"`
	Addresses []string `json:"ip-addresses"`
}

func (r keaReservation) addresses() []netip.Addr {
	var list []netip.Addr
	for _, text := range append([]string{r.Address}, r.Addresses...) {
		if a, err := netip.ParseAddr(text); err == nil {
			list = append(list, a)
		}
	}
	return list
}

// is reports whether the reservation is of the client.
func (r keaReservation) is(mac string, duid []byte) bool {
	if own, err := driver.NormalMAC(r.MAC); err == nil {
		return own == mac
	}
	return r.DUID != "" && strings.EqualFold(strings.ReplaceAll(r.DUID, ":", ""), hex.EncodeToString(duid))
}

// subnets reads Kea's configuration, those of shared networks included.
func (f keaFamily) subnets(ctx context.Context) ([]keaSubnet, error) {
	type network struct {
		Subnets4 []keaSubnet `json:"subnet4"`
		Subnets6 []keaSubnet `json:"subnet6"`
	}
	type server struct {
		network
		Shared []network `json:"shared-networks"`
	}
	var config struct {
		V4 server `json:"Dhcp4"`
		V6 server `json:"Dhcp6"`
	}
	if _, err := command(ctx, f.socket, "config-get", nil, &config); err != nil {
		return nil, asked(err)
	}
	s := config.V4
	if !f.v4 {
		s = config.V6
	}
	var all []keaSubnet
	for _, n := range append([]network{s.network}, s.Shared...) {
		all = append(append(all, n.Subnets4...), n.Subnets6...)
	}
	for i := range all {
		sub := &all[i]
		var err error
		if sub.prefix, err = netip.ParsePrefix(sub.Prefix); err != nil {
			return nil, fmt.Errorf("subnet %q of Kea's configuration: %w", sub.Prefix, err)
		}
		for _, text := range sub.Pools {
			p, err := parsePool(text.Pool)
			if err != nil {
				return nil, fmt.Errorf("subnet %s of Kea's configuration: %w", sub.Prefix, err)
			}
			sub.pools = append(sub.pools, p)
		}
	}
	return all, nil
}

// leases reads all leases.
func (f keaFamily) leases(ctx context.Context) ([]keaLease, error) {
	var all []keaLease
	for from := "start"; ; {
		var page struct {
			Leases []keaLease `json:"leases"`
		}
		found, err := command(ctx, f.socket, f.verb("get-page"), map[string]any{"from": from, "limit": pageLeases}, &page)
		if err != nil {
			return nil, asked(err)
		}
		if !found || len(page.Leases) == 0 {
			return all, nil
		}
		all = append(all, page.Leases...)
		from = page.Leases[len(page.Leases)-1].Address
	}
}

// asked is the error of a question: it has changed nothing.
func asked(err error) error {
	var unreachable *unreachableError
	if errors.As(err, &unreachable) {
		unreachable.sent = false
	}
	return err
}

// add makes a lease; an address that has one already gives drover.Exists.
func (f keaFamily) add(ctx context.Context, l keaLease) error {
	_, err := command(ctx, f.socket, f.verb("add"), l, nil)
	var kea *keaError
	if errors.As(err, &kea) && strings.Contains(kea.text, "already exists") {
		return drover.E(drover.Exists, "", err)
	}
	return err
}

// update replaces a lease that is there.
func (f keaFamily) update(ctx context.Context, l keaLease) error {
	if l.ValidSeconds < endless {
		l.Expire = l.Since + l.ValidSeconds
	}
	l.Since = 0 // cannot be given; Kea takes the difference of the two
	_, err := command(ctx, f.socket, f.verb("update"), l, nil)
	return err
}

// remove removes the lease of an address; missing is fine.
func (f keaFamily) remove(ctx context.Context, address netip.Addr) error {
	_, err := command(ctx, f.socket, f.verb("del"), map[string]any{"ip-address": address.String()}, nil)
	return err
}
