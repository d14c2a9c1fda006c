package vxlan

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Names in nftables.
const (
	tablePrefix  = "drover_vxlan_"
	chainIn      = "in"
	chainOut     = "out"
	chainGateway = "gateway"
	chainRewrite = "rewrite"
)

// table is an extension's nftables table. Its sets:
//
//	owners     a digest for each pair of owner and remote; comment "OWNER REMOTE SEGMENT BRIDGE"
//	stations   MAC; comment "AT NEXT", addresses of edges or "-"
//	addresses  a station's address as IPv6 (IPv4 mapped); comment its MAC
//	here       MACs of stations that are at this site and stay
//	received, sent   MACs of all stations, with counters
//	gateway    the gateway's MAC; comment its addresses, with commas. Only with local egress
type table struct {
	*nftables.Table
	owners, stations, addresses, here, received, sent, gateway *nftables.Set
}

func newTable(vni uint32) *table {
	t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: tablePrefix + strconv.FormatUint(uint64(vni), 10)}
	set := func(name string, key nftables.SetDatatype, counter bool) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key, Counter: counter}
	}
	return &table{
		Table:     t,
		owners:    set("owners", nftables.TypeIP6Addr, false),
		stations:  set("stations", nftables.TypeEtherAddr, false),
		addresses: set("addresses", nftables.TypeIP6Addr, false),
		here:      set("here", nftables.TypeEtherAddr, false),
		received:  set("received", nftables.TypeEtherAddr, true),
		sent:      set("sent", nftables.TypeEtherAddr, true),
		gateway:   set("gateway", nftables.TypeEtherAddr, false),
	}
}

func (t *table) sets() []*nftables.Set {
	return []*nftables.Set{t.owners, t.stations, t.addresses, t.here, t.received, t.sent, t.gateway}
}

// claim is one owner's need of one remote.
type claim struct {
	owner           driver.Owner
	remote          netip.Addr
	segment, bridge string
}

func (c claim) element() nftables.SetElement {
	sum := sha256.Sum256([]byte(string(c.owner) + " " + c.remote.String()))
	return nftables.SetElement{Key: sum[:ip6Bytes], Comment: fmt.Sprintf("%s %v %s %s", c.owner, c.remote, c.segment, c.bridge)}
}

func parseClaim(comment string) (claim, error) {
	f := strings.Fields(comment)
	if len(f) != 4 {
		return claim{}, fmt.Errorf("mark %q: want owner, remote, segment and bridge", comment)
	}
	remote, err := netip.ParseAddr(f[1])
	return claim{owner: driver.Owner(f[0]), remote: remote, segment: f[2], bridge: f[3]}, err
}

// stationElement is a station's mark without its addresses.
func stationElement(st driver.Station) nftables.SetElement {
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return "-"
		}
		return a.String()
	}
	return nftables.SetElement{Key: macKey(st.MAC), Comment: text(st.At) + " " + text(st.Next)}
}

func parseStation(e nftables.SetElement) (driver.Station, error) {
	st := driver.Station{MAC: net.HardwareAddr(e.Key).String()}
	at, next, _ := strings.Cut(e.Comment, " ")
	for _, f := range []struct {
		text string
		to   *netip.Addr
	}{{at, &st.At}, {next, &st.Next}} {
		if f.text == "-" {
			continue
		}
		a, err := netip.ParseAddr(f.text)
		if err != nil {
			return st, fmt.Errorf("mark of station %s: %w", st.MAC, err)
		}
		*f.to = a
	}
	return st, nil
}

// macKey is the key of a MAC that was validated.
func macKey(mac string) []byte {
	hw, _ := net.ParseMAC(mac)
	return hw
}

func addressElement(a netip.Addr, mac string) nftables.SetElement {
	b := a.As16()
	return nftables.SetElement{Key: b[:], Comment: mac}
}

// marks is what a table says.
type marks struct {
	vni      uint32
	claims   []claim
	stations []driver.Station // sorted by MAC
	gateway  driver.SegmentGateway
}

func (m *marks) segment() string {
	if len(m.claims) == 0 {
		return ""
	}
	return m.claims[0].segment
}

func (m *marks) bridge() string {
	if len(m.claims) == 0 {
		return ""
	}
	return m.claims[0].bridge
}

