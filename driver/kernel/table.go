package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	tableName = "drover_addresses"
	ownedName = "owned"
	// sysctlMark begins the lines that keep a sysctl's value from before.
	sysctlMark = "sysctl "
	// maxLine is what fits into a rule's comment, one byte of length and a zero.
	maxLine = 254
)

// maps are the verdict maps, by what they look up: packets to and from old
// addresses, and those that are metered.
var maps = []struct {
	name    string
	chain   string // the base chain that looks it up
	from    bool
	v6      bool
	purpose string
}{
	{"old_to_4", "forward", false, false, "old"},
	{"old_to_6", "forward", false, true, "old"},
	{"old_from_4", "forward", true, false, "old"},
	{"old_from_6", "forward", true, true, "old"},
	{"meter_to_4", "meter", false, false, "meter"},
	{"meter_to_6", "meter", false, true, "meter"},
	{"meter_from_4", "meter", true, false, "meter"},
	{"meter_from_6", "meter", true, true, "meter"},
}

// owned is the chain of lines, as read.
type owned struct {
	table   *nftables.Table // nil when there is none
	entries []entry
	saved   map[string]string // sysctls' values from before, by path
	rules   map[string]*nftables.Rule
}

func tableRef() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

func readOwned() (owned, error) {
	o := owned{saved: map[string]string{}, rules: map[string]*nftables.Rule{}}
	c, err := nftables.New()
	if err != nil {
		return o, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return o, fmt.Errorf("list the tables of nftables: %w", err)
	}
	for _, t := range tables {
		if t.Name == tableName {
			o.table = t
		}
	}
	if o.table == nil {
		return o, nil
	}
	rules, err := c.GetRules(o.table, &nftables.Chain{Name: ownedName, Table: o.table})
	if err != nil {
		return o, fmt.Errorf("read chain %s of table %s: %w", ownedName, tableName, err)
	}
	for _, r := range rules {
		line, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		o.rules[line] = r
		if rest, ok := strings.CutPrefix(line, sysctlMark); ok {
			path, value, _ := strings.Cut(rest, " ")
			o.saved[path] = value
			continue
		}
		e, err := parseEntry(line)
		if err != nil {
			return o, drover.Errorf(drover.Corrupt, "read chain "+ownedName, "%w", err)
		}
		o.entries = append(o.entries, e)
	}
	return o, nil
}

func readEntries() ([]entry, error) {
	o, err := readOwned()
	return o.entries, err
}

// batch is changes of nftables that take effect at once or not at all.
type batch struct {
	*nftables.Conn
	table *nftables.Table
	errs  []error
}

func newBatch() (*batch, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	return &batch{Conn: c, table: tableRef()}, nil
}

func (b *batch) note(err error) {
	if err != nil {
		b.errs = append(b.errs, err)
	}
}

func (b *batch) commit() error {
	if err := errors.Join(b.errs...); err != nil {
		return err
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("change table %s of nftables: %w", tableName, err)
	}
	return nil
}

func (b *batch) chain(name string) *nftables.Chain {
	return &nftables.Chain{Name: name, Table: b.table}
}

