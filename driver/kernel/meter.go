package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// interfaceClasses are the kinds of interface that traffic is told apart by.
var interfaceClasses = []string{"tunnel", "bridge", "router"}

// isClass matches an interface's class: a tunnel of Drover's by its name, a
// bridge by its kind, and what is left is towards the router.
func isClass(class string, name, kind expr.MetaKey) []expr.Any {
	switch class {
	case "tunnel":
		return ifName(name, expr.CmpOpEq, tunnelNamePrefix)
	case "bridge":
		return ifKind(kind, expr.CmpOpEq, kindBridge)
	default:
		return append(ifName(name, expr.CmpOpNeq, tunnelNamePrefix), ifKind(kind, expr.CmpOpNeq, kindBridge)...)
	}
}

// buildMeter counts each pair of classes; the comments say which.
func buildMeter(b *batch, chain string, _ entry) {
	for _, in := range interfaceClasses {
		for _, out := range interfaceClasses {
			b.rule(chain, in+" "+out,
				isClass(in, expr.MetaKeyIIFNAME, metaIIFKind), isClass(out, expr.MetaKeyOIFNAME, metaOIFKind),
				[]expr.Any{&expr.Counter{}}, verdict(expr.VerdictReturn))
		}
	}
}

// Metered implements driver.Addresses.
func (a *Addresses) Metered(ctx context.Context, addresses []netip.Addr) ([]driver.AddressTraffic, error) {
	const op = "read the meters"
	if len(addresses) > 0 {
		if err := driver.CheckHostAddresses(addresses); err != nil {
			return nil, drover.E(drover.Invalid, op, err)
		}
	}
	var all []driver.AddressTraffic
	err := a.run(ctx, op, func() error {
		entries, err := readEntries()
		if err != nil {
			return err
		}
		specs := chains(entries)
		placed := map[netip.Addr][]driver.PlacedAddress{}
		for _, e := range entries {
			if e.prefix.IsSingleIP() {
				addr := e.prefix.Addr()
				placed[addr] = append(placed[addr], driver.PlacedAddress{Owner: e.owner, Role: e.role, Prefix: e.prefix})
			}
		}
		for addr, of := range placed {
			t := driver.AddressTraffic{Address: addr, For: driver.MeterRoles(of)}
			if len(t.For) == 0 || len(addresses) > 0 && !slices.Contains(addresses, addr) {
				continue
			}
			if t.To, err = readMeter(specs["meter to "+addr.String()]); err != nil {
				return err
			}
			if t.From, err = readMeter(specs["meter from "+addr.String()]); err != nil {
				return err
			}
			all = append(all, t)
		}
		slices.SortFunc(all, func(x, y driver.AddressTraffic) int { return x.Address.Compare(y.Address) })
		return nil
	})
	return all, err
}

func readMeter(s chainSpec) (p driver.AddressPaths, err error) {
	c, err := nftables.New()
	if err != nil {
		return p, err
	}
	rules, err := c.GetRules(tableRef(), &nftables.Chain{Name: s.name(), Table: tableRef()})
	if err != nil {
		return p, fmt.Errorf("read chain %s: %w", s.name(), err)
	}
	for _, r := range rules {
		pair, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		into := map[string]*drover.Bytes{
			"router bridge": &p.RouterBridge, "bridge router": &p.BridgeRouter,
			"router tunnel": &p.RouterTunnel, "tunnel router": &p.TunnelRouter,
			"bridge tunnel": &p.BridgeTunnel, "tunnel bridge": &p.TunnelBridge, "router router": &p.RouterRouter,
		}[pair]
		if into == nil {
			into = &p.Inside
		}
		for _, e := range r.Exprs {
			if counter, ok := e.(*expr.Counter); ok {
				*into += drover.Bytes(counter.Bytes)
			}
		}
	}
	return p, nil
}
