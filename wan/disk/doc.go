// Package disk carries the disks of a VM that is moving: the NBD connections of
// QEMU's mirrors end at the source's agent, and what they write is carried to
// the destination's agent in batches of blocks, each reduced against what is
// there already.
//
//	source host                                               destination host
//	QEMU mirror ──NBD──▶ Source ══ one channel per disk ══▶ Target ──NBD──▶ QEMU
//
//	mirror            Source                           Target              QEMU
//	  ── GO export ────▶ ── open ───────────────────────▶ ── GO export ─────▶
//	  ◀── size ──────── ◀── opened ───────────────────── ◀── size ──────────
//	  ── WRITE ────────▶ taken
//	  ◀── ok ──────────  ── batch 1 ────────────────────▶
//	  ── WRITE ────────▶                        (miss ◀── what is not as it was
//	  ◀── ok ──────────  ── batch 2, (fill) ────────────▶  expected; fill ──▶)
//	                                                       ── WRITE … ──────▶
//	  ── FLUSH ────────▶ ── flush ──────────────────────▶ ◀── ok ───────────
//	                     ◀── applied 2 ──────────────────
//	                                                       ── FLUSH ────────▶
//	  ◀── ok ────────── ◀── flushed ──────────────────── ◀── ok ───────────
//
// # No acknowledged write is lost
//
// A write is acknowledged when the Source has taken it, before it has left the
// host. That is safe because of what QEMU and libvirt do with a mirror, and
// because of a barrier of our own:
//
//  1. Until the switchover the source's disk is the VM's disk. A mirror only
//     reads it; if the Source dies with writes that it has acknowledged, the
//     mirror's target is thrown away and the VM runs on where it is.
//  2. A mirror becomes ready, and ends when it is cancelled in that state, only
//     after mirror_flush has succeeded with nothing dirty and nothing in flight
//     (QEMU, block/mirror.c, mirror_run). libvirt cancels the mirrors while the
//     VM is paused, and waits for the end of each job before it lets the
//     memory's last round go (qemuMigrationSrcNBDCopyCancel, from
//     qemuMigrationSrcRun). mirror_flush is an NBD FLUSH here. It is answered when
//     the Target has applied every batch sent before it and QEMU's flush at
//     the destination has returned; the queue is in order, and an operation is in
//     it before it is acknowledged. So when the job has ended every write is in
//     the destination's image.
//  3. A write that fails at the destination fails the disk: that flush and
//     every later write and flush carry its errno, the job ends with an error,
//     libvirt undoes the move.
//  4. Should a version of QEMU or libvirt do without the flush, Drain waits for
//     the same without flushing, and the two ends count: Source.Positions is
//     what was acknowledged, Target.Positions what was applied in order and
//     without a gap. The agents let the destination run the VM only if they are
//     equal (Missing).
//
// Operations of different batches may be under way together, as long as they do
// not overlap: an operation begins when none that it overlaps is under way, so
// every byte ends as the last write to it says.
//
// # References
//
// Blocks that the destination has elsewhere cross as references (package reduce).
// Blocks that have arrived are sources themselves: each disk has a number,
// which the Source gives and the first message carries, and Target.ReadBlocks
// reads them through QEMU. The Source adds a block to the index when the Target has
// applied it and takes it out when it is written again; whatever goes wrong in
// between is found by the batch's hash and filled.
//
// # What it leaves to others
//
// The channels and their survival of cuts are package bundle's; encoding,
// hashes, misses and fills package reduce's; NBD package nbd's. When disks are
// drained, compared and given up is the agent's business.
package disk