// remotes are those of all owners together.
func (m *marks) remotes() []netip.Addr {
	var all []netip.Addr
	for _, c := range m.claims {
		all = append(all, c.remote)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

func (m *marks) owners() []driver.Owner {
	var all []driver.Owner
	for _, c := range m.claims {
		all = append(all, c.owner)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// tables returns the numbers of the extensions that have one.
func (s *Segments) tables() ([]uint32, error) {
	list, err := dump(func() ([]*nftables.Table, error) { return s.nft.ListTablesOfFamily(nftables.TableFamilyBridge) })
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	var vnis []uint32
	for _, t := range list {
		number, ok := strings.CutPrefix(t.Name, tablePrefix)
		if vni, err := strconv.ParseUint(number, 10, 32); ok && err == nil {
			vnis = append(vnis, uint32(vni))
		}
	}
	return vnis, nil
}

// readMarks reads a table's; a set that is missing (a table that somebody has taken
// apart) counts as empty.
func (s *Segments) readMarks(vni uint32) (*marks, error) {
	t, m := newTable(vni), &marks{vni: vni}
	elements := func(set *nftables.Set) ([]nftables.SetElement, error) {
		list, err := dump(func() ([]nftables.SetElement, error) { return s.nft.GetSetElements(set) })
		if missing(err) {
			return nil, nil
		}
		if err != nil {
			err = fmt.Errorf("read set %s of %s: %w", set.Name, t.Name, err)
		}
		return list, err
	}
	owners, err := elements(t.owners)
	if err != nil {
		return nil, err
	}
	for _, e := range owners {
		c, err := parseClaim(e.Comment)
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", t.Name, err)
		}
		m.claims = append(m.claims, c)
	}
	slices.SortFunc(m.claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.owner, b.owner), a.remote.Compare(b.remote))
	})
	gateway, err := elements(t.gateway)
	if err != nil {
		return nil, err
	}
	for _, e := range gateway {
		m.gateway.MAC = net.HardwareAddr(e.Key).String()
		for f := range strings.SplitSeq(e.Comment, ",") {
			if a, err := netip.ParseAddr(f); err == nil {
				m.gateway.Addresses = append(m.gateway.Addresses, a)
			}
		}
	}
	stations, err := elements(t.stations)
	if err != nil {
		return nil, err
	}
	addresses, err := elements(t.addresses)
	if err != nil {
		return nil, err
	}
	m.stations, err = joinStations(stations, addresses)
	return m, err
}

func joinStations(stations, addresses []nftables.SetElement) ([]driver.Station, error) {
	of := map[string][]netip.Addr{}
	for _, e := range addresses {
		if a, ok := netip.AddrFromSlice(e.Key); ok {
			of[e.Comment] = append(of[e.Comment], a.Unmap())
		}
	}
	var all []driver.Station
	for _, e := range stations {
		st, err := parseStation(e)
		if err != nil {
			return nil, err
		}
		st.Addresses = of[st.MAC]
		slices.SortFunc(st.Addresses, netip.Addr.Compare)
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b driver.Station) int { return cmp.Compare(a.MAC, b.MAC) })
	return all, nil
}

// commit sends the queued changes to nftables as one transaction.
func (s *Segments) commit(what string) error {
	if err := s.nft.Flush(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// count reads a table's counters.
func (s *Segments) count(vni uint32) (driver.SegmentCounters, error) {
	t, c := newTable(vni), driver.SegmentCounters{Stations: map[string]driver.StationCount{}}
	for _, side := range []struct {
		set  *nftables.Set
		into func(*driver.StationCount) *driver.TrafficCount
	}{
		{t.received, func(s *driver.StationCount) *driver.TrafficCount { return &s.Received }},
		{t.sent, func(s *driver.StationCount) *driver.TrafficCount { return &s.Sent }},
	} {
		list, err := dump(func() ([]nftables.SetElement, error) { return s.nft.GetSetElements(side.set) })
		if err != nil {
			return c, err
		}
		for _, e := range list {
			mac := net.HardwareAddr(e.Key).String()
			of := c.Stations[mac]
			if e.Counter != nil {
				*side.into(&of) = driver.TrafficCount{Frames: e.Counter.Packets, Bytes: drover.Bytes(e.Counter.Bytes)}
			}
			c.Stations[mac] = of
		}
	}
	into := map[string]*driver.TrafficCount{ruleFlood: &c.Flooded, ruleLoop: &c.Looped, ruleGateway: &c.Gateway}
	for _, chain := range []string{chainIn, chainOut, chainGateway} {
		rules, err := dump(func() ([]*nftables.Rule, error) {
			return s.nft.GetRules(t.Table, &nftables.Chain{Name: chain, Table: t.Table})
		})
		if err != nil {
			return c, err
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			for _, e := range r.Exprs {
				if n, ok := e.(*expr.Counter); ok && into[comment] != nil {
					into[comment].Frames += n.Packets
					into[comment].Bytes += drover.Bytes(n.Bytes)
				}
			}
		}
	}
	return c, nil
}
