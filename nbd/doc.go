// Package nbd speaks the Network Block Device protocol, both sides of it, as
// far as QEMU's disks need it.
//
// Client is what reads and writes a disk image through qemu-nbd or a running
// QEMU's server: the fixed newstyle handshake, structured replies or extended
// headers, metadata contexts, READ, WRITE, WRITE_ZEROES, TRIM, FLUSH,
// BLOCK_STATUS and DISC.
//
// Serve is what a QEMU's mirror job writes to: the fixed newstyle handshake
// with LIST, INFO, GO, EXPORT_NAME and ABORT, structured replies where the
// client asks for them, and READ, WRITE, WRITE_ZEROES, TRIM, FLUSH, CACHE (which
// does nothing) and DISC; of a backend that knows what of it is data also
// SET_META_CONTEXT and BLOCK_STATUS. It refuses TLS and extended headers, which
// QEMU from 7.2 to 10 does without.
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
// Neither side trusts the other: every length, offset, cookie and count is
// checked against what was asked or offered before anything is stored, and
// nothing is allocated by the other's word alone.
//
// Starting a process, listening, TLS, reconnecting and the meaning of a context's
// flags are left to the caller.
package nbd
