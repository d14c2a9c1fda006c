package libvirt

import (
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// statsOf translates a job's typed parameters; names and units are those of
// VIR_DOMAIN_JOB_* in libvirt's libvirt-domain.h.
func statsOf(params []golibvirt.TypedParam) driver.MigrationStats {
	values := make(map[string]int64, len(params))
	for _, p := range params {
		switch v := p.Value.I.(type) {
		case int32:
			values[p.Field] = int64(v)
		case uint32:
			values[p.Field] = int64(v)
		case int64:
			values[p.Field] = v
		case uint64:
			values[p.Field] = int64(v)
		}
	}
	size := func(name string) drover.Bytes { return drover.Bytes(values[name]) }
	millis := func(name string) time.Duration { return time.Duration(values[name]) * time.Millisecond }
	return driver.MigrationStats{
		MemoryTotalBytes:     size("memory_total"),
		MemoryDoneBytes:      size("memory_processed"),
		MemoryRemainingBytes: size("memory_remaining"),
		DiskTotalBytes:       size("disk_total"),
		DiskDoneBytes:        size("disk_processed"),
		DiskRemainingBytes:   size("disk_remaining"),
		Rate:                 drover.BitRate(8 * (values["memory_bps"] + values["disk_bps"])),
		DirtyPagesPerSecond:  values["memory_dirty_rate"],
		PageBytes:            size("memory_page_size"),
		Rounds:               values["memory_iteration"],
		ThrottlePercent:      int(values["auto_converge_throttle"]),
		Pause:                millis("downtime"),
		Elapsed:              millis("time_elapsed"),
	}
}

// phaseOf names the phase a running job is in: libvirt copies the disks first
// and begins with the memory when their mirrors are in step.
func phaseOf(s driver.MigrationStats, paused bool) string {
	switch {
	case paused:
		return "switchover"
	case s.MemoryTotalBytes == 0:
		return "disk"
	default:
		return "memory"
	}
}
