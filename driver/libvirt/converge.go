package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// mirrorPatience is how long the disks' mirrors may fail to come nearer to
// their end before guest writes are made to wait for them.
const mirrorPatience = 2 * time.Second

// mirrorWatch notices that the copying of the disks does not end. QEMU's mirror
// is in step only at a moment at which nothing is dirty or in flight; over a
// WAN, a guest that writes a block every few milliseconds leaves no such moment,
// however small its writes are.
//
// That time has passed is not enough: while the WAN is cut nothing moves, and
// making the guest's writes wait then would stop it. The mirrors need help when
// they have copied as much as was left, and as much is still left.
type mirrorWatch struct {
	least    drover.Bytes // least that was ever left
	since    time.Time    // when that was
	done     drover.Bytes // what had been copied then
	blocking bool
}

// stalled reports, once, that the mirrors need help.
func (w *mirrorWatch) stalled(now time.Time, s driver.MigrationStats) bool {
	switch {
	case w.blocking || s.Phase != "disk" || s.DiskTotalBytes == 0:
		return false
	case w.since.IsZero() || s.DiskRemainingBytes < w.least:
		w.least, w.since, w.done = s.DiskRemainingBytes, now, s.DiskDoneBytes
		return false
	case now.Sub(w.since) < mirrorPatience || s.DiskDoneBytes-w.done < w.least:
		return false
	}
	w.blocking = true
	return true
}

// Raising the pause: a guest that dirties as much in a round as a round carries
// keeps QEMU going round after round with little left.
const (
	// stuckRounds and stuckTime both have to pass without an end before the
	// pause is raised: a big guest's rounds are long, an idle one's are short.
	stuckRounds = 8
	stuckTime   = 2 * time.Second
)

// roundWatch notices that the rounds of memory do not end.
type roundWatch struct {
	limit, most time.Duration
	round       int64 // at which the limit was set
	since       time.Time
}

func newRoundWatch(spec driver.MigrationSpec) *roundWatch {
	return &roundWatch{limit: firstPause(spec), most: spec.MostPause}
}

// firstPause is the limit that a migration begins with.
func firstPause(spec driver.MigrationSpec) time.Duration {
	if spec.MaxPause <= 0 {
		return defaultPause
	}
	return spec.MaxPause
}

// raised returns the next limit, half as much again, when it is time for one.
func (w *roundWatch) raised(now time.Time, s driver.MigrationStats) (time.Duration, bool) {
	switch {
	case s.Phase != "memory" || w.limit >= w.most:
		return 0, false
	case w.since.IsZero():
		w.round, w.since = s.Rounds, now
		return 0, false
	case s.Rounds-w.round < stuckRounds || now.Sub(w.since) < stuckTime:
		return 0, false
	}
	w.limit = min(w.most, w.limit+w.limit/2)
	w.round, w.since = s.Rounds, now
	return w.limit, true
}

// help does what makes a transfer end that does not come nearer to its end. A
// failure is logged: the transfer goes on, and may still find its moment.
func (o *outgoing) help(ctx context.Context, s driver.MigrationStats, mirrors *mirrorWatch, rounds *roundWatch) {
	if mirrors.stalled(time.Now(), s) {
		o.log.InfoContext(ctx, "the disks do not come into step: the guest's writes now wait for both ends",
			"left", s.DiskRemainingBytes)
		if err := o.blockWrites(ctx); err != nil {
			o.log.WarnContext(ctx, "guest writes do not wait", "err", err)
		}
	}
	if limit, due := rounds.raised(time.Now(), s); due {
		o.log.InfoContext(ctx, "the memory does not converge: a longer pause is allowed",
			"pause", limit, "rounds", s.Rounds, "left", s.MemoryRemainingBytes)
		_, err := ask(ctx, o.h, "raise the pause of "+o.spec.Name, func(rpc *golibvirt.Libvirt) (struct{}, error) {
			return struct{}{}, setMaxPause(rpc, o.dom, limit)
		})
		if err != nil {
			o.log.WarnContext(ctx, "the pause stays as it was", "err", err)
		}
	}
}

func setMaxPause(rpc *golibvirt.Libvirt, dom golibvirt.Domain, limit time.Duration) error {
	return rpc.DomainMigrateSetMaxDowntime(dom, uint64(max(1, limit.Milliseconds())), 0)
}

// blockWrites has QEMU pass the guest's writes to both ends before they are
// acknowledged, for the disks that are being mirrored (QMP block-job-change,
// QEMU 8.2 and later; qapi/block-core.json). The mirrors end then, at the price
// of a round trip for each write from here to the switchover.
func (o *outgoing) blockWrites(ctx context.Context) error {
	var jobs []struct {
		Device string `json:"device"`
		Type   string `json:"type"`
	}
	if err := o.monitor(ctx, &jobs, "query-block-jobs", nil); err != nil {
		return err
	}
	var errs []error
	for _, j := range jobs {
		if j.Type != "mirror" {
			continue
		}
		errs = append(errs, o.monitor(ctx, nil, "block-job-change", map[string]any{
			"id": j.Device, "type": "mirror", "copy-mode": "write-blocking",
		}))
	}
	return errors.Join(errs...)
}

// monitor carries out one QMP command and decodes its return value.
func (o *outgoing) monitor(ctx context.Context, out any, command string, arguments map[string]any) error {
	request, err := json.Marshal(struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	reply, err := ask(ctx, o.h, command+" "+o.spec.Name, func(rpc *golibvirt.Libvirt) (string, error) {
		return rpc.QEMUDomainMonitorCommand(o.dom, string(request), 0)
	})
	if err != nil {
		return err
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(reply), &answer); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("%s: %s", command, answer.Error.Desc)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer.Return, out)
}
