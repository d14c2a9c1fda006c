package libvirt

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// balloonAge is how old a guest's own account of its memory may be. Libvirt keeps
// the last one for ever; where nobody has set a period there is none, or one of
// the guest's boot. Setting one would be a change to the VM.
const balloonAge = time.Minute

// clockTick is the unit of /proc/stat, the same on all of Linux's architectures
// that QEMU runs on (proc(5), USER_HZ).
const clockTick = 10 * time.Millisecond

// SignalsConfig says where a host's processes are seen.
type SignalsConfig struct {
	// Proc is the process file system, empty /proc. It has to be of the namespace
	// of libvirtd's processes.
	Proc string
	// Run is where libvirtd keeps its files of running VMs, empty
	// /run/libvirt/qemu.
	Run string
}

// Signals looks at a host's VMs: libvirt's statistics, and the memory of QEMU's
// processes as the kernel shows it. It has a connection to libvirtd of its own.
type Signals struct {
	h         *Hypervisor
	proc, run string
}

var _ driver.Signals = (*Signals)(nil)

// NewSignals returns the signals of the host whose manager listens at socket
// (empty: DefaultSocket). It connects on the first call, as New does.
func NewSignals(log *slog.Logger, socket string, c SignalsConfig) *Signals {
	return &Signals{h: New(log, socket), proc: cmp.Or(c.Proc, "/proc"), run: cmp.Or(c.Run, "/run/libvirt/qemu")}
}

// Close drops the connection.
func (s *Signals) Close() error { return s.h.Close() }

// Counters asks libvirt once for all VMs that run. A VM whose QEMU is busy, as
// with a migration, is not waited for: libvirt leaves out what it cannot say at
// once.
func (s *Signals) Counters(ctx context.Context) ([]driver.VMCounters, error) {
	const what = golibvirt.DomainStatsState | golibvirt.DomainStatsCPUTotal | golibvirt.DomainStatsBalloon |
		golibvirt.DomainStatsVCPU | golibvirt.DomainStatsInterface | golibvirt.DomainStatsBlock
	records, err := ask(ctx, s.h, "read counters", func(rpc *golibvirt.Libvirt) ([]golibvirt.DomainStatsRecord, error) {
		return rpc.ConnectGetAllDomainStats(nil, uint32(what),
			uint32(golibvirt.ConnectGetAllDomainsStatsActive|golibvirt.ConnectGetAllDomainsStatsNowait))
	})
	if err != nil {
		return nil, err
	}
	now := time.Now()
	all := make([]driver.VMCounters, 0, len(records))
	for _, r := range records {
		all = append(all, countersOf(r, now))
	}
	slices.SortFunc(all, func(a, b driver.VMCounters) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// countersOf translates one VM's typed parameters; names and units are those of
// virConnectGetAllDomainStats in libvirt's manual.
func countersOf(r golibvirt.DomainStatsRecord, now time.Time) driver.VMCounters {
	numbers, words := map[string]int64{}, map[string]string{}
	for _, p := range r.Params {
		switch v := p.Value.I.(type) {
		case int32:
			numbers[p.Field] = int64(v)
		case uint32:
			numbers[p.Field] = int64(v)
		case int64:
			numbers[p.Field] = v
		case uint64:
			numbers[p.Field] = int64(v)
		case string:
			words[p.Field] = v
		}
	}
	c := driver.VMCounters{
		Name: r.Dom.Name, UUID: formatUUID(r.Dom.UUID), At: now,
		CPUTime: time.Duration(numbers["cpu.time"]), VCPUs: int(numbers["vcpu.current"]),
		MemoryBytes:   drover.Bytes(numbers["balloon.current"]) * drover.KiB,
		ResidentBytes: drover.Bytes(numbers["balloon.rss"]) * drover.KiB,
	}
	if c.CPUTime == 0 {
		// Without control groups libvirt knows only each virtual processor's thread.
		for i := range numbers["vcpu.maximum"] {
			c.CPUTime += time.Duration(numbers[fmt.Sprintf("vcpu.%d.time", i)])
		}
	}
	told := time.Unix(numbers["balloon.last-update"], 0)
	if usable, ok := numbers["balloon.usable"]; ok && now.Sub(told).Abs() <= balloonAge {
		if have := numbers["balloon.available"]; have >= usable {
			used := drover.Bytes(have-usable) * drover.KiB
			c.UsedBytes = &used
		}
	}
	for i := range numbers["net.count"] {
		// Libvirt has turned a tap device's directions around: they are the guest's.
		c.ReceivedBytes += drover.Bytes(numbers[fmt.Sprintf("net.%d.rx.bytes", i)])
		c.SentBytes += drover.Bytes(numbers[fmt.Sprintf("net.%d.tx.bytes", i)])
	}
	for i := range numbers["block.count"] {
		at := func(name string) int64 { return numbers[fmt.Sprintf("block.%d.%s", i, name)] }
		c.Disks = append(c.Disks, driver.DiskCounters{
			Target:    words[fmt.Sprintf("block.%d.name", i)],
			ReadBytes: drover.Bytes(at("rd.bytes")), WrittenBytes: drover.Bytes(at("wr.bytes")), Writes: at("wr.reqs"),
			AllocatedBytes: drover.Bytes(at("physical")), HighestBytes: drover.Bytes(at("allocation")),
		})
	}
	return c
}

// Processors reads the first line of /proc/stat.
func (s *Signals) Processors(context.Context) (idle, all time.Duration, err error) {
	const op = "read processors"
	text, err := os.ReadFile(filepath.Join(s.proc, "stat"))
	if err != nil {
		return 0, 0, drover.E(drover.Unavailable, op, err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	// cpu user nice system idle iowait irq softirq steal; guest time is in user.
	const idleField, lastField = 4, 8
	if len(fields) <= lastField || fields[0] != "cpu" {
		return 0, 0, drover.Errorf(drover.Corrupt, op, "%q: want cpu and eight times", line)
	}
	for i := 1; i <= lastField; i++ {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, 0, drover.E(drover.Corrupt, op, err)
		}
		all += time.Duration(n) * clockTick
		if i == idleField || i == idleField+1 { // waiting for a disk is idle, too
			idle += time.Duration(n) * clockTick
		}
	}
	return idle, all, nil
}
