// Package tap listens to and speaks into the ports of a host's VMs: the
// technology behind driver.Catcher.
//
// A port is the tap interface that libvirt made for a network card. It is found by
// its own MAC, which libvirt makes of the card's: the first octet is 0xfe, or 0xfa
// where the card's is 0xfe (libvirt source, virNetDevTapCreateInBridgePort). Cards
// that are not plugged in by a tap, such as macvtap or a passed-through
// device, have none here.
//
//	          before Start              after it
//	network ── bridge ──┬── tap ── VM   network ── bridge ──┬── tap ── (paused, then gone)
//	                    │    ▲                        ▲     └── others
//	                    │    └ packet socket          └ packet socket, promiscuous
//
// Before Start one packet socket hears what the tap is sent, which is the VM's
// own traffic alone. From Start on another hears all that crosses the bridge, or
// that the host itself sends into it, and a filter in the kernel takes from it what
// is for the VM: so the tap may go without a gap, and nothing has to be made in
// the bridge that would lead anybody's frames astray. Both end with the process.
// Where the tap is on no Linux bridge, or on one that filters VLANs, which does not
// hand its own host what is of another VLAN, the first socket goes on as long as
// the tap is there.
//
// Frames are read and written with their offload (PACKET_VNET_HDR), since what
// crosses a bridge on one host may be longer than the MTU and without checksum.
// Frames with a VLAN's tag are left out: the kernel keeps the tag beside them.
//
// When to listen, and what becomes of what was heard, is left to others.
package tap
