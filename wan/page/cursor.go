package page

import "encoding/binary"

// cursor reads from the beginning of bytes. After a read beyond their end it is
// short and all reads return zero.
type cursor struct {
	b     []byte
	n     int // bytes read
	short bool
}

func (c *cursor) take(n int) []byte {
	if c.short || n > len(c.b)-c.n {
		c.short = true
		return nil
	}
	c.n += n
	return c.b[c.n-n : c.n]
}

func (c *cursor) u8() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) counted() []byte { return c.take(int(c.u8())) }
