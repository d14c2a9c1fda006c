// Package kernel drives the Linux network stack of a site's edge: routes and
// rules, proxy entries of ARP and neighbour discovery, conntrack and nftables.
//
// # Marks
//
// Everything that stands is written, with its owner, into one nftables table of
// Drover's own, "inet drover_addresses": each line of its chain "owned" is a
// rule without effect whose comment says owner, role, prefix, bridge and, for
// old addresses, the other edge and the routing table. That chain is the truth.
// What it demands (routes, rules, proxy entries, all of protocol 215) follows
// from it by a pure function; a change writes the chain first, then makes what is
// new and removes what is no longer demanded by anybody, and only then takes the
// lines out that have gone. So nothing can stand without a line, whenever the
// driver dies, and the next one needs no file to find it. The last line takes the
// table with it. Values of sysctls that had to be changed (proxy_arp, proxy_ndp,
// proxy_delay on a bridge; accounting of conntrack) are lines too, with the value
// that was there before and comes back.
//
// # Old addresses
//
//	client          old site                               new site
//	  │          ┌── edge A ───────────────┐            ┌── edge B ────────────┐
//	  │ to X ──▶ │ known to conntrack?     │    mesh    │                      │
//	  │          │  yes: rule to X ──▶ dvold ═══VXLAN═══▶ dvold ──▶ bridge ──▶ │ VM
//	  │          │  no: reset, ICMP        │            │                      │
//	  │ ◀─────── │ ◀───────────────── dvold ◀═══════════ dvold ◀── rule from X │
//	  │          └─────────────────────────┘            └──────────────────────┘
//
// A mesh such as WireGuard's takes from a peer only what is the peer's own, so
// packets of strangers are wrapped: dvold is one VXLAN interface per edge with a
// fixed entry for each other edge and neither learning nor flooding. Its MACs and
// link-local next hops follow from the mesh addresses, so that both ends know them
// without asking. Packets for an edge of the mesh that is down are dropped
// rather than sent beside it, because dvold sends from the mesh address.
//
// A VM that has just come sends to the MAC of its old gateway until it has heard
// otherwise. The table "bridge drover_addresses" of edge B, made from the same
// lines, takes its frames meanwhile.
//
// Which address goes where and when is left to others, and so are BGP, DNS and
// the mesh.
package kernel
