// Package wan is the WAN data path between two agents: the only code that
// touches guest bytes on their way. It carries them over TLS 1.3 with
// certificates at both ends, on the same port as the agents' control calls.
//
//	source host                                                   destination host
//	QEMU        Relay / SendImage                                 Endpoint         QEMU
//	 │               │                                               │               │
//	 │               │ TCP, TLS 1.3, ALPN drover-wan/1               │               │
//	 │ connect(unix) │──────────────────────────────────────────────▶│ certificate:  │
//	 │──────────────▶│ header: version, channel, token, name         │ who is it?    │
//	 │               │──────────────────────────────────────────────▶│ token: whose  │
//	 │               │                                               │ session?      │
//	 │               │                                               │ connect(unix) │
//	 │               │                             answer: accepted  │──────────────▶│
//	 │               │◀──────────────────────────────────────────────│               │
//	 │  bytes, both ways, each direction closed on its own           │               │
//	 │◀═════════════▶│◀═════════════════════════════════════════════▶│◀═════════════▶│
//
// A session is what one move sends from one agent to another. The destination
// opens it on its Endpoint under a random token and tells the token over the
// control call; every stream begins with it. A stream is one connection: its
// channel says what it carries.
//
//	memory  QEMU's migration stream, one connection
//	disk    NBD, the source's QEMU is the client; several connections
//	copy    a disk image in the format below, sent by this package
//
// # Header, big-endian
//
//	offset  size  field
//	0       4     magic "DRWN"
//	4       1     version, 1
//	5       1     channel: 1 memory, 2 disk, 3 copy
//	6       1     length of the token, 16 to 32
//	7       1     length of the name, 0 to 63 (copy: the disk's target)
//	8       4     reserved, zero
//	12      …     token, then name
//
// and its answer: status (1 byte: 0 accepted, 1 refused, 2 not reachable),
// length of a text (1 byte), the text. An unknown token, a token that is
// another agent's, one whose session has ended, and a channel that the
// session does not offer are answered alike, with refused.
//
// # Copy format, big-endian
//
// From the source, frames; each begins with its kind:
//
//	1 begin  version (1 byte, 1), image size (8 bytes)
//	2 data   offset (8), length (4, at most 1 MiB), XXH64 of the content (8), content
//	3 zero   offset (8), length (8)
//	4 end    digest (32)
//
// begin comes first, then data and zero frames in ascending order without
// overlap, then end. The destination answers with frames of its own, which
// begin with their kind too:
//
//	5 verified  bytes read back so far (8); at least one each verifyBeat
//	6 done      digest (32): all is written, durable, read back, and this is
//	            the digest of what was read
//	7 failed    length (2), text
//
// The digest is BLAKE3-256 over the runs in ascending order, where a run is a
// maximal sequence of frames of one kind in which each begins where the one
// before it ends: for a data run its content and then kind (1 byte, 2), offset
// (8) and length (8); for a zero run kind (1 byte, 3), offset (8) and length
// (8). How runs were cut into frames does not matter.
//
// # What it leaves to others
//
// When to open and close sessions, and what a failed one means, is the
// agent's. Bytes are carried as they are; reducing them is for later and will
// change what lies between Relay and Endpoint, not their callers.
package wan
