package page

// Limits of what is taken for a migration stream of x86.
const (
	maxMachineName  = 1 << 10  // QEMU's longest is under 40 bytes
	maxCapabilities = 64       // QEMU 10 has 25
	maxBlocks       = 4 << 10  // QEMU has a few for firmware and devices and 256 DIMMs
	maxBlocksBytes  = 16 << 40 // what 32-bit page numbers reach
	pageBits        = 12
)

// The migration stream's bytes between its records.
const (
	magic   = "QEVM"
	version = 3

	kindEOF           = 0x00
	kindStart         = 0x01
	kindPart          = 0x02
	kindEnd           = 0x03
	kindSubsection    = 0x05
	kindConfiguration = 0x07
	kindCommand       = 0x08
	kindFooter        = 0x7e

	commandPostcopyAdvise  = 3
	commandPackaged        = 7
	commandSwitchoverStart = 11

	ramName     = "ram"
	ramInstance = 0
	ramVersion  = 4
)

// state is where in the stream a parser is.
type state uint8

const (
	inHeader  state = iota // magic and version
	inSkip                 // bytes of known number, skip; then between
	between                // sections and commands, or the header's rest
	inBlocks               // list of blocks, before a block
	inExtras               // list of blocks, after a block's size
	inRecords              // content of the ram section
	inUnknown              // looking for the ram section's header
	atRAM                  // behind that header
	inRest                 // nothing to be understood any more
)

// result is what a step of a parser came to.
type result uint8

const (
	more  result = iota // what the next element is needs more bytes
	taken               // so many bytes are understood, possibly none
	found               // a page
)

// parser knows the stream's grammar. It is given the bytes not yet taken and
// keeps none of them.
type parser struct {
	state state
	phase Phase
	skip  uint64 // in inSkip: bytes left

	inConfiguration bool // sub-sections may follow
	ignoreShared    bool // capability x-ignore-shared
	// pageSizes is the OR of the blocks' page sizes once post-copy was
	// advised: blocks may tell theirs, then. Until then it is 0.
	pageSizes uint64

	hasRAM bool
	ram    uint32 // ID of the ram section
	ending bool   // it is its end
	footer bool   // its footer may follow
	left   uint64 // in inBlocks, inExtras: bytes of memory not listed yet
	blocks []Block
	byName map[string]int
	block  int // of the record before, -1 for none

	tail    [tailBytes]byte // in inUnknown: the last bytes before what comes
	tailLen int
	located byte // in atRAM: the section's kind
}

func newParser() parser { return parser{block: -1, byName: map[string]int{}} }

// step takes what it can of b, which begins where the step before ended.
func (p *parser) step(b []byte, rec *Record) (int, result) {
	switch {
	case p.state == inRecords:
		return p.record(b, rec)
	case p.state == atRAM:
		// A step of its own, so that the search's bytes keep their phase.
		p.enter(p.located)
		return 0, taken
	case len(b) == 0:
		return 0, more
	}
	switch p.state {
	case inHeader:
		return p.header(b)
	case between:
		return p.between(b)
	case inSkip:
		n := min(p.skip, uint64(len(b)))
		if p.skip -= n; p.skip == 0 {
			p.state = between
		}
		return int(n), taken
	case inBlocks:
		return p.blockEntry(b)
	case inExtras:
		return p.blockExtras(b)
	case inUnknown:
		return p.search(b), taken
	default:
		return len(b), taken
	}
}

// giveUp leaves everything from here on unparsed.
func (p *parser) giveUp() (int, result) {
	p.state, p.phase = inRest, Opaque
	return 0, taken
}

// lose leaves everything from here on unparsed until the ram section shows.
func (p *parser) lose() (int, result) {
	p.state, p.phase = inUnknown, Opaque
	p.tailLen = 0
	return 0, taken
}

func (p *parser) header(b []byte) (int, result) {
	if n := min(len(b), len(magic)); string(b[:n]) != magic[:n] {
		return p.giveUp()
	}
	c := cursor{b: b}
	c.take(len(magic))
	v := c.u32()
	switch {
	case c.short:
		return 0, more
	case v != version:
		return p.giveUp()
	}
	p.state = between
	return c.n, taken
}

// between takes one element outside of a section's content.
func (p *parser) between(b []byte) (int, result) {
	c := cursor{b: b}
	kind := c.u8()
	switch {
	case kind == kindConfiguration:
		return p.configuration(c)
	case kind == kindSubsection && p.inConfiguration:
		return p.subsection(c)
	case kind == kindFooter && p.footer:
		id := c.u32()
		switch {
		case c.short:
			return 0, more
		case id != p.ram:
			return p.lose()
		}
		p.footer = false
		return c.n, taken
	case kind == kindCommand:
		return p.command(c)
	case kind == kindStart && !p.hasRAM:
		return p.start(c)
	case (kind == kindPart || kind == kindEnd) && p.hasRAM:
		id := c.u32()
		switch {
		case c.short:
			return 0, more
		case id != p.ram:
			return p.lose()
		}
		p.enter(kind)
		return c.n, taken
	default:
		return p.lose()
	}
}

// enter begins the content of a section of ram.
func (p *parser) enter(kind byte) {
	p.inConfiguration, p.footer = false, false
	p.state, p.ending = inRecords, kind == kindEnd
	switch {
	case kind == kindStart:
		p.phase = Setup
	case kind == kindEnd:
		p.phase = Last
	case p.phase != Last: // unless the pause was announced
		p.phase = Rounds
	}
}

func (p *parser) configuration(c cursor) (int, result) {
	n := c.u32()
	if !c.short && n > maxMachineName {
		return p.lose()
	}
	c.take(int(n))
	if c.short {
		return 0, more
	}
	p.inConfiguration = true
	return c.n, taken
}

func (p *parser) subsection(c cursor) (int, result) {
	name := c.counted()
	c.u32() // version
	if c.short {
		return 0, more
	}
	switch string(name) {
	case "configuration/target-page-bits":
		if bits := c.u32(); !c.short && bits != pageBits {
			return p.giveUp()
		}
	case "configuration/capabilities":
		count := c.u32()
		if !c.short && count > maxCapabilities {
			return p.lose()
		}
		for range count {
			switch capability := c.counted(); {
			case c.short:
				return 0, more
			case string(capability) == "mapped-ram":
				return p.giveUp()
			case string(capability) == "x-ignore-shared":
				p.ignoreShared = true
			}
		}
	case "configuration/uuid":
		c.take(16)
	default:
		return p.lose()
	}
	if c.short {
		return 0, more
	}
	return c.n, taken
}

func (p *parser) command(c cursor) (int, result) {
	id, n := c.u16(), c.u16()
	skip, sizes := uint64(n), p.pageSizes
	switch {
	case id == commandPostcopyAdvise && n == 16:
		sizes, skip = c.u64(), 8
	case id == commandPackaged && n == 4:
		skip = uint64(c.u32())
	}
	if c.short {
		return 0, more
	}
	if id == commandSwitchoverStart && p.phase == Rounds {
		p.phase = Last
	}
	p.pageSizes = sizes
	p.inConfiguration, p.footer = false, false
	if skip > 0 {
		p.state, p.skip = inSkip, skip
	}
	return c.n, taken
}

func (p *parser) start(c cursor) (int, result) {
	id, name := c.u32(), c.counted()
	instance, v := c.u32(), c.u32()
	switch {
	case c.short:
		return 0, more
	case string(name) != ramName || instance != ramInstance || v != ramVersion:
		return p.lose()
	}
	p.hasRAM, p.ram = true, id
	p.enter(kindStart)
	return c.n, taken
}
