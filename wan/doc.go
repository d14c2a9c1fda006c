// Package wan is the WAN data path between two agents: the only code that
// touches guest bytes on their way.
//
//	source host                                                    destination host
//	QEMU              Sender                                Receiver             QEMU
//	 │ memory, unix     │                                      │                   │
//	 │─────────────────▶│ parse (page), encode (reduce):       │                   │
//	 │                  │ zero, same, reference, delta, zstd   │                   │
//	 │                  │═════ memory ════════════════════════▶│ decode: the same  │
//	 │                  │◀════ fill: missed, applied ═════════▶│ bytes again       │
//	 │                  │◀════ return ═════════════════════════│──────────────────▶│
//	 │ disks, NBD, unix │                                      │ NBD, unix         │
//	 │─────────────────▶│ end of NBD (disk), encode (reduce)   │                   │
//	 │                  │═════ disk ══════════════════════════▶│ apply, flush      │
//	 │                  │◀════ applied, flushed ═══════════════│──────────────────▶│
//	 │                  │                                      │
//	 │                  │ catalogues of what is there (control)│ library (chunk):
//	 │                  │◀═════════════════════════════════════│ images, memories,
//	                    all of it over one bundle of               remains of disks
//	                    TLS 1.3 connections (frame, bundle)
//
// A Node is an agent's end. The destination opens a session with Receive under a
// random token, and tells the token and what content it holds (Offer) over the
// control call; the source connects with Send. A session survives cuts of the
// WAN; memory and disks share its connections, by priority, and its rate.
//
// The bytes that QEMU gets at the destination are those that QEMU wrote at the
// source. How they cross is described from the wire up in the packages below:
//
//	frame   connections, frames, versions
//	bundle  several connections as one path, over cuts
//	chunk   what content a host holds
//	delta   a block as its difference from an older version
//	page    QEMU's memory stream
//	reduce  batches: blocks as what the other end does not have
//	disk    the disks of a VM that runs
//
// and, in this package, the mirrors of the memory (memory.go), the catalogues
// that a source asks for (catalogue.go) and disks at rest (copy.go).
//
// # What it leaves to others
//
// When to open, keep and close sessions, and what a failed one means, is the
// agent's. The hypervisor's sockets are made here at the source and by the
// hypervisor at the destination.
package wan
