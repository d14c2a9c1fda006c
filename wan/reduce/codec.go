package reduce

import (
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// windowBytes is how far back the zstd stream of a lane sees, at both ends: 8 MiB finds what
// 4 MiB does not in page caches, and costs the encoder 16 MiB and the decoder 8 to 16.
const windowBytes = 8 << 20

// The codecs of a batch's packed section.
const (
	codecStored = 0
	codecZstd   = 1
	codecS2     = 2
)

// sink collects what the zstd encoder writes.
type sink struct{ buf []byte }

func (s *sink) Write(p []byte) (int, error) {
	s.buf = append(s.buf, p...)
	return len(p), nil
}

// compressor is the sender's end of one lane: a zstd stream that lives as long as the level stays, and S2 and nothing beside
// it. Not for concurrent use.
type compressor struct {
	out   sink
	level Level // of the zstd stream; 0 when there is none
	zstd  *zstd.Encoder
	plain []byte
}

var zstdLevels = map[Level]zstd.EncoderLevel{
	LevelFastest: zstd.SpeedFastest,
	LevelDefault: zstd.SpeedDefault,
	LevelBetter:  zstd.SpeedBetterCompression,
	LevelBest:    zstd.SpeedBestCompression,
}

// compress appends the parts, one behind the other, to dst in the form of level, and returns
// the codec and whether a zstd stream begins here.
func (c *compressor) compress(dst []byte, level Level, parts func(func([]byte) error) error) (out []byte, codec byte, fresh bool, err error) {
	switch level {
	case LevelStored:
		err = parts(func(p []byte) error { dst = append(dst, p...); return nil })
		return dst, codecStored, false, err
	case LevelS2:
		c.plain = c.plain[:0]
		err = parts(func(p []byte) error { c.plain = append(c.plain, p...); return nil })
		dst = slices.Grow(dst, s2.MaxEncodedLen(len(c.plain)))
		packed := s2.Encode(dst[len(dst):cap(dst)], c.plain)
		return dst[:len(dst)+len(packed)], codecS2, false, err
	}
	if c.zstd == nil || c.level != level {
		if fresh, err = true, c.begin(level); err != nil {
			return dst, codecZstd, false, err
		}
	}
	c.out.buf = dst
	err = parts(func(p []byte) error { _, err := c.zstd.Write(p); return err })
	if err == nil {
		err = c.zstd.Flush()
	}
	dst, c.out.buf = c.out.buf, nil
	return dst, codecZstd, fresh, err
}

// begin starts a zstd stream of the given level. The one before is left without an end: the
// receiver is told where the new one begins.
func (c *compressor) begin(level Level) error {
	want, ok := zstdLevels[level]
	if !ok {
		return fmt.Errorf("level %d is unknown", level)
	}
	// The old tables go before the new ones come.
	c.zstd = nil
	enc, err := zstd.NewWriter(&c.out, zstd.WithEncoderLevel(want), zstd.WithWindowSize(windowBytes),
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	c.zstd, c.level = enc, level
	return nil
}

// feed is the reader that a lane's zstd decoder reads from: one batch's packed section at a time. It
// has no other methods on purpose, since the decoder treats readers that show their whole content differently.
type feed struct{ p []byte }

func (f *feed) Read(p []byte) (int, error) {
	if len(f.p) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, f.p)
	f.p = f.p[n:]
	return n, nil
}

// decompressor is the receiver's end of one lane.
type decompressor struct {
	in    feed
	zstd  *zstd.Decoder
	began bool
	plain []byte // of an S2 section, or the stored section itself
	from  byte
}

// begin takes a batch's packed section. packed must stay as it is until end.
func (d *decompressor) begin(packed []byte, codec byte, fresh bool, plainBytes int) error {
	d.from = codec
	switch codec {
	case codecStored:
		d.plain = packed
		return nil
	case codecS2:
		n, err := s2.DecodedLen(packed)
		if err != nil {
			return err
		}
		if n != plainBytes {
			return fmt.Errorf("packed section holds %d bytes, not %d", n, plainBytes)
		}
		d.plain, err = s2.Decode(nil, packed)
		return err
	case codecZstd:
		d.in.p = packed
		if d.zstd == nil {
			dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(windowBytes),
				zstd.WithDecoderLowmem(true))
			if err != nil {
				return err
			}
			d.zstd = dec
		}
		if fresh {
			d.began = true
			return d.zstd.Reset(&d.in)
		}
		if !d.began {
			return fmt.Errorf("stream without a beginning")
		}
		return nil
	default:
		return fmt.Errorf("codec %d is unknown", codec)
	}
}

// read fills p with the section's next bytes.
func (d *decompressor) read(p []byte) error {
	if d.from == codecZstd {
		_, err := io.ReadFull(d.zstd, p)
		return err
	}
	if len(d.plain) < len(p) {
		return io.ErrUnexpectedEOF
	}
	copy(p, d.plain)
	d.plain = d.plain[len(p):]
	return nil
}

// end checks that the section held no more than was read.
func (d *decompressor) end() error {
	left := len(d.plain)
	if d.from == codecZstd {
		left = len(d.in.p)
	}
	d.plain, d.in.p = nil, nil
	if left > 0 {
		return fmt.Errorf("%d bytes too many in the packed section", left)
	}
	return nil
}

// close frees the decoder.
func (d *decompressor) close() {
	if d.zstd != nil {
		d.zstd.Close()
	}
}
