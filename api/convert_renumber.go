package api

import (
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// RenumberedToProto converts what becomes of a VM's addresses; nil is nil.
func RenumberedToProto(r *drover.Renumbered) *droverv1.Renumbered {
	if r == nil {
		return nil
	}
	return &droverv1.Renumbered{
		Segment: r.Segment, Old: textOf(r.Old), New: textOf(r.New), Name: r.Name, OldSessions: r.OldSessions,
		UntilUnixNanos: nanos(r.Until), Held: r.Held, Left: r.Left,
	}
}

// RenumberedFromProto converts it back.
func RenumberedFromProto(p *droverv1.Renumbered) *drover.Renumbered {
	if p == nil {
		return nil
	}
	old, _ := ParseAddresses("", p.GetOld())
	fresh, _ := ParseAddresses("", p.GetNew())
	return &drover.Renumbered{
		Segment: p.GetSegment(), Old: old, New: fresh, Name: p.GetName(),
		OldSessions: p.OldSessions, Until: fromNanos(p.GetUntilUnixNanos()), Held: p.GetHeld(), Left: p.GetLeft(),
	}
}

// RenumberWishToProto converts a wish; one for nothing is nil.
func RenumberWishToProto(w drover.RenumberWish) *droverv1.RenumberWish {
	if w.IsZero() {
		return nil
	}
	return &droverv1.RenumberWish{
		Segment: w.Segment, Addresses: textOf(w.Addresses), DnsName: w.DNSName, OldLimitMillis: w.OldLimit.Milliseconds(),
	}
}

// RenumberWishFromProto converts and checks it; the kind of an error is
// drover.Invalid.
func RenumberWishFromProto(p *droverv1.RenumberWish) (drover.RenumberWish, error) {
	if p == nil {
		return drover.RenumberWish{}, nil
	}
	addresses, err := ParseAddresses("renumber.addresses", p.GetAddresses())
	if err != nil {
		return drover.RenumberWish{}, err
	}
	w := drover.RenumberWish{
		Segment: p.GetSegment(), Addresses: addresses, DNSName: p.GetDnsName(), OldLimit: time.Duration(p.GetOldLimitMillis()) * time.Millisecond,
	}
	return w, w.Validate()
}
