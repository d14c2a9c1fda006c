// Package chunk is what an agent knows of the content it holds: fixed, aligned
// blocks of 4 KiB, named by their XXH3-64.
//
// A Source is a fixed sequence of blocks with an id that both ends of a move
// compute alike: a golden image, the memory of a VM as it was when it last
// moved, what remains of a disk. A Catalogue is the list of a source's
// fingerprints in a file. An Index answers "which source has a block with this
// fingerprint?" from memory. A Library is the folder in which an agent keeps
// memories and catalogues within a limit, and the indexer that makes the
// catalogues in the background. A Memory is the mirror of one move, which
// becomes the next memory source.
//
// Nothing here is proof of anything: a fingerprint has 64 bits, an image may
// have been written to since it was catalogued, and a memory is not forced to
// the disk before it is offered. What is read from a source because a
// fingerprint pointed there has to be verified by a strong hash at its use.
// That, the choice of what is sent (package reduce), the wire and the
// negotiation of sources between two agents are left to others.
package chunk