func (b *batch) rule(chain, comment string, exprs ...[]expr.Any) {
	r := &nftables.Rule{Table: b.table, Chain: b.chain(chain)}
	for _, e := range exprs {
		r.Exprs = append(r.Exprs, e...)
	}
	if comment != "" {
		if len(comment) > maxLine {
			b.note(drover.Errorf(drover.Invalid, "mark "+comment, "longer than %d bytes", maxLine))
			return
		}
		r.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	b.AddRule(r)
}

// create makes the table with its base chains, which do nothing yet.
func (b *batch) create() {
	accept := nftables.ChainPolicyAccept
	b.CreateTable(b.table)
	b.AddChain(b.chain(ownedName))
	for name, priority := range map[string]*nftables.ChainPriority{"forward": nftables.ChainPriorityFilter, "meter": nftables.ChainPriorityMangle} {
		b.AddChain(&nftables.Chain{
			Name: name, Table: b.table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: priority, Policy: &accept,
		})
	}
	for _, v6 := range []bool{false, true} {
		b.note(b.AddSet(b.live(v6), nil))
	}
	for _, m := range maps {
		b.note(b.AddSet(b.verdicts(m.name, m.v6), nil))
		b.rule(m.chain, "", address(m.from, m.v6), []expr.Any{
			&expr.Lookup{SourceRegister: 1, SetName: m.name, DestRegister: 0, IsDestRegSet: true},
		})
	}
}

// live is the set of old addresses whose limit is not reached: the kernel
// takes them out by itself.
func (b *batch) live(v6 bool) *nftables.Set {
	return &nftables.Set{Table: b.table, Name: liveName(v6), KeyType: keyType(v6), HasTimeout: true}
}

func liveName(v6 bool) string {
	if v6 {
		return "live_6"
	}
	return "live_4"
}

func (b *batch) verdicts(name string, v6 bool) *nftables.Set {
	return &nftables.Set{Table: b.table, Name: name, KeyType: keyType(v6), IsMap: true, DataType: nftables.TypeVerdict}
}

func keyType(v6 bool) nftables.SetDatatype {
	if v6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// chains are the chains of nftables that entries demand, each with one entry
// to make it from.
func chains(entries []entry) map[string]chainSpec {
	all := map[string]chainSpec{}
	add := func(e entry, purpose string, from bool, build func(*batch, string, entry)) {
		way := "to"
		if from {
			way = "from"
		}
		addr := e.prefix.Addr()
		all[purpose+" "+way+" "+addr.String()] = chainSpec{e, purpose, from, build}
	}
	for _, e := range entries {
		switch {
		case !e.prefix.IsSingleIP(), e.all:
		case e.role == driver.RoleForwardOld:
			add(e, "old", false, buildOldTo)
			add(e, "old", true, buildOldFrom)
		case e.role == driver.RoleAcceptOld:
			add(e, "old", true, buildAccepted)
		case e.role == driver.RoleMeter:
			add(e, "meter", false, buildMeter)
			add(e, "meter", true, buildMeter)
		}
	}
	return all
}

type chainSpec struct {
	entry   entry
	purpose string
	from    bool
	build   func(*batch, string, entry)
}

// name is the chain's, with characters that nft can read back.
func (s chainSpec) name() string {
	way := "_to_"
	if s.from {
		way = "_from_"
	}
	return s.purpose + way + strings.ReplaceAll(s.entry.prefix.Addr().String(), ":", "_")
}

func (s chainSpec) verdicts(b *batch) *nftables.Set {
	addr := s.entry.prefix.Addr()
	for _, m := range maps {
		if m.purpose == s.purpose && m.from == s.from && m.v6 == addr.Is6() {
			return b.verdicts(m.name, m.v6)
		}
	}
	return nil
}

func (s chainSpec) element() []nftables.SetElement {
	return []nftables.SetElement{{
		Key:         s.entry.prefix.Addr().AsSlice(),
		VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: s.name()},
	}}
}

func (b *batch) addChain(s chainSpec) {
	b.AddChain(b.chain(s.name()))
	s.build(b, s.name(), s.entry)
	b.note(b.SetAddElements(s.verdicts(b), s.element()))
}

func (b *batch) delChain(s chainSpec) {
	b.note(b.SetDeleteElements(s.verdicts(b), s.element()))
	b.DelChain(b.chain(s.name()))
}

// addLine writes a line. That of a watched address asks for conntrack, which
// is all that it takes to have the kernel track connections.
func (b *batch) addLine(line string, watch bool) {
	var exprs []expr.Any
	if watch {
		exprs = ctState(expr.CtStateBitESTABLISHED)
	}
	b.rule(ownedName, line, exprs, []expr.Any{&expr.Counter{}})
}

// setLimits (re)starts the time that old addresses may still be used.
func (b *batch) setLimits(o owned, limits map[netip.Addr]time.Duration) {
	for _, v6 := range []bool{false, true} {
		present := map[string]bool{}
		if o.table != nil {
			c, err := nftables.New()
			b.note(err)
			elements, err := c.GetSetElements(b.live(v6))
			b.note(err)
			for _, e := range elements {
				present[string(e.Key)] = true
			}
		}
		for addr, limit := range limits {
			if addr.Is6() != v6 {
				continue
			}
			key := addr.AsSlice()
			if present[string(key)] {
				b.note(b.SetDeleteElements(b.live(v6), []nftables.SetElement{{Key: key}}))
			}
			if limit > 0 {
				b.note(b.SetAddElements(b.live(v6), []nftables.SetElement{{Key: key, Timeout: limit}}))
			}
		}
	}
}

// The pieces that rules are made of.

// address loads the source or destination address of a packet of the family.
func address(from, v6 bool) []expr.Any {
	proto, offset, length := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if from {
		offset = 12
	}
	if v6 {
		proto, offset, length = unix.NFPROTO_IPV6, 24, 16
		if from {
			offset = 8
		}
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
	}
}

// isLive matches while the address's limit is not reached.
func isLive(e entry, from bool) []expr.Any {
	v6 := e.prefix.Addr().Is6()
	return append(address(from, v6), &expr.Lookup{SourceRegister: 1, SetName: liveName(v6)})
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(bits), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native32(0)},
	}
}

