// Package driver holds the small contracts behind which one technology each
// lives. On a host: Hypervisor and Backuper (libvirt), Guests (the inside of
// its VMs), Catcher (their ports), Volumes (disk images). At a site's edge: Tunnels (the mesh),
// Segments (layer 2 extended over it), Routes (BGP), Addresses (the edge's own
// kernel), Names (DNS), Leases (DHCP), Balancer (HAProxy). A contract's comment
// says what is repeatable, what "missing" returns, what cancelling leaves
// behind and who closes. The conformance suites are in drivertest, the
// in-memory twins in memory; the technologies are siblings that do not know
// each other.
//
// What an edge's drivers make carries an Owner, in the technology itself, so
// that what a crash left behind is found, and nothing else is touched.
//
// Errors are drover.Error with a Kind that callers may act upon.
package driver
