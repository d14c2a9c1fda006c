package driver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/drover-vm/drover"
)

// Segments extends layer 2 segments of one edge's site to other sites over the
// mesh, for as long as somebody needs it.
//
// Methods may be called concurrently. What an extension is made of carries the
// mark of its owners in the technology itself, so that List finds it after a
// crash, and a call that was canceled or failed half way may be repeated, or
// undone by Retract. Interfaces, bridge entries and filters without the mark
// are never touched.
type Segments interface {
	// Extend joins the segment's bridge here to the remotes, for the owner. It
	// is repeatable: the remotes given replace those that this owner gave
	// before; those of other owners stay. Gateway, local egress and MTU are
	// common to all owners: the last call's hold. A bridge that does not exist gives
	// drover.NotFound; what is taken by somebody else drover.Exists; a segment
	// that is extended already in another bridge, with another number or local
	// address, or a remote that the bridge reaches by another way too (which
	// would make a loop) gives drover.Refused.
	Extend(ctx context.Context, owner Owner, ext Extension) error
	// Retract ends the owner's need. When it was the last, the extension is
	// removed with all that belongs to it. Missing is fine.
	Retract(ctx context.Context, owner Owner, segment string) error
	// SetStations makes these, and no others, the known stations of an
	// extended segment: frames to them are never flooded, and what asks for
	// the address of one that is elsewhere is answered here. It is repeatable.
	// A segment that is not extended gives drover.NotFound.
	SetStations(ctx context.Context, segment string, stations []Station) error
	// Counters returns what has crossed since the segment was extended, and
	// for each station since it was set. A segment that is not extended gives
	// drover.NotFound.
	Counters(ctx context.Context, segment string) (SegmentCounters, error)
	// List returns every extension with its owners, as the technology has it,
	// sorted by segment. One without owners is what a crash has left.
	List(ctx context.Context) ([]ExtendedSegment, error)
	// Close ends the driver; extensions stay.
	Close() error
}

// Extension is a segment's reach to other sites.
type Extension struct {
	// Segment is the segment's own name, Bridge the interface that is it here.
	Segment string `json:"segment"`
	Bridge  string `json:"bridge"`
	// VNI is the segment's number in VXLAN, the same at every site: 1 to 2^24-1.
	VNI uint32 `json:"vni"`
	// Local is this edge's mesh address.
	Local netip.Addr `json:"local"`
	// Remotes are all other edges where the segment is extended for this
	// owner: what comes from one of them is never sent on to another.
	Remotes []Remote `json:"remotes"`
	// MTU is the largest packet of a station, in bytes; zero is 1500.
	MTU int `json:"mtu,omitempty"`
	// LocalEgress keeps traffic to the gateway at its site: what is sent to
	// its MAC, asks for its addresses or announces them does not cross, since
	// each site has the same gateway. Without it the gateway at the far end is
	// as good as one here, and there must not be one at both.
	LocalEgress bool `json:"local_egress,omitempty"`
	// Gateway is needed with LocalEgress.
	Gateway SegmentGateway `json:"gateway,omitzero"`
}

// Remote is another edge.
type Remote struct {
	// Address is its mesh address.
	Address netip.Addr `json:"address"`
	// Others are more addresses of it, its transport address for instance: a
	// tunnel in the same bridge that leads to one of them would make a loop.
	Others []netip.Addr `json:"others,omitempty"`
}

// SegmentGateway is a segment's gateway, the same at every site.
type SegmentGateway struct {
	MAC       string       `json:"mac"`
	Addresses []netip.Addr `json:"addresses"`
}

// IsZero reports whether there is no gateway.
func (g SegmentGateway) IsZero() bool { return g.MAC == "" && len(g.Addresses) == 0 }

