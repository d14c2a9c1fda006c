package page

import "encoding/binary"

const (
	// xbzrleEncoding is the one way that QEMU encodes differences.
	xbzrleEncoding = 1
	// maxCompressed is what zlib makes of an incompressible page at most
	// (compressBound of 4096).
	maxCompressed = 4110
)

// record takes one record of the ram section's content.
func (p *parser) record(b []byte, rec *Record) (int, result) {
	if len(b) < 8 {
		return 0, more
	}
	head := binary.BigEndian.Uint64(b)
	addr, flags := head&^flagMask, head&flagMask
	var n, block int
	switch flags {
	case flagPage | flagContinue, flagZero | flagContinue, flagXBZRLE | flagContinue, flagCompress | flagContinue:
		n, block = 8, p.block
	case flagPage, flagZero, flagXBZRLE, flagCompress:
		if len(b) < 9 || len(b) < 9+int(b[8]) {
			return 0, more
		}
		n = 9 + int(b[8])
		var ok bool
		if block, ok = p.byName[string(b[9:n])]; !ok {
			return p.loseRecord()
		}
	default:
		return p.mark(addr, flags)
	}
	if block < 0 || addr > p.blocks[block].Bytes-PageBytes {
		return p.loseRecord()
	}
	switch flags &^ flagContinue {
	case flagPage:
		if len(b) < n+PageBytes {
			return 0, more
		}
		rec.Kind = Page
		rec.Data = b[n : n+PageBytes : n+PageBytes]
		n += PageBytes
	case flagZero:
		if len(b) < n+1 {
			return 0, more
		}
		rec.Kind = Zero
		rec.Fill = b[n]
		n++
	default:
		return p.encoded(b, n, block, flags)
	}
	p.block = block
	rec.Block, rec.Addr, rec.Continue = block, addr, flags&flagContinue != 0
	return n, found
}

// loseRecord loses track inside the ram section: which block the record before
// was of is not known any more where the section is found again.
func (p *parser) loseRecord() (int, result) {
	p.block = -1
	return p.lose()
}

// mark takes a record that has nothing to do with one page.
func (p *parser) mark(addr, flags uint64) (int, result) {
	switch {
	case flags == flagEOS:
		p.state, p.footer = between, true
		if p.ending {
			p.state, p.phase = inRest, Devices
		}
		return 8, taken
	case flags == flagMultifdFlush || flags == flagHook:
		return 8, taken
	case flags == flagMemSize && len(p.blocks) == 0 && addr <= maxBlocksBytes:
		p.left = addr
		if addr > 0 {
			p.state = inBlocks
		}
		return 8, taken
	case flags == flagMemSize:
		return p.giveUp()
	default:
		return p.loseRecord()
	}
}

// encoded takes a page that QEMU has encoded, whose header is b[:n].
func (p *parser) encoded(b []byte, n, block int, flags uint64) (int, result) {
	c := cursor{b: b, n: n}
	var size, limit int
	valid := true
	if flags&flagXBZRLE != 0 {
		valid = c.u8() == xbzrleEncoding
		size, limit = int(c.u16()), PageBytes
	} else {
		size, limit = int(c.u32()), maxCompressed
	}
	if !c.short && (!valid || size > limit) {
		return p.loseRecord()
	}
	if c.take(size); c.short {
		return 0, more
	}
	p.block = block
	return c.n, taken
}

// blockEntry takes a block's name and size.
func (p *parser) blockEntry(b []byte) (int, result) {
	c := cursor{b: b}
	name, size := c.counted(), c.u64()
	if c.short {
		return 0, more
	}
	_, twice := p.byName[string(name)]
	switch {
	case len(name) == 0, twice, len(p.blocks) == maxBlocks,
		size < PageBytes, size%PageBytes != 0, size > p.left:
		return p.giveUp() // pages of a list that is not known whole are none
	}
	p.left -= size
	p.byName[string(name)] = len(p.blocks)
	p.blocks = append(p.blocks, Block{Name: string(name), Bytes: size})
	switch {
	case p.ignoreShared || p.pageSizes != 0:
		p.state = inExtras
	case p.left == 0:
		p.state = inRecords
	}
	return c.n, taken
}

// blockExtras takes what follows a block's size: its page size, which only what comes
// after it tells from the rest of the stream, and its address.
func (p *parser) blockExtras(b []byte) (int, result) {
	next := inBlocks
	if p.left == 0 {
		next = inRecords
	}
	c := cursor{b: b}
	switch {
	case p.pageSizes == 0 || b[0] != 0:
		// No page size: it would begin with a zero, which is no length of a name.
	default:
		value := c.u64()
		if c.short {
			return 0, more
		}
		pageSize := p.isPageSize(value)
		if pageSize && p.ignoreShared {
			// Either the page size or the address. After a page size comes an
			// address, after an address the next block's name or a record.
			switch {
			case p.left > 0:
				follows := c.u8()
				pageSize = follows == 0
				c.n--
			default:
				pageSize = c.u64()&flagMask == 0
				c.n -= 8
			}
			if c.short {
				return 0, more
			}
		}
		if !pageSize {
			c.n = 0
		}
	}
	if p.ignoreShared {
		if c.u64(); c.short {
			return 0, more
		}
	}
	p.state = next
	return c.n, taken
}

// isPageSize reports whether v can be the page size that a block tells.
func (p *parser) isPageSize(v uint64) bool {
	return v > PageBytes && v&(v-1) == 0 && v&p.pageSizes != 0
}