func isTCP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}
}

// tcpFlags matches a TCP packet of whose masked flags exactly these are set.
func tcpFlags(mask, set byte) []expr.Any {
	return append(isTCP(),
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{set}},
	)
}

// ifKind and ifName compare the kind of an interface, or how its name begins.
func ifKind(key expr.MetaKey, op expr.CmpOp, kind string) []expr.Any {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, kind)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: b}}
}

func ifName(key expr.MetaKey, op expr.CmpOp, prefix string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte(prefix)}}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

const (
	// What a refused packet is answered with.
	rejectReset     = unix.NFT_REJECT_TCP_RST
	rejectICMP      = unix.NFT_REJECT_ICMPX_UNREACH
	adminProhibited = unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED
	tcpSYN, tcpACK  = 0x02, 0x10
	// NFT_META_IIFKIND and NFT_META_OIFKIND of linux/netfilter/nf_tables.h,
	// which x/sys does not have.
	metaIIFKind, metaOIFKind = expr.MetaKey(26), expr.MetaKey(27)
	kindBridge               = "bridge"
	// tunnelNamePrefix begins the names of all of Drover's tunnel interfaces.
	tunnelNamePrefix = "dv"
)

func reject(kind uint32, code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: kind, Code: code}}
}

// buildOldTo lets sessions of an old address pass that were under way.
func buildOldTo(b *batch, chain string, e entry) {
	mark := string(e.owner)
	known := ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	b.rule(chain, mark, isLive(e, false), known, verdict(expr.VerdictReturn))
	// A session that was silent since the edge keeps track is not known to it, nor
	// are those that neighbours on the bridge had without it; those that begin now
	// have a SYN all the same.
	b.rule(chain, mark, isLive(e, false), tcpFlags(tcpSYN, 0), verdict(expr.VerdictReturn))
	b.rule(chain, mark, ctState(expr.CtStateBitINVALID), verdict(expr.VerdictDrop))
	b.rule(chain, mark, isTCP(), reject(rejectReset, 0))
	b.rule(chain, mark, reject(rejectICMP, adminProhibited))
}

// buildOldFrom is the same for what the VM sends.
func buildOldFrom(b *batch, chain string, e entry) {
	mark := string(e.owner)
	known := ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	b.rule(chain, mark, isLive(e, true), known, verdict(expr.VerdictReturn))
	b.rule(chain, mark, isLive(e, true), tcpFlags(tcpSYN, 0), verdict(expr.VerdictReturn))
	b.rule(chain, mark, ctState(expr.CtStateBitINVALID), verdict(expr.VerdictDrop))
	b.rule(chain, mark, isTCP(), reject(rejectReset, 0))
	b.rule(chain, mark, reject(rejectICMP, adminProhibited))
}

// buildAccepted keeps what a VM begins from its old address out of the tunnel.
func buildAccepted(b *batch, chain string, e entry) {
	b.rule(chain, string(e.owner), ifKind(metaIIFKind, expr.CmpOpEq, kindBridge), tcpFlags(tcpSYN|tcpACK, tcpSYN), reject(rejectReset, 0))
}
