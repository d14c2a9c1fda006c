package page

import "bytes"

// Where a section of an unknown owner ends is not known. The ram section's headers
// that may follow it are:
//
//	start: 0x01, any ID, counted string "ram", instance 0, version 4
//	part, end: 0x7e, any ID (the unknown section's footer), 0x02 or 0x03, ID of ram
//
// of which 13 and, IDs being small, 8 bytes are given. To take other bytes for one
// does no harm beyond Records of pages that are none: the bytes remain the same.
const (
	startTail   = "\x03ram\x00\x00\x00\x00\x00\x00\x00\x04"
	startBytes  = 1 + 4 + len(startTail)
	resumeBytes = 1 + 4 + 1 + 4
	tailBytes   = startBytes - 1
	// maxSectionID bounds the IDs believed in. QEMU numbers sections from 0.
	maxSectionID = 1<<16 - 1
)

// search looks for the header of a section of ram and returns how many bytes come
// before its content; without one, all.
func (p *parser) search(b []byte) int {
	// A header that begins before b and ends in it.
	var joint [2 * tailBytes]byte
	n := copy(joint[:], p.tail[:p.tailLen])
	n += copy(joint[n:], b[:min(len(b), tailBytes)])
	if end := p.locate(joint[:n]); end > p.tailLen {
		return end - p.tailLen
	}
	if end := p.locate(b); end > 0 {
		return end
	}
	if len(b) >= tailBytes {
		p.tailLen = copy(p.tail[:], b[len(b)-tailBytes:])
	} else {
		p.tailLen = copy(p.tail[:], joint[max(0, n-tailBytes):n])
	}
	return len(b)
}

// locate finds the ram section whose header is in b and returns the header's end,
// or 0.
func (p *parser) locate(b []byte) int {
	if !p.hasRAM {
		return p.locateStart(b)
	}
	for at := 0; len(b)-at >= resumeBytes; at++ {
		i := bytes.IndexByte(b[at:len(b)-resumeBytes+1], kindFooter)
		if i < 0 {
			return 0
		}
		at += i
		c := cursor{b: b[at:], n: 1}
		owner, kind, id := c.u32(), c.u8(), c.u32()
		if owner <= maxSectionID && (kind == kindPart || kind == kindEnd) && id == p.ram {
			p.state, p.located = atRAM, kind
			return at + c.n
		}
	}
	return 0
}

func (p *parser) locateStart(b []byte) int {
	for at := 1 + 4; at < len(b); at++ {
		i := bytes.Index(b[at:], []byte(startTail))
		if i < 0 {
			return 0
		}
		at += i
		c := cursor{b: b[at-5:]}
		if kind, id := c.u8(), c.u32(); kind == kindStart && id <= maxSectionID {
			p.hasRAM, p.ram = true, id
			p.state, p.located = atRAM, kind
			return at + len(startTail)
		}
	}
	return 0
}
