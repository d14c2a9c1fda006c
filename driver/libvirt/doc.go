// Package libvirt drives QEMU through a host's own libvirtd, over its unix
// socket and with go-libvirt (no cgo). It implements driver.Hypervisor; the
// bytes of a migration, the disks' images and the decision which side may run
// a guest are left to others.
//
// # Migration
//
// The five phases of libvirt's protocol 3 are driven one by one in its direct
// managed mode: the two libvirtds never talk to each other, memory and disks
// (NBD) flow over unix sockets that the caller relays.
//
//	source libvirtd            caller              destination libvirtd
//	Begin ─────── offer ────────▶ │ ─────────────▶ Prepare (QEMU listens)
//	Perform ◀───── cookie ─────── │ ◀───────────── │
//	  │ memory, disks over unix sockets ══════════▶ QEMU
//	  guest paused ── cookie ───▶ │ ─────────────▶ Finish: complete, persistent, paused
//	  │                           │                resume: the guest runs
//	Confirm ◀───── cookie ─────── │ ◀───────────── │
//	  guest destroyed, undefined
//
// Finish is asked with VIR_MIGRATE_PAUSED and the guest resumed by a call of
// its own (2 to 3 ms). Without that flag a connection that breaks inside
// Finish makes libvirt kill a guest that may have run for a moment already.
//
// # What libvirt does when the client or the manager dies
//
// From libvirt 11.3, src/qemu/qemu_migration.c
// (qemuMigrationAnyConnectionClosed, qemuMigrationSrcPerformPhase,
// qemuMigrationDstFinish) and src/qemu/qemu_process.c
// (qemuProcessRecoverMigrationOut and -In, qemuProcessAutoDestroy); the
// conformance suite does it to 11.3.0 and QEMU 10.0.2 on purpose.
//
//	side         died in                 then
//	source       after Begin             the guest runs on, the migration is forgotten
//	source       Perform (client)        the transfer goes on to its end without its client; if
//	                                     it fails, as it does when the relay died too, the guest
//	                                     runs on; if not, it ends as in the next line
//	source       after Perform (client)  the guest stays paused (reason: migration), the job is
//	                                     forgotten, any client may resume or destroy it
//	source       Perform (manager)       restarted, it cancels the transfer; the guest runs on
//	source       after Perform (manager) the guest stays paused
//	destination  before Finish           the receiving QEMU is destroyed, nothing stays
//	             (client or manager)
//	destination  between Finish and      the guest stays paused, complete and persistent
//	             resume
//	destination  after resume            the guest runs
//
// So the one state that needs somebody's decision is a source that is paused
// with its client gone; Settle carries that decision out.
//
// A mirror that is slowed down by a bandwidth limit notices the loss of its
// destination only when it next wants to write (seconds); an abort ends it at
// once. An abort does not end a mirror whose relay has stopped reading: QEMU
// waits for what is in the full unix socket, and its yank command, which frees
// TCP sockets, does not wake a writer there. So whoever cancels a Perform has
// to close the relay's connections as well. A relay has to close a connection
// at once, too, when it cannot reach the other side: while QEMU connects a
// mirror it does nothing else, its monitor included.
//
// # go-libvirt
//
// It has no contexts and no timeouts: every call runs under a watchdog that
// closes its connection (see conn). Events with typed parameters are dropped
// by it, so statistics are read, not awaited; subscriptions ignore their
// domain and end with the watch's own connection.
package libvirt
