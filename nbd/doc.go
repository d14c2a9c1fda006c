// Package nbd is a client of the Network Block Device protocol, as far as
// reading and writing a disk image through qemu-nbd needs it: the fixed
// newstyle handshake, structured replies or extended headers, metadata
// contexts, READ, WRITE, WRITE_ZEROES, FLUSH, BLOCK_STATUS and DISC.
//
// The protocol's source is doc/proto.md of github.com/NetworkBlockDevice/nbd;
// the context qemu:allocation-depth is in QEMU's docs/interop/nbd.rst.
//
//	client                                     server
//	       ◀── NBDMAGIC IHAVEOPT flags ──────
//	       ── flags ────────────────────────▶
//	       ── OPT EXTENDED_HEADERS ─────────▶  ACK: 64-bit headers, or
//	       ── OPT STRUCTURED_REPLY ─────────▶  ACK: 32-bit headers
//	       ── OPT SET_META_CONTEXT names ───▶
//	       ◀── one id per context, ACK ──────
//	       ── OPT GO export ────────────────▶
//	       ◀── size, flags, block size, ACK ─
//	       ══ transmission ══════════════════
//	       ── request (cookie, type, range) ▶  any number, up to MaxInFlight
//	       ◀── chunk … chunk (cookie, DONE) ─  in any order
//	       ── DISC ─────────────────────────▶
//
// The server is not trusted: every length, offset, cookie and count it sends
// is checked against what was asked before anything is stored, and nothing is
// allocated by its word alone.
//
// Starting a server, TLS, reconnecting and the meaning of a context's flags
// are left to the caller.
package nbd
