// Package remote lets a VM work on a disk that was left behind at another site.
//
//	the VM's host                                       the host that has the image
//	QEMU ── NBD, unix socket ──▶ Disk ══ NBD in TLS ══▶ Share ──▶ image (qemu-nbd)
//	                             │ outstanding requests │ one session at a time
//	                             │ are sent again       │ a write is acknowledged
//	                             │ after a cut          │ when it is durable
//
// Disk is the server that QEMU sees. It knows the disk's size, so QEMU can connect
// while the far end does not answer, and it answers no request with an error because
// of the link: what the far end has not answered is sent again over the next
// connection, and the guest waits.
//
// Why nothing is lost, or done twice too late: a request that is sent again is a
// read, a flush, or a write of the same bytes to the same place, and QEMU has not
// been told that it is done, so no later write relies on it. Before the Share takes
// the first request of a new session it has ended the old one, that is, every
// request of it has been carried out or will never be: a request from before a cut
// cannot come after one from behind it. What the Share acknowledges is durable, so
// neither its process nor its host has to survive until the guest's next flush.
//
// What it leaves to others: connections and who may make them (package wan), when
// a disk may be used (the agents), the image (package disk).
package remote
