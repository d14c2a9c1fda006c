package libvirt

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Bits of an entry of /proc/PID/pagemap (Linux, admin-guide/mm/pagemap.rst).
const (
	pagemapPresent = 1 << 63
	pagemapSwapped = 1 << 62
	pagemapBytes   = 8
)

// span is a range of a process's address space.
type span struct{ from, to int64 }

// guestMemory reads the part of a QEMU's address space that is its guest's
// memory, through files that belong to the address space, not to the process's
// number: one that has ended gives nothing, whoever has its number now.
//
// Reading is a copy by the kernel. It stops no thread of the process; it holds
// the lock of the address space for reading, for about a microsecond a page.
type guestMemory struct {
	name    string
	mem     *os.File
	pagemap *os.File
	spans   []span // ascending
	pages   int64
}

// Memory opens the memory of a VM. The process is that which libvirtd's own file
// names; it has to have the VM's UUID on its command line. Its memory is where
// the mappings have the size that the VM's definition says, and no other
// mapping has.
func (s *Signals) Memory(ctx context.Context, name string) (driver.GuestMemory, error) {
	op := "open memory of " + name
	sizes, uuid, err := s.memorySizes(ctx, name)
	if err != nil {
		return nil, err
	}
	pid, err := s.process(name, uuid)
	if err != nil {
		return nil, drover.E(drover.Refused, op, err)
	}
	m := &guestMemory{name: name}
	if err := m.open(filepath.Join(s.proc, strconv.Itoa(pid)), sizes); err != nil {
		_ = m.Close()
		return nil, drover.E(drover.Refused, op, err)
	}
	return m, nil
}

// memorySizes asks libvirt for the sizes of the VM's pieces of memory.
func (s *Signals) memorySizes(ctx context.Context, name string) (sizes []int64, uuid string, err error) {
	text, err := askDomain(ctx, s.h, "read memory of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (string, error) {
		active, err := rpc.DomainIsActive(dom)
		if err != nil {
			return "", err
		}
		if incoming, err := isIncoming(rpc, dom); err != nil {
			return "", err
		} else if active == 0 || incoming {
			return "", drover.Errorf(drover.Refused, "", "it does not run")
		}
		return rpc.DomainGetXMLDesc(dom, 0)
	})
	if err != nil {
		return nil, "", err
	}
	def, err := parseDomain(text)
	if err != nil {
		return nil, "", drover.E(drover.Internal, "read memory of "+name, err)
	}
	return piecesOf(def), def.UUID, nil
}

// process finds the VM's QEMU.
func (s *Signals) process(name, uuid string) (int, error) {
	text, err := os.ReadFile(filepath.Join(s.run, name+".pid"))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s.pid: %q is no process", name, text)
	}
	line, err := os.ReadFile(filepath.Join(s.proc, strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return 0, err
	}
	if !bytes.Contains(line, []byte("\x00-uuid\x00"+uuid+"\x00")) {
		return 0, fmt.Errorf("process %d is not that vm's", pid)
	}
	return pid, nil
}

// open opens the process's files and finds the pieces.
func (m *guestMemory) open(folder string, sizes []int64) (err error) {
	if m.mem, err = os.Open(filepath.Join(folder, "mem")); err != nil {
		return err
	}
	if m.pagemap, err = os.Open(filepath.Join(folder, "pagemap")); err != nil {
		return err
	}
	maps, err := os.Open(filepath.Join(folder, "maps"))
	if err != nil {
		return err
	}
	defer maps.Close()
	m.spans, err = findPieces(maps, sizes)
	for _, s := range m.spans {
		m.pages += (s.to - s.from) / driver.PageBytes
	}
	return err
}

