// Package wireguard is an edge's end of the mesh by WireGuard: the technology
// behind driver.Tunnels. Where the kernel has WireGuard it makes an interface
// of the kernel; elsewhere one in user space, over a TUN, that lives as long
// as the process. Close removes the interface of either. It carries the alias
// "drover:mesh", routes to the peers the protocol 215.
//
// Keys. The private key is a file of mode 0600 in a folder of mode 0700 and
// never leaves the host; Rotate puts the next one beside it. WireGuard has one
// key at a time, and a change of it ends all sessions, so the overlap is at
// the peers: they are told of the next key while the old one is in use, and
// accept either; then the edge adopts it:
//
//	edge                       server                     peers
//	  │◀─────── Rotate ──────────┤                          │
//	  ├──────── Next ───────────▶├── SetPeers(Key, Next) ──▶│  both are peers,
//	  │◀─────── Adopt(Next) ─────┤                          │  addresses behind Key
//	  ├═══════ handshake with the next key, one round trip ═▶│  addresses behind Next
//	  │                          ├── SetPeers(Next) ────────▶│  the old one is gone
//
// A peer notices the handshake within watchInterval and moves the addresses to
// the key that was heard last. Packets are lost for at most that and a round trip;
// TCP sends them again. What the edge itself sends meanwhile waits for the handshake.
//
// MTU. A guest's packet of 1,500 bytes is a frame of 1,514, in VXLAN 1,550
// bytes over IPv4 and 1,570 over IPv6, and in WireGuard, which fills up to
// 16 bytes, at most 1,630 over IPv4 and 1,650 over IPv6. The kernel tells a station
// of a smaller MTU when a VXLAN packet does not fit through the interface that it leaves by,
// so the interface has at least MinMTU whatever the WAN has, and the datagrams
// that do not fit into the WAN's MTU are sent in two IP fragments, by this edge's kernel, put
// together by the other's. Only full packets are concerned: with a WAN of
// 1,500 bytes those above 1,390 bytes (1,370 over IPv6), with 1,600 those above
// 1,490 (1,470); with 1,650 none. Fragments must not be filtered on the WAN; if they are, set
// an MTU of MaxUnfragmented(WAN), and guests are told to send less.
//
// Who the peers are, and what is sent, is left to others.
package wireguard
