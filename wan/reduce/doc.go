// Package reduce turns the blocks of a guest's memory and disks into batches that carry only what the
// other end does not have, and back, bit for bit.
//
//	sender                                                          receiver
//	page.Record ─▶ MemoryEncoder ─┐                        ┌─▶ MemoryDecoder ─▶ QEMU
//	                              ├─▶ Packer ══batch══▶ Unpacker
//	disk, cold copy ──────────────┘      ▲                 │└─▶ disk
//	                                     │ Retained        │
//	                                     └◀════ miss ══════┤ what it has is not what the
//	                                     ══════ fill ═════▶┘ sender took for granted
//
// A Packer sends each block in the shortest form there is: as zeros; as the same as, or a delta of, the version
// that both ends have at its place; as a reference to a block that the receiver
// has elsewhere (package chunk knows); compressed; or raw. The Unpacker makes
// the blocks again. Of what it takes from storage of an earlier time it checks a BLAKE3-256, of everything an
// xxh3; what does not fit is asked for again. So a stale index costs a round trip
// and never a wrong byte.
//
// SendMemory and ReceiveMemory run QEMU's memory stream over channels. How messages cross the WAN
// is for package bundle, what is in QEMU's stream for package page, what the receiver
// has for package chunk.
//
// # Batch, version 1
//
// A uvarint is a number as encoding/binary writes it: 7 bits a byte, lowest
// first. A varint is a uvarint with the sign in the lowest bit. Fixed numbers are little-endian.
//
//	1         version: 1
//	1         flags: bits 0–1 codec of the packed section (0 stored, 1 zstd, 2 S2),
//	          bit 2 a zstd stream begins here, bit 3 a hash follows,
//	          bits 4–7 lane, 0 to 3
//	uvarint   number of the batch, from 0 on without a gap
//	uvarint   blocks, at most 2048
//	uvarint   raw blocks
//	uvarint   bytes of meta, at most 262144
//	uvarint   bytes of operations
//	uvarint   bytes of deltas
//	uvarint   literal blocks
//	8         check: xxh3 of 64 bits over the contents of all blocks that are not sent
//	          as zero, in order, and then the meta
//	32        hash, if flagged: BLAKE3-256 over the BLAKE3-256s of all verified blocks, in order
//	…         packed section: meta, operations, deltas, literal blocks
//	4096 ×    raw blocks
//
// What is in the packed section and the raw blocks together is at most 983040 bytes
// before it is packed. With codec zstd the packed section is a piece of one zstd stream per lane, whose frame has a window of 8 MiB and no
// checksum; the sender flushes it at the end of each piece, so a piece decodes to exactly the section. Where a stream
// begins, the one before in that lane ends, without the last block that a frame would have. With
// S2 the section is one S2 block. A lane is nothing but a zstd stream of its own, so that
// compressors may work side by side; the batches of all lanes are one sequence.
//
// Operations say how each block is made, in order. Each begins with a uvarint: bits 0–2 the
// operation, bit 3 fresh, above it the number of blocks less one.
//
//	0  zero
//	1  literal: the next literal blocks
//	2  raw: the next raw blocks
//	3  reference: uvarint source, varint block less the block that is expected, which is
//	   the one after the last reference to that source, at first 0.
//	   The blocks follow one another in the source
//	4  same: the version before at the block's place, which the meta tells
//	5  delta: the same, changed by the next delta of the deltas (package delta)
//
// What 3, 4 and 5 make is verified, part of the hash, unless fresh says that the receiver wrote what it is
// made of in this same session; the check is over these too. The version before is the one before the
// batch: no block's place is in a batch twice.
//
// Sources are numbered as the receiver has advertised them, those of the session's disks
// after these; 65535 is the guest's own memory, as it was before the batch.
//
// # Miss and fill
//
// A miss goes from receiver to sender; the blocks meant are the dependent ones, those of operations 3
// to 5, counted from 0:
//
//	uvarint   number of the batch
//	uvarint   1: all dependent blocks are wanted, and nothing follows. Otherwise 0:
//	uvarint   how many blocks could not be read
//	          for each, a uvarint: the blocks between it and the one before
//	          for each other verified block: the first 8 bytes of the BLAKE3-256 of what the receiver has
//
// The sender answers with the blocks that could not be read and those whose hash
// differs, all if that is none, in fills of at most 128 blocks:
//
//	uvarint   number of the batch
//	uvarint   1: the last fill of this miss; 0
//	uvarint   blocks
//	          for each, a uvarint: the dependent blocks between it and the one before
//	…         their contents, one S2 block
//
// If hash or check still fail, the receiver sends a miss for all. If they fail after that, the session is over.
//
// # The meta of a memory stream
//
// A sequence of elements. Each begins with a uvarint: bits 0–2 the element, above it an argument.
//
//	0  bytes: argument bytes of the stream follow
//	1  pages: argument+1 pages from the current place on; the batch's next blocks
//	2  zeros: argument+1 zero pages, as QEMU calls them; no blocks of the batch
//	3  filled: as 2, and a byte that the pages consist of
//	4  seek: the current place is in RAM block argument; a varint: pages, from
//	   where the last page of that block ended, at first its beginning
//	5  odd: the next page's header is not as expected
//	6  RAM blocks: argument more; for each a uvarint, its name's length, the name, and
//	   a uvarint, its bytes
//
// The first page of an element is expected to have CONTINUE in its header if it is in the
// same RAM block as the page before it; the others have it. A page's place in the mirror
// is its number when all RAM blocks lie one behind the other, in the order announced.
//
// # The messages of a memory stream
//
//	1  batch     on the memory channel
//	2  abort     why the sender gives up, text; on the memory channel. The same of the
//	             receiver, on the fill channel
//	3  miss      on the fill channel
//	4  applied   uvarint: the batch of this number is complete at the receiver, and all
//	             before it; on the fill channel, for batches that have dependent blocks
//	5  fill      on the fill channel
//	6  return    bytes of QEMU's return path, on the return channel
package reduce