// findPieces finds the mappings of these sizes. There have to be as many of each
// size as asked for: with more it would be a guess which are the guest's.
func findPieces(maps io.Reader, sizes []int64) ([]span, error) {
	want := map[int64]int{}
	for _, n := range sizes {
		want[n]++
	}
	var found []span
	seen := map[int64]int{}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		// 7f305be00000-7f306be00000 rw-p 00000000 00:00 0
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "rw-") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		a, err := strconv.ParseInt(from, 16, 64)
		b, err2 := strconv.ParseInt(to, 16, 64)
		if err != nil || err2 != nil {
			continue // beyond what a process can have, as the vsyscall page
		}
		if want[b-a] > 0 {
			seen[b-a]++
			found = append(found, span{a, b})
		}
	}
	if len(sizes) == 0 {
		return nil, errors.New("its definition names no memory")
	}
	for size, n := range want {
		if seen[size] != n {
			return nil, fmt.Errorf("its process has %d mappings of %s, want %d", seen[size], drover.Bytes(size), n)
		}
	}
	return found, nil
}

// Pages implements driver.GuestMemory.
func (m *guestMemory) Pages() int64 { return m.pages }

// address is where a page is.
func (m *guestMemory) address(page int64) (int64, error) {
	left := page * driver.PageBytes
	for _, s := range m.spans {
		if size := s.to - s.from; left >= 0 && left < size {
			return s.from + left, nil
		}
		left -= s.to - s.from
	}
	return 0, drover.Errorf(drover.Invalid, "read memory of "+m.name, "page %d: it has %d", page, m.pages)
}

// State implements driver.GuestMemory.
func (m *guestMemory) State(page int64) (driver.PageState, error) {
	at, err := m.address(page)
	if err != nil {
		return driver.PageAbsent, err
	}
	var entry [pagemapBytes]byte
	if _, err := m.pagemap.ReadAt(entry[:], at/driver.PageBytes*pagemapBytes); err != nil {
		return driver.PageAbsent, m.ended(err)
	}
	switch e := binary.NativeEndian.Uint64(entry[:]); {
	case e&pagemapPresent != 0:
		return driver.PagePresent, nil
	case e&pagemapSwapped != 0:
		return driver.PageAway, nil
	}
	return driver.PageAbsent, nil
}

// Read implements driver.GuestMemory.
func (m *guestMemory) Read(page int64, p []byte) error {
	at, err := m.address(page)
	if err != nil {
		return err
	}
	if len(p) != driver.PageBytes {
		return drover.Errorf(drover.Invalid, "read memory of "+m.name, "%d bytes: want a page of %d", len(p), driver.PageBytes)
	}
	if _, err := m.mem.ReadAt(p, at); err != nil {
		return m.ended(err)
	}
	return nil
}

// ended says what it means that an address space gives nothing any more.
func (m *guestMemory) ended(err error) error {
	kind := drover.Internal
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EIO) {
		kind = drover.NotFound // the process, or this part of it
	}
	return drover.E(kind, "read memory of "+m.name, err)
}

// Close implements driver.GuestMemory.
func (m *guestMemory) Close() error {
	var errs []error
	for _, f := range []*os.File{m.mem, m.pagemap} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// piecesOf returns the sizes of what a VM's memory is made of: one piece, or one
// for each of its NUMA nodes, and one for each memory module.
func piecesOf(def *libvirtxml.Domain) []int64 {
	var sizes []int64
	add := func(value uint, unit string) {
		if n := memoryOf(&libvirtxml.DomainMemory{Value: value, Unit: unit}); n > 0 {
			sizes = append(sizes, int64(n))
		}
	}
	if def.CPU != nil && def.CPU.Numa != nil {
		for _, c := range def.CPU.Numa.Cell {
			add(c.Memory, c.Unit)
		}
	}
	if len(sizes) == 0 && def.Memory != nil {
		add(def.Memory.Value, def.Memory.Unit)
	}
	if def.Devices == nil {
		return sizes
	}
	for _, d := range def.Devices.Memorydevs {
		if d.Target != nil && d.Target.Size != nil {
			add(d.Target.Size.Value, d.Target.Size.Unit)
		}
	}
	return sizes
}
