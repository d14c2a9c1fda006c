// Package bundle makes one message path out of several connections: resumable
// over cuts, multiplexed, prioritised, paced.
//
//	initiator                                               acceptor
//	Initiate ──Dial──▶ conn 1 ═══════════════════════▶ Attach ◀── Accept
//	             └───▶ conn 2 ═══════════════════════▶ Attach
//	Open(class) ── Send ─┐                         ┌─▶ Accept ── Receive, Release
//	Open(class) ── Send ─┤  scheduler    reorder   ├─▶ Accept ── Receive, Release
//	                     └▶ class, turn ▶ by channel┘
//	                        ▲ ▲ ▲ ▲
//	                        each connection's writer pulls when it can write
//
// A message is cut into frames (package frame). Nothing is pushed into a
// connection: each has one writer, which asks for the next frame whenever the
// one before has gone to the kernel, so that what is decided late is sent
// early. Frames of a channel go over all connections and are put in order at
// the other end.
//
// Each end counts the frames that came on each connection and tells the other.
// When a connection dies, what was sent on it and not counted is sent again on
// others, before anything newer of its class; what comes twice is dropped. A
// connection dies when it breaks, when a frame on it is not what was sent or
// breaks the protocol, and when it was silent for too long. The initiator
// dials as long as connections are missing. A bundle without any waits; after
// CutLimit it fails.
//
// Memory is bounded on both ends: a sender holds no more than the receiver's
// windows allow, and little of it that has not been sent; the receiver drops
// connections of a peer that ignores its windows.
//
// # What it leaves to others
//
// Certificates, TCP's settings, listening and finding a session by its token
// are package wan's: it gives Config.Dial, and Attach after frame.ReadHello.
// What messages mean is their users' business.
package bundle
