package vxlan

import (
	"bytes"
	"net"

	"github.com/drover-vm/drover/driver"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// EtherTypes and types of messages that the filters know.
const (
	etherBeacon = 0x88b5 // IEEE 802: local experimental 1
	icmpv6RS    = 133
	icmpv6RA    = 134
	icmpv6NS    = 135
	icmpv6NA    = 136
)

// Offsets in the headers: Ethernet, ARP for Ethernet and IPv4 (RFC 826), IPv6
// (RFC 8200) and neighbour discovery (RFC 4861).
const (
	ethDst, ethSrc, ethType  = 0, 6, 12
	arpSender, arpTarget     = 14, 24
	ip6Next, ndType, ndTargt = 6, 0, 8
	macBytes, ip4Bytes       = 6, 4
	ip6Bytes                 = 16
)

// Comments of the rules whose counters are read.
const (
	ruleFlood   = "flood"
	ruleLoop    = "loop"
	ruleGateway = "gateway"
)

// match is the beginning of a rule, what it asks of a frame.
type match []expr.Any

func (m match) and(more ...expr.Any) match { return append(m[:len(m):len(m)], more...) }

func is(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}
}

func load(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: length}
}

func (m match) field(base expr.PayloadBase, offset uint32, data []byte) match {
	return m.and(load(base, offset, uint32(len(data))), is(data))
}

// mac asks for a MAC at an offset of the Ethernet header.
func (m match) mac(offset uint32, mac net.HardwareAddr) match {
	return m.field(expr.PayloadBaseLLHeader, offset, mac)
}

func (m match) ether(t uint16) match {
	return m.field(expr.PayloadBaseLLHeader, ethType, binaryutil.BigEndian.PutUint16(t))
}

// macIn asks for a MAC at an offset to be in the set, or not to be.
func (m match) macIn(offset uint32, set *nftables.Set, not bool) match {
	return m.and(load(expr.PayloadBaseLLHeader, offset, macBytes),
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: not})
}

// nd asks for a message of neighbour discovery.
func (m match) nd(kind byte) match {
	return m.ether(unix.ETH_P_IPV6).
		field(expr.PayloadBaseNetworkHeader, ip6Next, []byte{unix.IPPROTO_ICMPV6}).
		field(expr.PayloadBaseTransportHeader, ndType, []byte{kind})
}

func counted(verdict expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: verdict}}
}

// ifname is an interface's name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// rule adds one to a chain; the comment tells an operator, and the counters' reader.
func (s *Segments) rule(c *nftables.Chain, comment string, exprs []expr.Any) {
	r := &nftables.Rule{Table: c.Table, Chain: c, Exprs: exprs}
	if comment != "" {
		r.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	s.nft.AddRule(r)
}

// addTable makes the table with its marks, filters and counters. It is sent to
// the kernel with the next Flush.
func (s *Segments) addTable(vni uint32) *table {
	t := newTable(vni)
	s.nft.CreateTable(t.Table)
	for _, set := range t.sets() {
		// AddSet only fails on elements, and there are none.
		_ = s.nft.AddSet(set, nil)
	}
	policy := nftables.ChainPolicyAccept
	base := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return s.nft.AddChain(&nftables.Chain{
			Name: name, Table: t.Table, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityFilter, Policy: &policy,
		})
	}
	gateway := s.nft.AddChain(&nftables.Chain{Name: chainGateway, Table: t.Table})
	rewrite := s.nft.AddChain(&nftables.Chain{Name: chainRewrite, Table: t.Table})
	in, out := base(chainIn, nftables.ChainHookPrerouting), base(chainOut, nftables.ChainHookPostrouting)
	jump := func(to *nftables.Chain) []expr.Any {
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: to.Name}}
	}
	other := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(linkName(vni))},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}
	}
	s.rule(in, "not from this tunnel", other(expr.MetaKeyIIFNAME))
	s.rule(out, "not to this tunnel", other(expr.MetaKeyOIFNAME))
	for _, c := range []*nftables.Chain{in, out} {
		s.rule(c, "spanning tree and the like", append(match{
			load(expr.PayloadBaseLLHeader, ethDst, macBytes),
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: macBytes, Mask: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xf0}, Xor: make([]byte, macBytes)},
			is([]byte{0x01, 0x80, 0xc2, 0, 0, 0}),
		}, counted(expr.VerdictDrop)...))
		s.rule(c, "beacons look for ways besides the tunnel", append(match{}.ether(etherBeacon), counted(expr.VerdictDrop)...))
	}
	s.rule(in, ruleLoop, append(match{}.macIn(ethSrc, t.here, false), counted(expr.VerdictDrop)...))
	s.rule(in, "", jump(gateway))
	s.rule(out, "", jump(gateway))
	s.rule(out, ruleFlood, append(match{}.macIn(ethDst, t.stations, true).and(&expr.Limit{
		Type: expr.LimitTypePkts, Rate: s.cfg.FloodFrames, Unit: expr.LimitTimeSecond, Burst: floodBurst, Over: true,
	}), counted(expr.VerdictDrop)...))
	for _, offset := range []uint32{ethSrc, ethDst} {
		// The lookup counts at the element that it finds.
		s.rule(in, "count", match{}.macIn(offset, t.received, false))
		s.rule(out, "count", match{}.macIn(offset, t.sent, false))
	}
	s.rule(out, "", jump(rewrite))
	return t
}

// floodBurst is how many frames may come at once: a host that asks for all
// its neighbours after a start.
const floodBurst = 200

// setGateway makes the rules of local egress, or none. The MAC of the tunnel's
// port stands for the gateway's at the far end, whose bridge has the same.
func (s *Segments) setGateway(t *table, ext driver.Extension, tunnel net.HardwareAddr) {
	gateway := &nftables.Chain{Name: chainGateway, Table: t.Table}
	rewrite := &nftables.Chain{Name: chainRewrite, Table: t.Table}
	s.nft.FlushChain(gateway)
	s.nft.FlushChain(rewrite)
	if !ext.LocalEgress {
		return
	}
	drop := func(m match) { s.rule(gateway, ruleGateway, append(m, counted(expr.VerdictDrop)...)) }
	mac, _ := net.ParseMAC(ext.Gateway.MAC) // was validated
	drop(match{}.mac(ethDst, mac))
	drop(match{}.nd(icmpv6RS))
	drop(match{}.nd(icmpv6RA))
	for _, a := range ext.Gateway.Addresses {
		if a.Is4() {
			for _, offset := range []uint32{arpSender, arpTarget} {
				drop(match{}.ether(unix.ETH_P_ARP).field(expr.PayloadBaseNetworkHeader, offset, a.AsSlice()))
			}
			continue
		}
		for _, kind := range []byte{icmpv6NS, icmpv6NA} {
			drop(match{}.nd(kind).field(expr.PayloadBaseTransportHeader, ndTargt, a.AsSlice()))
		}
	}
	// What the gateway here sends to a station elsewhere is traffic that still
	// comes in by this site; it passes, under another name.
	s.rule(rewrite, "the gateway's frames", match{}.mac(ethSrc, mac).and(
		&expr.Immediate{Register: 1, Data: bytes.Clone(tunnel)},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: ethSrc, Len: macBytes},
	))
}
