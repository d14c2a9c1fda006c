// Package frame is the wire format of the WAN data path: what travels inside
// the TLS connections of a bundle.
//
//	initiator                                              acceptor
//	    │  TCP, TLS 1.3                                        │
//	    │◀════════════════════════════════════════════════════▶│
//	    │  hello: versions, features, token, bundle, number    │
//	    │─────────────────────────────────────────────────────▶│ token: whose session?
//	    │                                                      │ bundle: the one that began it?
//	    │                                                      │ number: never seen before?
//	    │  answer: accepted, version, features, windows        │
//	    │◀─────────────────────────────────────────────────────│
//	    │                                                      │
//	    │  open(channel 1, sequence 0, "memory")               │
//	    │─────────────────────────────────────────────────────▶│
//	    │  data(channel 1, sequence 1, fragment 0), …          │ (any connection of the
//	    │─────────────────────────────────────────────────────▶│  bundle, any order)
//	    │  ack(connection 1: 2 frames; channel 1: consumed)    │
//	    │◀─────────────────────────────────────────────────────│
//	    │  ping, pong: both ways, all the time                 │
//	    │◀────────────────────────────────────────────────────▶│
//	    │  close-send(channel 1, sequence n)                   │
//	    │─────────────────────────────────────────────────────▶│
//	    │  bye(clean)                                          │
//	    │◀────────────────────────────────────────────────────▶│
//
// A bundle is several such connections that act as one. The initiator chooses
// its id at random; every connection of it says the id and a number of its
// own, counted from 1 and never used twice. All integers are big-endian;
// XXH3-64 is unseeded.
//
// # Hello
//
//	offset  size  field
//	0       4     magic "DRWN"
//	4       1     lowest version that the initiator speaks, at least 1
//	5       1     highest
//	6       1     length of the token, 16 to 32
//	7       1     length of the extension; version 1 sends none and skips any
//	8       4     feature bits that the initiator has
//	12      4     number of the connection in its bundle, at least 1
//	16      16    id of the bundle, not all zero
//	32      4     the initiator's receive window for each channel, in bytes
//	36      4     the same for the bundle as a whole
//	40      …     token, extension
//	…       8     XXH3-64 of all of the above
//
// # Answer
//
//	offset  size  field
//	0       4     magic "DRWN"
//	4       1     status: 0 accepted, 1 refused, 2 unreachable, 3 wrong version
//	5       1     version chosen; 0 unless accepted
//	6       1     lowest version that the acceptor speaks
//	7       1     highest
//	8       4     feature bits that both have
//	12      4     the acceptor's receive window for each channel, in bytes
//	16      4     the same for the bundle as a whole
//	20      1     length of the text
//	21      1     length of the extension; as in the hello
//	22      2     zero
//	24      …     text (UTF-8, why it was not accepted), extension
//	…       8     XXH3-64 of all of the above
//
// Hello and answer keep this shape in every version. The acceptor chooses the
// highest version that both speak; when there is none it answers wrong version
// and closes. A feature is used only where both have its bit; version 1 has
// defined none.
//
// # Frame
//
//	offset  size  field
//	0       1     kind
//	1       1     class: 0 control, 1 fill, 2 return, 3 disk, 4 memory, 5 copy
//	2       1     code
//	3       1     fragment
//	4       4     channel; 0 in frames that are no channel's
//	8       8     sequence
//	16      4     length of the message
//	20      4     length of the payload
//	24      8     XXH3-64 of the payload
//	32      8     XXH3-64 of bytes 0 to 31
//	40      …     payload
//
// Fields that a kind does not use are zero.
//
//	kind           code          sequence         payload
//	1 open         –             0                name of the channel, up to 255 bytes
//	2 data         the user's    1, 2, …          the fragment
//	3 close-send   –             one after data   –
//	4 reset        –             –                why, up to 255 bytes
//	5 ack          –             –                counters, see below
//	6 ping         –             sender's clock   –
//	7 pong         –             as in the ping   –
//	8 bye          0 clean,      –                why, up to 255 bytes
//	               1 abort
//
// Channels that the initiator opens have odd ids, the acceptor's even ones; an
// id is not used twice. A channel carries messages of up to 1 MiB each way.
// Open, data and close-send frames of one direction are numbered by message:
// the opener's from 0 (open), the other's from 1. A message is cut into
// fragments of 32,728 bytes, the last one shorter, so that a frame fills two
// TLS records; the length of the message stands in each. An empty message is
// one empty fragment. The receiver puts messages in order and drops what it
// has already.
//
// Kinds 1 to 4 are counted: each end counts those of them that came, whole and
// with right checksums, on each connection, and tells the count:
//
//	ack payload
//	0       2     n, entries for connections, at most 64
//	2       2     m, entries for channels, at most 512
//	4       4     zero
//	8       16n   number of the connection (4), zero (4), counted frames received (8)
//	…       16m   channel (4), zero (4), bytes consumed (8)
//
// TCP keeps order, so the count says exactly which frames arrived. When a
// connection dies, what had been sent on it and is not covered by a count is
// sent again on another; counts for dead connections are repeated on new ones.
// Bytes consumed are what the far user has taken and released, 256 more for
// each message than its length. A sender keeps what is sent and not consumed
// within the receiver's window for the channel, except that one message may
// always be under way, and within the bundle's window over all channels but
// those of the classes control and fill.
//
// A wrong checksum, an unknown kind, a field out of bounds, a frame beyond the
// window: the receiver drops the connection, and nothing of the frame is used.
//
// # What it leaves to others
//
// This package encodes, decodes and checks; it keeps no state. Which session a
// token means is its caller's business, and what to do with frames is
// wan/bundle's.
package frame
