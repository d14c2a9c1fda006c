package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/drover-vm/drover"
	"golang.org/x/sys/unix"
)

// The formats that the store knows.
const (
	formatQcow2 = "qcow2"
	formatRaw   = "raw"
)

const (
	// sectorBytes is what every size is a multiple of.
	sectorBytes = 512
	// maxChain bounds a backing chain; QEMU slows down long before.
	maxChain = 64
	// formatAttr is the extended attribute that Create records the format in,
	// so that a guest's writes to a raw disk cannot pass for a header.
	formatAttr = "user.drover.format"
)

// errNoImage is in the chain of errors about files that are no images.
var errNoImage = errors.New("not an image")

func noImage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errNoImage, fmt.Sprintf(format, args...))
}

// header is what an image says of itself.
type header struct {
	path      string
	format    string
	size      int64 // virtual
	allocated int64 // on the host
	// backing is absolute; empty when there is none.
	backing       string
	backingFormat string
	// What a cached identity hangs on.
	inode    uint64
	fileSize int64
	mtime    int64 // ns
}

// chain reads the headers of an image and of everything below it, top first,
// and refuses a chain that leaves the store.
func (s *Store) chain(path string) ([]header, error) {
	var list []header
	for want := ""; path != ""; {
		if len(list) == maxChain {
			return nil, drover.Errorf(drover.Invalid, "backing chain", "more than %d images, or it runs in a circle at %s", maxChain, path)
		}
		h, err := readHeader(path, want)
		if err != nil {
			if len(list) > 0 {
				err = fmt.Errorf("backing file %s of %s: %w", path, list[len(list)-1].path, err)
			}
			return nil, err
		}
		list = append(list, h)
		path, want = h.backing, h.backingFormat
		if path != "" {
			if err := s.confine(path); err != nil {
				return nil, drover.Errorf(drover.Invalid, "backing file of "+h.path, "%w", err)
			}
		}
	}
	return list, nil
}

// readHeader reads one image's header. want is the format that the image
// above it records, empty for a top image.
func readHeader(path, want string) (header, error) {
	// Non-blocking, so that a FIFO in the folder cannot hold us up.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return header{}, err
	}
	if !fi.Mode().IsRegular() {
		return header{}, noImage("%s is not a regular file", path)
	}
	st := fi.Sys().(*syscall.Stat_t)
	h := header{
		path: path, allocated: st.Blocks * 512, inode: st.Ino,
		fileSize: fi.Size(), mtime: fi.ModTime().UnixNano(),
	}
	if want == "" {
		want = attribute(f)
	}
	err = h.parse(f, want)
	return h, err
}

// parse fills in what the file's content says. known is its format if that is
// on record.
func (h *header) parse(f io.ReaderAt, known string) error {
	start := make([]byte, 112)
	n, err := f.ReadAt(start, 0)
	if err != nil && err != io.EOF {
		return err
	}
	h.format, err = sniff(h.path, start[:n], known)
	if err != nil {
		return err
	}
	if h.format == formatQcow2 {
		return h.parseQcow2(f, start)
	}
	if h.size = h.fileSize; h.size == 0 || h.size%sectorBytes != 0 {
		return noImage("%s has %d bytes, no positive multiple of %d", h.path, h.size, sectorBytes)
	}
	return nil
}

// foreign are the magic numbers of files that are easily taken for raw images.
var foreign = []struct{ magic, name string }{
	{"KDMV", "a VMDK image"},
	{"COWD", "a VMDK image"},
	{"# Disk DescriptorFile", "a VMDK description"},
	{"vhdxfile", "a VHDX image"},
	{"conectix", "a VHD image"},
	{"<<< ", "a VDI image"},
	{"QED\x00", "a QED image"},
	{"\x1f\x8b", "gzip-compressed"},
	{"\xfd7zXZ\x00", "xz-compressed"},
	{"\x28\xb5\x2f\xfd", "zstd-compressed"},
	{"PK\x03\x04", "a ZIP archive"},
	{"\x7fELF", "a program"},
}

