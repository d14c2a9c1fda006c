// Package drivertest is the conformance suites of the contracts in package
// driver, one for each. Every driver passes its contract's suite
// against the real thing, and so does the in-memory twin, which is what makes
// the twin worth testing with.
//
// A suite knows contracts only; starting what a driver needs (a libvirtd, a
// router, a folder) is left to the driver's own test.
package drivertest
