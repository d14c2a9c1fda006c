// Package dhcp is the drivers of DHCP services, package driver's Leases: Kea,
// which is real Kea servers (dhcp4 and dhcp6) by their control sockets, and
// Networks, which is libvirt's own networks, whose service is a dnsmasq that
// libvirt keeps.
//
// # Kea
//
// The open source Kea of Debian 12 (2.2) has commands for leases and none for
// reservations, so an address is reserved by giving its client the lease
// before it asks (hook library lease_cmds). Such a lease does not end, an IPv6
// one for a day, until the client has taken it; from then on the client renews
// it like any other, and Reserve, asked again, does for one that has ended. The
// owner's mark is in the lease's user context, which Kea keeps in its lease
// file and carries along when the client renews:
//
//	"user-context": { "drover": { "owner": "vm/UUID", "mac": "52:54:…" } }
//
// A lease that the client had by itself is marked too, and made to last; "had"
// then says how long it was to last, so that a release gives it back. What
// else is in the context stays. A client that gives its address back (RELEASE)
// ends its lease, mark included: Kea's word, not ours.
//
// Kea gives out an address of a lease only when it is in one of the subnet's
// pools, so only such can be wished. Subnets, pools and reservations of its
// configuration are read before each decision (config-get).
//
// # Networks
//
// An address is reserved by a host entry in the network's definition
// (virsh net-update … ip-dhcp-host), live and persistent. An entry has no room
// for an owner, so the network's metadata has an element for each MAC, written
// before its entries and removed after them:
//
//	<drover:lease xmlns:drover='urn:drover:lease:52-54-00-00-00-01' owner='vm/UUID'
//	   mac='52:54:00:00:00:01' v4='192.0.2.5' v6='2001:db8::5' duid='…'/>
//
// libvirt replaces metadata by its namespace, so the elements of two MACs, and
// those of others, never get in each other's way. Wished addresses may be
// anywhere in the network's prefix. libvirt needs to be 9.7 or newer. It makes
// a network's firewall rules anew when an entry changes, about half a second
// for each, in networks of all modes but open.
//
// For DHCPv6 both services know a client by its DUID, Kea by its IAID as well.
//
// Starting the services, and asking them as a client does, is left to others.
package dhcp
