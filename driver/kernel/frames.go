package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// A VM that comes into another segment goes on sending to the MAC of the gateway,
// and of the neighbours, that it had before, until it has heard otherwise and has
// come to read it: what it answers until then would be lost, and TCP waits before
// it says it again. So an edge that accepts old addresses takes the frames that
// come from them, whatever station they are for: a table of the family bridge
// makes the bridge itself their destination, before the bridge looks where they go.

// framesChain is the only chain of that table.
const framesChain = "taken"

func frameTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}
}

// taken are the entries whose frames are taken.
func taken(entries []entry) []entry {
	return slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return e.role != driver.RoleAcceptOld || !e.prefix.IsSingleIP() })
}

// takeFrames has the frames of the entries' old addresses taken, and no others. A
// kernel without the family does without: the guest hears of its gateway, too.
func takeFrames(before, after []entry) error {
	want := taken(after)
	if len(want) == 0 && len(taken(before)) == 0 {
		return nil
	}
	b, err := newBatch()
	if err != nil {
		return err
	}
	b.table = frameTable()
	b.AddTable(b.table) // not an error if there is one
	if len(want) == 0 {
		b.DelTable(b.table)
		return noFrames(b.commit())
	}
	c := b.AddChain(&nftables.Chain{
		Name: framesChain, Table: b.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest),
	})
	b.FlushChain(c)
	for _, e := range want {
		link, err := needLink(e.bridge)
		if err != nil && drover.KindOf(err) == drover.NotFound {
			continue // with its bridge nothing comes
		}
		if err != nil {
			return err
		}
		b.AddRule(&nftables.Rule{
			Table: b.table, Chain: c, UserData: userdata.AppendString(nil, userdata.TypeComment, string(e.owner)),
			Exprs: slices.Concat(fromAddress(e.prefix.Addr()), toOneStation(), toStation(link.Attrs().HardwareAddr)),
		})
	}
	return noFrames(b.commit())
}

// noFrames is nil for a kernel that has no tables of the family bridge.
func noFrames(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("frames of old addresses: %w", err)
	}
	return nil
}

// fromAddress matches frames with packets from an address; to this family the
// packets' own is that of the frame.
func fromAddress(addr netip.Addr) []expr.Any {
	etherType, offset := uint16(unix.ETH_P_IP), uint32(12)
	if addr.Is6() {
		etherType, offset = unix.ETH_P_IPV6, 8
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, etherType)},
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(addr.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr.AsSlice()},
	}
}

// toOneStation matches frames that are for one station and not for many.
func toOneStation() []expr.Any {
	return []expr.Any{
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{1}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}},
	}
}

// toStation makes a frame one for that station, which is this machine.
func toStation(mac []byte) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: mac},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
		&expr.Immediate{Register: 1, Data: []byte{unix.PACKET_HOST}},
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, SourceRegister: true, Register: 1},
	}
}
