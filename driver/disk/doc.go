// Package disk is the store of disk images in folders of one host, worked on
// through QEMU's own tools: qemu-img makes images and vouches for them,
// qemu-nbd opens them, so that formats are QEMU's business alone.
//
// An image that is open for writing, or that is not raw, is a child process that
// serves one connection on a unix socket in a private folder; see package nbd
// for the protocol. A raw image that is only read is read as the file it is.
// QEMU's own file locks keep an image that a VM runs on from being opened, and a
// VM from being started on an open one; a backing file of a running VM, which
// nobody writes to, can be read all the same.
//
// # What counts as an image
//
// The format of a file is decided in this order, none of which a guest can
// influence where the first two apply: the extended attribute
// user.drover.format that Create sets, the name's ending .raw, the content. A
// qcow2 header makes it qcow2, another format's magic number no image. What
// remains is raw if its size is a positive multiple of 512 bytes and its name
// does not end in .qcow2. Backing chains are followed here, header by header,
// before QEMU sees them: every image of a chain must be a file below the
// store's folders and be named with its format, so that no header can make
// QEMU read another file or connect anywhere.
//
// # Content identity
//
// Identify cuts the guest-visible bytes into blocks of 1 MiB (the last may be
// shorter). The identity is BLAKE3-256 over
//
//	"drover content 1\n"
//	size in bytes                  uint64, little endian
//	for each block in ascending order that has a byte other than zero:
//	    index of the block         uint64, little endian
//	    BLAKE3-256 of its bytes    32 bytes
//
// so it depends on neither format nor allocation, and blocks that are known to
// be zeros cost nothing.
//
// When VMs run, who may use an image and copying between hosts are left to
// others.
package disk
