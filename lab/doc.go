// Package lab runs several data centers on one Linux machine, from one lab file:
// a real libvirtd in every host, real guests, an agent per host and edge, a
// server, and emulated WAN links between the sites. The demo, the tests and the
// benchmarks run on it.
//
//	lab file ──▶ labfile.Load ──▶ topology.New ──▶ lab.Up
//	                                                 │ holder per node    (node)
//	                                                 │ bridges, routes    (topology)
//	                                                 │ WAN emulator       (wanem)
//	                                                 │ images             (guest)
//	                                                 ▼
//	                    libvirtd, agent, server, guests: running
//
// Everything that a lab is lives in its processes and in one folder. Its
// interfaces, mounts and namespaces belong to the holders and go with them, and
// every background process carries the lab's folder in its arguments. So Down
// works whatever happened before: it kills what carries the folder's name and
// removes the folder.
//
// The package leaves to others what a lab file means (labfile), what its
// networks look like (topology), what a node does (node), how guests are built
// (guest) and how packets are delayed (wanem).
package lab
