// Package driver holds the small contracts behind which one technology each
// lives: Hypervisor (libvirt), Volumes (disk images). A contract's comment
// says what is repeatable, what "missing" returns, what cancelling leaves
// behind and who closes. The conformance suites are in drivertest, the
// in-memory twins in memory; the technologies are siblings that do not know
// each other.
//
// Errors are drover.Error with a Kind that callers may act upon.
package driver
