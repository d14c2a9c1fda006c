// Package memory holds the in-memory twins of the driver contracts, for tests
// and the simulator: Volumes, a store of disk images as block maps, and
// Hypervisor, which runs VMs that are values. They keep the same promises as
// the real drivers, held to them by the suites in drivertest, and can be told
// to fail, to run out of space and to crash.
//
// Time, networks and guests' behaviour are left to the simulator.
package memory
