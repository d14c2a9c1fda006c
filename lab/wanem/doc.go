// Package wanem is a wide-area link in user space, for labs on machines whose
// kernel has no netem. A Link joins two TAP devices, which may live in two
// different network namespaces, and gives each direction a rate, a delay,
// jitter, loss, a bounded queue, and a cable that can be cut and healed, all
// of it changeable while traffic runs.
//
//	 namespace A                 this process                 namespace B
//	┌─────────┐  read   ┌───────────────────────────┐  write  ┌─────────┐
//	│ TAP a   │ ──────▶ │ forward: admit, hold, due │ ──────▶ │ TAP b   │
//	│         │ ◀────── │ reverse                   │ ◀────── │         │
//	└─────────┘  write  └───────────────────────────┘  read   └─────────┘
//
// # How a direction works
//
// Two goroutines serve a direction. The first reads a frame, asks the shaper
// when the frame's last bit arrives at the far end, and keeps it until then;
// the second sleeps on a timer until the first frame kept is due and writes
// it. Both rest in the runtime's poller, the timer being a timerfd, because
// the runtime's own timers are up to a millisecond late in a process at rest.
// One thread per direction in ppoll(2) was tried first and used more CPU, by
// single runs on a machine with other load; its timeout, too, has a slack that
// grows with the delay (0.1 %, 0.5 % for niced processes).
//
// The rate is a virtual serialisation clock: a frame begins when the one
// before it has ended, whenever the goroutine happens to run, so a late
// wake-up costs no bandwidth while something waits. How far that clock is
// ahead of the real one is the queue; no second structure holds it. Frames
// rest in one ring of memory, are read into it and written from it, and
// nothing is allocated per frame.
//
// On a machine whose cores are all busy the process should call RaisePriority:
// a frame read late was, to the shaper, sent late.
//
// # What the settings mean
//
// The rate counts IP packets (layer 3), as a carrier's IP service does: the
// Ethernet header is not charged. TCP with 1500-byte packets therefore
// delivers at most 96.5 % of the rate as payload. The delay is one way and
// starts when the last bit has been sent. Frames never overtake each other:
// jitter is a slowly moving offset, straight lines between random points four
// jitters apart, which is how queues elsewhere on a path behave, and whose
// slope cannot reorder. A lost segment has used the link; a segment that the
// full queue refused has not.
//
// # Offload-sized packets
//
// The TAPs offer checksum and TCP segmentation offload, so the kernel passes
// packets of up to 64 KiB, and the virtio-net header passes through. Everything
// that a wire would do per segment is done per segment: queue, loss, counting
// and, when a packet takes longer than a millisecond to serialise, its time of
// arrival. A packet that has to be divided is not copied: what is left of it
// goes out as runs of consecutive segments, each an offload packet of its own
// with new IP and TCP headers in front of a slice of the original payload.
//
// A full queue drops at its tail, segment by segment. The other way, to stop
// reading the TAP, was refused: the device's own ring then holds thousands of
// packets of 64 KiB, which is neither bounded in bytes nor visible here, and it
// too drops at its tail, whole packets at a time. This was reasoned, not
// measured.
//
// Packets that come without offload cost a read and a write each, about 20 µs
// together with what the receiving kernel does inside the write: full rates
// need senders that offload, as kernels and virtio guests do.
//
// # What it leaves to others
//
// Addresses, bridges and routes around the TAPs, the namespaces themselves,
// and which links a lab has.
package wanem
