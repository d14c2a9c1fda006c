// Package haproxy drives a HAProxy, from 2.6 on, through its runtime socket:
// servers are added, weighted, drained and removed without a reload, and their
// sessions counted.
//
// # Marks
//
// A server that Drover adds carries its owner in its name, see
// driver.ServerName, and List reads it from HAProxy. A server of HAProxy's
// own configuration has no place for a mark: who changed it, and what weight and
// state it had before, stands in the state folder, in haproxy.json. That file
// also holds what is needed to add a server again.
//
// # Reloads
//
// A reload starts a new process, which knows nothing of added servers. A new
// process is noticed by its process id and its start in "show info", before every call
// and once a second; so is one that starts after a crash or a reboot, whose id may be
// the same. What is missing of haproxy.json's servers is then added again,
// with weight, check and state, and servers of the configuration get the
// weight and state that was set. Where HAProxy reads a server-state-file, the driver
// writes it after every change and every ten seconds, so that a reload keeps the
// states even before the driver has noticed it.
//
// The process that a reload leaves behind serves its sessions to their end, and
// nothing counts them. While it runs, servers are reported as Unseen and are not
// removed without force.
//
// Which VM stands behind which backend, and when a server has drained for long
// enough, is left to others.
package haproxy