// Station is a VM's NIC, or anything else with a MAC, in a segment.
type Station struct {
	MAC       string       `json:"mac"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// At is the mesh address of the edge of the site where it is; invalid when
	// it is at this one.
	At netip.Addr `json:"at,omitzero"`
	// Next is the edge of the site to which a move takes it from here; the
	// first frame that it sends there takes its traffic over, without another call.
	Next netip.Addr `json:"next,omitzero"`
}

// ExtendedSegment is an extension as it was found.
type ExtendedSegment struct {
	Extension
	Owners   []Owner   `json:"owners"`
	Stations []Station `json:"stations,omitempty"`
	// Interface is the tunnel's port in the bridge.
	Interface string `json:"interface"`
	// Fault says why nothing crosses: the tunnel was shut because of a loop,
	// or a part of it is missing. Empty is well.
	Fault string `json:"fault,omitempty"`
	// Missing says that a part is not there: Extend mends it.
	Missing bool `json:"missing,omitempty"`
}

// SegmentCounters is what has crossed an extension, frames as the stations see them.
type SegmentCounters struct {
	Received TrafficCount `json:"received"` // from other sites
	Sent     TrafficCount `json:"sent"`     // to other sites, once for all of them
	// Flooded is what was dropped because too much was for everybody or for
	// unknown stations; Looped what came from elsewhere with the MAC of a
	// station that is here; Gateway what local egress kept at its site.
	Flooded TrafficCount `json:"flooded"`
	Looped  TrafficCount `json:"looped"`
	Gateway TrafficCount `json:"gateway"`
	// Stations has those that are set, by MAC.
	Stations map[string]StationCount `json:"stations,omitempty"`
}

// StationCount is what crossed to or from one station.
type StationCount struct {
	Received TrafficCount `json:"received"` // came from other sites
	Sent     TrafficCount `json:"sent"`     // went to other sites
}

// TrafficCount is a number of frames.
type TrafficCount struct {
	Frames uint64       `json:"frames"`
	Bytes  drover.Bytes `json:"bytes"`
}

// Limits of an extension.
const (
	// DefaultSegmentMTU is what guests have when nobody says otherwise.
	DefaultSegmentMTU = 1500
	minSegmentMTU     = 1280 // what IPv6 demands of any link
	maxSegmentMTU     = 9000
	maxVNI            = 1<<24 - 1
	// maxRemotes bounds the copies of a frame for everybody.
	maxRemotes = 64
	// maxGatewayAddresses is one of each family, and as many for another subnet.
	maxGatewayAddresses = 4
	// maxStations bounds a segment: more would be several segments.
	maxStations = 16384
	// maxInterfaceName is the kernel's IFNAMSIZ without the final zero.
	maxInterfaceName = 15
)

// Validate reports what is wrong with an extension as far as it alone can
// tell; the kind is drover.Invalid.
func (e Extension) Validate() error {
	op := "segment " + e.Segment
	if err := drover.CheckName("segment", e.Segment); err != nil {
		return err
	}
	if err := drover.CheckName("bridge", e.Bridge); err != nil {
		return err
	}
	switch {
	case len(e.Bridge) > maxInterfaceName:
		return drover.Errorf(drover.Invalid, op, "bridge %q: want at most %d characters", e.Bridge, maxInterfaceName)
	case e.VNI == 0 || e.VNI > maxVNI:
		return drover.Errorf(drover.Invalid, op, "VNI %d: want 1 to %d", e.VNI, maxVNI)
	case !plainUnicast(e.Local):
		return drover.Errorf(drover.Invalid, op, "local %v: want a mesh address", e.Local)
	case e.MTU != 0 && (e.MTU < minSegmentMTU || e.MTU > maxSegmentMTU):
		return drover.Errorf(drover.Invalid, op, "MTU %d: want %d to %d, or 0 for %d", e.MTU, minSegmentMTU, maxSegmentMTU, DefaultSegmentMTU)
	case len(e.Remotes) == 0 || len(e.Remotes) > maxRemotes:
		return drover.Errorf(drover.Invalid, op, "%d remotes: want 1 to %d", len(e.Remotes), maxRemotes)
	case e.LocalEgress && len(e.Gateway.Addresses) == 0:
		return drover.Errorf(drover.Invalid, op, "local egress without the gateway's addresses")
	}
	for i, r := range e.Remotes {
		switch {
		case !plainUnicast(r.Address) || r.Address.Is4() != e.Local.Is4() || r.Address == e.Local:
			return drover.Errorf(drover.Invalid, op, "remote %v: want another edge's mesh address, of the family of %v", r.Address, e.Local)
		case slices.ContainsFunc(e.Remotes[:i], func(o Remote) bool { return o.Address == r.Address }):
			return drover.Errorf(drover.Invalid, op, "remote %v is there twice", r.Address)
		}
	}
	return e.checkGateway(op)
}

func (e Extension) checkGateway(op string) error {
	if e.LocalEgress || e.Gateway.MAC != "" {
		if _, err := stationMAC(e.Gateway.MAC); err != nil {
			return drover.E(drover.Invalid, op, fmt.Errorf("gateway: %w", err))
		}
	}
	if len(e.Gateway.Addresses) > maxGatewayAddresses {
		return drover.Errorf(drover.Invalid, op, "%d addresses of the gateway: want at most %d", len(e.Gateway.Addresses), maxGatewayAddresses)
	}
	for _, a := range e.Gateway.Addresses {
		if !plainUnicast(a) {
			return drover.Errorf(drover.Invalid, op, "gateway %v: want an address", a)
		}
	}
	return nil
}

// CheckStations reports what is wrong with a list of stations, for an edge
// with the mesh address local and these remotes; the kind is drover.Invalid.
func CheckStations(local netip.Addr, remotes []netip.Addr, stations []Station) error {
	const op = "stations"
	if len(stations) > maxStations {
		return drover.Errorf(drover.Invalid, op, "%d stations: want at most %d", len(stations), maxStations)
	}
	macs, addresses := map[string]bool{}, map[netip.Addr]string{}
	for _, s := range stations {
		hw, err := stationMAC(s.MAC)
		if err != nil {
			return drover.E(drover.Invalid, op, err)
		}
		mac := hw.String()
		switch {
		case macs[mac]:
			return drover.Errorf(drover.Invalid, op, "station %s is there twice", mac)
		case s.At.IsValid() && !slices.Contains(remotes, s.At):
			return drover.Errorf(drover.Invalid, op, "station %s is at %v, to which the segment is not extended", mac, s.At)
		case s.Next.IsValid() && (s.At.IsValid() || !slices.Contains(remotes, s.Next)):
			return drover.Errorf(drover.Invalid, op, "station %s goes to %v: want a remote, and a station that is here", mac, s.Next)
		}
		macs[mac] = true
		for _, a := range s.Addresses {
			if !plainUnicast(a) {
				return drover.Errorf(drover.Invalid, op, "station %s: address %v: want a unicast address", mac, a)
			}
			if other, taken := addresses[a]; taken {
				return drover.Errorf(drover.Invalid, op, "stations %s and %s have the same address %v", other, mac, a)
			}
			addresses[a] = mac
		}
	}
	return nil
}

// stationMAC reads the MAC of a single station: 48 bits, not zero, no group.
func stationMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || slices.Equal(mac, make([]byte, 6)) {
		return nil, drover.Errorf(drover.Invalid, "MAC", "%q: want six bytes of one station, like 52:54:00:12:34:56", s)
	}
	return mac, nil
}

// plainUnicast reports whether a can be one machine's address.
func plainUnicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6() && a.Zone() == "" &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
