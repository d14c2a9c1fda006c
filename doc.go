// Package drover is the domain: what an operator can name when a virtual
// machine has to be elsewhere. Sites, hosts, links, VMs, disks, segments,
// moves, methods, checks and errors live here as plain values with their own
// validation.
//
// It imports the standard library only, starts no goroutine and does no I/O.
// How values are observed (driver), decided upon (saga, planners), carried out
// (executor, agent, server) and shown (api, cmd) is left to other packages.
package drover
