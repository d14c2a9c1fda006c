// Package page takes QEMU's migration stream apart into pages of guest memory
// and everything else, without losing or changing a byte: the records that a
// Reader returns, put one after another, are the stream.
//
//	QEMU ──bytes──▶ Reader ──Bytes, Zero, Page…──▶ encoder ══WAN══▶ decoder ──▶ QEMU
//	                                                                   │
//	                               AppendHeader: a page's header again ┘
//
// A Reader never judges a stream. What it does not understand it passes on as
// Bytes, so that a misunderstanding costs compression and never a byte.
//
// # The stream
//
// All integers are big-endian. A counted string is its length (1 byte) and
// that many bytes. The stream of the versions 7.2 to 10.x of QEMU is
//
//	size  field
//	4     magic "QEVM"
//	4     version, 3
//	…     configuration (absent with machine types before 2.4)
//	…     commands and sections, in any order
//	1     0x00, end of sections
//	…     description of the sections, optional: 0x06, length (4), JSON
//
// Configuration:
//
//	1     0x07
//	4     length of the machine type's name
//	…     name
//	…     sub-sections, each: 0x05, name (counted string), version (4), content
//
// with these sub-sections, each at most once:
//
//	configuration/target-page-bits  4 bytes; absent on x86, whose pages are 4 KiB
//	configuration/capabilities      count (4), that many counted strings; the
//	                                capabilities that both ends have to share
//	configuration/uuid              16 bytes
//
// Command, sent by the source whenever it likes between sections:
//
//	1     0x08
//	2     command: 1 open return path, 2 ping, 3 post-copy advise, 4 listen,
//	      5 run, 6 discard, 7 packaged, 8 enable COLO, 9 resume, 10 received
//	      bitmap, 11 switchover start (10.0 and later: the guest is paused)
//	2     length of the payload
//	…     payload. Post-copy advise with 16 bytes: OR of the page sizes of all
//	      RAM blocks (8), size of a target page (8). Packaged: the payload is
//	      a length (4), and that many bytes follow the command
//
// Section:
//
//	1     kind: 1 start, 2 part, 3 end (of an iterated section), 4 full
//	4     section ID
//	…     start and full only: name (counted string), instance (4), version (4)
//	…     content; it has no length: only the section's owner knows its end
//	5     footer: 0x7e, section ID (absent with machine types before 2.4)
//
// The section of guest memory has the name "ram", instance 0 and version 4.
// It starts once, has a part for each stretch of the rounds of copying, and
// ends when the guest is paused and the last pages are out. After its end
// come the devices' sections. Its content is a sequence of records, each
// beginning with 8 bytes: an address in bytes inside a RAM block, a multiple of
// 4096, in the upper 52 bits, and flags in the lower 12:
//
//	0x002  ZERO        block name, fill (1 byte; always 0)
//	0x004  MEM_SIZE    list of blocks; the upper bits are the sum of their sizes
//	0x008  PAGE        block name, 4096 bytes: the page
//	0x010  EOS         the content of this section ends here
//	0x020  CONTINUE    with ZERO, PAGE, XBZRLE, COMPRESS: there is no block
//	                   name, the block is that of the record before, which may
//	                   be in an earlier section
//	0x040  XBZRLE      block name, 0x01, length (2), difference to the page
//	                   sent before
//	0x080  HOOK        nothing more (RDMA)
//	0x100  COMPRESS    block name, length (4), zlib (before 9.1)
//	0x200  MULTIFD_FLUSH  nothing more (8.1 and later, and multifd only)
//
// A block name is a counted string. A page of a block with huge pages comes as
// so many records of 4 KiB. The list of blocks, in MEM_SIZE, is complete when
// the sizes add up to the sum:
//
//	…     block name (counted string)
//	8     size in bytes
//	8     page size in bytes; only when post-copy was advised, and only of
//	      blocks whose pages are not 4 KiB
//	8     guest-physical address; only with capability x-ignore-shared
//
// # What is not taken apart
//
// XBZRLE and COMPRESS records are known by length only and come as Bytes: the
// page that they change is not known from the stream. A stream with
// capability mapped-ram is a file with holes, one with other pages than 4 KiB
// not x86, one that begins otherwise (a multifd channel, TLS) no migration
// stream: all of these are Opaque from where that shows to the end. A section that
// the package does not know (devices that save state before or among the memory: VFIO,
// virtio-mem, dirty bitmaps) is Opaque until the memory's next section
// begins, which is recognised by its header.
//
// # Limits
//
// A name has at most 255 bytes by its format, a machine type's 1,024; a
// configuration has at most 64 capabilities, a stream 4,096 RAM blocks with
// 16 TiB together. More than that is not understood, as above; a list of blocks
// that is not leaves the stream Opaque to its end. A Reader
// keeps a buffer of 1 MiB and the list of blocks, and allocates nothing for a
// record.
//
// # What it leaves to others
//
// What pages contain and how they cross the WAN is for package reduce. Streams
// of several connections (multifd) have no pages in their main one; agents
// do not ask QEMU for them.
package page
