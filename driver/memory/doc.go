// Package memory holds the in-memory twins of the driver contracts, for tests
// and the simulator: a store of disk images as block maps, a hypervisor that runs
// VMs that are values, their insides and ports, and what an edge talks to: a mesh, a
// kernel's segments and addresses, routers, a zone, a DHCP service, a load
// balancer. They keep the same promises as the real drivers, held to them by
// the suites in drivertest, and can be told to fail, to run out of space and
// to crash.
//
// Time, networks and guests' behaviour are left to the simulator.
package memory
