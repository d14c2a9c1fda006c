// Package dns is the driver of one zone on real name servers: package driver's
// Names by dynamic updates (RFC 2136) that are signed with a shared key (TSIG,
// RFC 8945) and sent to the zone's primary, and by asking every authoritative
// server directly.
//
//	agent                           primary                  secondaries
//	  │ A, AAAA, mark? (signed, TCP)   │                          │
//	  │ ──────────────────────────────▶│                          │
//	  │ update (signed, TCP):          │                          │
//	  │   if A, AAAA, mark are as read │                          │
//	  │   and there is no CNAME        │                          │
//	  │   then the new ones instead    │                          │
//	  │ ──────────────────────────────▶│ NOTIFY, transfer ───────▶│
//	  │ name? (UDP, TCP when truncated)│                          │
//	  │ ──────────────────────────────▶│ ────────────────────────▶│
//
// The server checks the prerequisites and makes the changes as one, so a
// foreign change between reading and updating makes the update fail.
//
// # The mark
//
// A name that Drover has changed has a TXT record beside it, at
// _drover.NAME, with TTL 0 and a text that is split into strings of at most
// 255 bytes:
//
//	drover1 owner=vm/UUID since=SECONDS before=RECORDS now=RECORDS
//
// Since is in seconds since 1970 (UTC). RECORDS are the addresses, separated by
// commas, after the TTL of each family in seconds: "300/60:192.0.2.1,2001:db8::1".
// before is what was there before the owner's first change, now what Drover put
// there last; so the zone itself says whether somebody else has been there
// since, and what to put back. A TXT record at that name with any other content
// is somebody else's; the name is then left alone.
//
// # Harmless check
//
// Check sends a signed update, for each name, that deletes addresses no host
// can have (0.0.0.0 and ::) and a mark no driver writes. It passes everything
// that a real change has to pass, policies for single names and types
// included, and changes nothing, not even the zone's serial.
//
// What is in caches of resolvers is left to the TTLs, and starting name
// servers to others.
package dns
