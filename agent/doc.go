// Package agent is a host's or a site edge's daemon: it observes its
// hypervisor, carries out a move's actions as jobs that can be found again,
// and settles the switchover of a live move with the agent at the other end.
//
//	source agent                                            destination agent
//	  │ hypervisor: Begin                                          │
//	  │ ── Prepare(definition, cookie) ──────────────────────────▶ │ journal: prepared
//	  │                                                            │ hypervisor: Prepare
//	  │ ◀────────────────────────────────── cookie, token ──────── │ data path open
//	  │ relays open, hypervisor: Perform                           │
//	  │ ══ memory, disks (package wan) ══════════════════════════▶ │
//	  │ guest PAUSED                                               │
//	  │ journal: given up                                          │
//	  │ ── Finish(token, cookie) ────────────────────────────────▶ │ journal: accepted
//	  │                                                            │ hypervisor: Finish, guest RUNS
//	  │ ◀───────────────────────────────────────── running ─────── │ journal: running
//	  │ journal: accepted                                          │
//	  │ hypervisor: Confirm (guest destroyed)                      │
//	  │ journal: moved                                             │
//
// The rule that keeps a guest from running twice: once "given up" is in the
// source's journal, the source does not let the guest run before the
// destination has said, from its own journal, that it never will. The rule
// that keeps it from running nowhere: a source that has given up asks (Fate)
// until it is answered, whoever else is down; and a destination that has not
// accepted journals its refusal before it says so. A destination that accepted
// and then failed definitely, with the guest gone, refuses; one that does not
// know how its acceptance ended goes forward where the VM has been made
// persistent, since it may have run, and refuses where it has not.
//
// Every action is a job named by move, step and kind, kept in the agent's own
// journal before it begins and after it ends. A job that a crash interrupted is
// begun anew when it is asked for again; all actions can be repeated.
//
// What it leaves to others: which steps a move has, and what to do when one
// fails (executor, server); how a hypervisor or an image is handled (driver);
// how guest bytes cross (wan).
package agent
