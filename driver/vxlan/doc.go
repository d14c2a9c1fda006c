// Package vxlan extends segments by the Linux kernel's VXLAN and bridge: the
// technology behind driver.Segments.
//
// An extension with the number N is two things:
//
//   - the interface dvxN (N in decimal), a VXLAN device that does not learn, a port of the
//     segment's bridge; its alias is "drover:segment/NAME";
//   - the nftables table "bridge drover_vxlan_N", which holds the marks (sets
//     whose elements' comments name owners and stations), the filters and the
//     counters. An alias has room for one owner, a set for any number, and a
//     transaction changes them as one; so the alias names the segment and the
//     table its owners. The table is made before and removed after everything
//     else, so that whatever a crash leaves can be found.
//
// Besides there are, for each known station, an entry in the VXLAN device's
// forwarding database (which edge has the MAC), one in the bridge's (marked as
// learnt externally), and a neighbour entry of protocol 215 on the bridge,
// from which the bridge answers ARP and neighbour solicitations by itself
// (neigh_suppress). The entry in the bridge gives way when the station's frames come in
// by another port: the edge to which a VM moves follows its first frame. At the edge
// it leaves, a station with a Next does the same: for that time the tunnel's
// port learns.
//
// Loops. The tunnel is one port for all remotes, which the kernel never sends
// back what came from it; it is isolated from other such ports; spanning tree's
// frames do not cross. Other ways to the same edge are found by beacons, see
// guard.go: before a tunnel opens, and each second after. Until one is found,
// floods are limited.
//
// MTU. A frame of 1,514 bytes is 1,550 (IPv4) or 1,570 (IPv6) bytes of outer
// packet, without the prohibition of fragments. The interface that the remotes
// are behind has to have that MTU, or the kernel tells stations of a smaller
// one; what becomes of it on the WAN is left to the mesh.
//
// Routes to the remotes, encryption, and who is where are left to others.
package vxlan
