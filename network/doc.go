// Package network plans what the edges of sites do for a VM that keeps its
// addresses while it moves between sites whose segments are not one layer 2
// network: by stretch (the segment is extended to where the VM goes) or by
// route (its addresses follow as host routes).
//
// Besides, Detour judges what a VM pays for that, from what edges have counted.
//
// A plan is a value: operations for each edge, by the moment at which they are
// due. It depends on nothing but what it is given, so that the same plan comes
// out of the same world. Whether edges are up, who carries the operations out,
// and when to try again are left to others: packages server and executor.
//
// What a VM needs of the edges follows from where it is, and how it came there.
// H is the segment's home, D any other site:
//
//	at home             nothing
//	at D by route       D: addresses delivered into the bridge, announced as host
//	                    routes; all other addresses of the segment answered for.
//	                    H: neighbours reach the addresses through the edge, and what
//	                    still comes in there is metered.
//	at D by stretch     H, D and every other edge to which the segment is extended:
//	                    the extension, with the VM as an owner; the stations.
//	                    D: addresses delivered into the bridge. With local egress
//	                    announced, too. H and D meter what they carry for them.
//
// Every plan leads to one of these states from any other of them, and so does
// not care how the VM came to where it is. Everything has the VM as its owner,
// and an edge's extension ends with its last owner; so plans for other VMs
// of the same segment do not get in each other's way, as long as one begins when
// the other has ended. Keys says which do.
package network