// sniff decides the format of a file that begins with start, unless format is
// known.
func sniff(path string, start []byte, format string) (string, error) {
	qcow2 := strings.HasPrefix(string(start), "QFI\xfb")
	if format == "" && strings.HasSuffix(path, ".raw") {
		format = formatRaw
	}
	switch {
	case format == formatRaw:
		return formatRaw, nil
	case qcow2:
		return formatQcow2, nil
	case format == formatQcow2 || strings.HasSuffix(path, ".qcow2"):
		return "", noImage("%s lacks the header of a qcow2 image", path)
	}
	for _, k := range foreign {
		if strings.HasPrefix(string(start), k.magic) {
			return "", noImage("%s is %s: convert it to qcow2, or name it .raw if it is a raw image all the same", path, k.name)
		}
	}
	return formatRaw, nil
}

// attribute returns the format that Create recorded, or nothing.
func attribute(f *os.File) string {
	var b [16]byte
	n, err := unix.Fgetxattr(int(f.Fd()), formatAttr, b[:])
	if err != nil {
		return ""
	}
	if v := string(b[:n]); v == formatRaw || v == formatQcow2 {
		return v
	}
	return ""
}

// parseQcow2 reads the header that QEMU's docs/interop/qcow2.rst describes.
func (h *header) parseQcow2(f io.ReaderAt, b []byte) error {
	const (
		incompatCorrupt  = 1 << 1
		incompatDataFile = 1 << 2
		maxName          = 1023
	)
	be := binary.BigEndian
	version, bits, size := be.Uint32(b[4:]), be.Uint32(b[20:]), be.Uint64(b[24:])
	if version != 2 && version != 3 || bits < 9 || bits > 21 || size == 0 || size > 1<<62 {
		return noImage("%s has a damaged qcow2 header: version %d, cluster bits %d, size %d", h.path, version, bits, size)
	}
	// QEMU shows a guest whole sectors.
	h.size = int64(size+sectorBytes-1) / sectorBytes * sectorBytes
	extensions := int64(72)
	if version == 3 {
		features := be.Uint64(b[72:])
		if features&incompatCorrupt != 0 {
			return drover.Errorf(drover.Corrupt, "qcow2 header", "%s is marked corrupt: run qemu-img check -r all on it", h.path)
		}
		if features&incompatDataFile != 0 {
			return drover.Errorf(drover.Invalid, "qcow2 header", "%s keeps its data in an external file, which is not supported: convert it", h.path)
		}
		extensions = int64(be.Uint32(b[100:]))
	}
	offset, length := be.Uint64(b[8:]), be.Uint32(b[16:])
	if offset == 0 || length == 0 {
		return nil
	}
	cluster := uint64(1) << bits
	if length > maxName || offset > cluster-uint64(length) {
		return noImage("%s has a damaged qcow2 header: backing file name of %d bytes at %d", h.path, length, offset)
	}
	name := make([]byte, length)
	if _, err := f.ReadAt(name, int64(offset)); err != nil {
		return noImage("%s is cut off within its qcow2 header", h.path)
	}
	return h.setBacking(string(name), backingFormat(f, extensions, int64(offset)))
}

func (h *header) setBacking(name, format string) error {
	op := "backing file of " + h.path
	if format != formatQcow2 && format != formatRaw {
		return drover.Errorf(drover.Invalid, op,
			"its format is recorded as %q, want qcow2 or raw: set it with qemu-img rebase -u -F FORMAT -b FILE", format)
	}
	// What QEMU takes for "protocol:rest" has a colon before any slash.
	if head, _, _ := strings.Cut(name, "/"); strings.Contains(head, ":") {
		return drover.Errorf(drover.Invalid, op, "%q is not a file", name)
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(h.path), name)
	}
	h.backing, h.backingFormat = filepath.Clean(name), format
	return nil
}

// backingFormat looks for the extension that names it, between the header and
// the backing file's name.
func backingFormat(f io.ReaderAt, at, end int64) string {
	const (
		extBackingFormat = 0xe2792aca
		// maxExtensions is above what the format defines.
		maxExtensions = 32
	)
	var b [16]byte
	for range maxExtensions {
		if at < 72 || at > end-8 {
			return ""
		}
		if _, err := f.ReadAt(b[:8], at); err != nil {
			return ""
		}
		kind, length := binary.BigEndian.Uint32(b[0:]), int64(binary.BigEndian.Uint32(b[4:]))
		switch {
		case kind == 0:
			return ""
		case kind == extBackingFormat && length <= int64(len(b)):
			if _, err := f.ReadAt(b[:length], at+8); err != nil {
				return ""
			}
			return string(b[:length])
		}
		at += 8 + (length+7)/8*8
	}
	return ""
}
