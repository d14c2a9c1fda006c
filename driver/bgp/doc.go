// Package bgp announces host routes at a site's edge over BGP: it implements
// driver.Routes. Its speaker is GoBGP in a child process, so that a crash of it
// costs a restart of the child and not the agent:
//
//	agent ── Speaker ── stdin: config, orders ──▶ child: Main ── TCP 179 ──▶ router
//	         │      ◀── stdout: sessions, sent ──  (GoBGP)
//	         └ record of routes and owners (a file)
//
// The Speaker decides, keeps the record and supervises; the child carries out
// and reports, and forgets. The child ends when its standard input does, so it
// cannot outlive the agent, and it ends without a NOTIFICATION: to a router
// that is a restart, and with graceful restart (RFC 4724) it keeps the routes
// until the next child has announced them again.
//
// The child dials, nothing listens: no port is open on the edge, and a router
// may be configured actively or passively. Everything the neighbours announce
// is refused by policy, and nothing but the Speaker's own routes is exported,
// so that an edge between two routers never carries the traffic of others.
//
// What routers do with the routes, and the edge's own forwarding, are left to
// others.
package bgp
