package agent

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// RemainsConfig says what is kept of VMs that have left.
type RemainsConfig struct {
	// Limit is how much of the disks all that is kept may take: nil takes
	// DefaultRemainsLimit, 0 keeps nothing.
	Limit *Size `yaml:"limit,omitempty"`
	// Keep is how long it is kept; zero takes DefaultRemainsKeep.
	Keep Duration `yaml:"keep,omitempty"`
}

const (
	// DefaultRemainsLimit holds a handful of server disks, and is a small part
	// of any host's.
	DefaultRemainsLimit = 20 * drover.GiB
	// DefaultRemainsKeep is a week: whoever follows the sun is back after a day,
	// whoever drains a host after a weekend.
	DefaultRemainsKeep = 7 * 24 * time.Hour
)

func (c RemainsConfig) limit() drover.Bytes {
	if c.Limit == nil {
		return DefaultRemainsLimit
	}
	return drover.Bytes(*c.Limit)
}

func (c RemainsConfig) keep() time.Duration {
	if c.Keep == 0 {
		return DefaultRemainsKeep
	}
	return time.Duration(c.Keep)
}

const (
	// remainsEvery is how often what is kept is looked at: age and space change
	// slowly.
	remainsEvery = time.Minute
	// leastFree is the space below which remains give way to guests that write:
	// a guest whose disk cannot grow stops.
	leastFree = drover.GiB
)

// remain is the disk of a VM as it was when the VM left by a move. It lies where
// the disk lay, under another name, so that nothing is copied. No VM is ever
// started on it: it only serves to know content that the VM may bring back.
type remain struct {
	Move   string `json:"move"`
	VM     string `json:"vm"`
	VMUUID string `json:"vm_uuid"`
	Target string `json:"target"`
	// Tenant is the VM's tenant, empty where it has none.
	Tenant string `json:"tenant,omitempty"`
	// Path is where it lies, From where the disk lay.
	Path           string       `json:"path"`
	From           string       `json:"from"`
	Format         string       `json:"format"`
	VirtualBytes   drover.Bytes `json:"virtual_bytes"`
	AllocatedBytes drover.Bytes `json:"allocated_bytes"`
	// Kept is since when, Used when it last served a move.
	Kept time.Time `json:"kept"`
	Used time.Time `json:"used"`
	// State is remainKeeping before the image has its new name, remainKept
	// after, remainGoing before it is deleted.
	State string `json:"state"`
}

const (
	remainKeeping = "keeping"
	remainKept    = "kept"
	remainGoing   = "going"
)

// asidePath is where a move's disk is kept aside. A move's name is used once, so this
// is too.
func asidePath(move, target, from string) string {
	ext := filepath.Ext(from)
	if len(ext) > 16 { // part of a long name, not an ending
		ext = ""
	}
	return filepath.Join(filepath.Dir(from), driver.AsidePrefix+move+"-"+target+ext)
}

// remains keeps the disks of VMs that have left.
//
// Each is in the journal before its image gets its new name and until it is
// gone, so that after a crash the image is either the move's, under its old
// name, or a remain.
type remains struct {
	a *Agent

	// mu serialises all changes; readers of the journal need it not.
	mu sync.Mutex
	// kept and dropped are told of each remain that comes and goes, with mu
	// held. Nil: nobody.
	kept, dropped func(remain)
}

// hooks names who is told of each remain: kept when it is there (of those that
// are already, at once), dropped before its image goes. Neither may call a
// method of remains.
func (s *remains) hooks(kept, dropped func(remain)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept, s.dropped = kept, dropped
	all, err := s.list("")
	for _, r := range all {
		kept(r)
	}
	return err
}

// list returns what is kept of a VM, or of all when uuid is empty: the newest
// first. What is on its way in or out is not among it.
func (s *remains) list(uuid string) ([]remain, error) {
	all, err := s.a.journal.remains()
	all = slices.DeleteFunc(all, func(r remain) bool {
		return r.State != remainKept || uuid != "" && r.VMUUID != uuid
	})
	slices.SortFunc(all, func(x, y remain) int { return y.Kept.Compare(x.Kept) })
	return all, err
}

// use notes that a remain serves a move now, so that others go first.
func (s *remains) use(r remain) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.a.clock()
	return s.a.journal.changeRemain(r, func(r *remain) { r.Used = now })
}

// keep makes the disk of a VM that has left a remain. ok is false when it is not
// to be kept: then it is still where it was, and the caller's to delete. A disk
// that is not there any more is fine: it has been kept, or deleted, before.
func (s *remains) keep(ctx context.Context, r *record, d drover.Disk) (ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := s.a.config.Remains.limit()
	if limit <= 0 {
		return false, nil
	}
	v, err := s.a.volumes.Volume(ctx, d.Path)
	if err != nil {
		if drover.KindOf(err) == drover.NotFound && !fileThere(d.Path) {
			return s.again(ctx, r, d)
		}
		s.a.log.Warn("a moved vm's image is not kept: it cannot be read", "move", r.Move, "path", d.Path, "err", err)
		return false, nil
	}
	if v.AllocatedBytes > limit {
		return false, nil
	}
	if err := s.replace(ctx, r, v.AllocatedBytes); err != nil {
		return false, err
	}
	now := s.a.clock()
	n := remain{
		Move: r.Move, VM: r.VM, VMUUID: r.VMUUID, Target: d.Target, Tenant: r.Tenant,
		Path: asidePath(r.Move, d.Target, d.Path), From: d.Path, Format: v.Format,
		VirtualBytes: v.VirtualBytes, AllocatedBytes: v.AllocatedBytes, Kept: now, Used: now, State: remainKeeping,
	}
	if err := s.a.journal.putRemain(n); err != nil {
		return false, err
	}
	if err := s.a.volumes.Rename(ctx, n.From, n.Path); err != nil {
		// Cut short, it may have been renamed all the same.
		if _, perr := s.a.volumes.Volume(ctx, n.Path); perr != nil && drover.KindOf(perr) == drover.NotFound {
			if jerr := s.a.journal.deleteRemain(n); jerr != nil {
				return false, jerr
			}
			if kind := drover.KindOf(err); kind == drover.Refused || kind == drover.Canceled {
				return false, err
			}
			s.a.log.Warn("a moved vm's image is not kept", "move", r.Move, "path", d.Path, "err", err)
			return false, nil
		}
	}
	return true, s.admit(ctx, n)
}

// admit finishes what keep has begun.
func (s *remains) admit(ctx context.Context, n remain) error {
	if _, err := s.a.volumes.Volume(ctx, n.Path); err != nil {
		// Under its new name it is no image any more, or its backing file is
		// not found from there.
		s.a.log.Warn("a moved vm's image is not kept", "move", n.Move, "path", n.Path, "err", err)
		return s.drop(ctx, n)
	}
	n.State = remainKept
	if err := s.a.journal.putRemain(n); err != nil {
		return err
	}
	if s.kept != nil {
		s.kept(n)
	}
	s.a.log.Info("a moved vm's disk is kept aside", "move", n.Move, "vm", n.VM, "disk", n.Target, "takes", n.AllocatedBytes.String())
	return nil
}

// again finishes a keep of this move that was interrupted after the image had
// its new name.
func (s *remains) again(ctx context.Context, r *record, d drover.Disk) (bool, error) {
	all, err := s.a.journal.remains()
	if err != nil {
		return false, err
	}
	for _, n := range all {
		if n.Move == r.Move && n.Target == d.Target && n.State == remainKeeping {
			return true, s.admit(ctx, n)
		}
	}
	return true, nil
}

// replace makes room for size more: what an earlier move left of the VM goes,
// and what was not used for longest, until all is within the limit.
func (s *remains) replace(ctx context.Context, r *record, size drover.Bytes) error {
	all, err := s.a.journal.remains()
	if err != nil {
		return err
	}
	for _, n := range all {
		if n.VMUUID == r.VMUUID && n.Move != r.Move {
			if err := s.drop(ctx, n); err != nil && drover.KindOf(err) != drover.Refused {
				return err
			}
		}
	}
	return s.shrink(ctx, s.a.config.Remains.limit()-size, nil)
}

// shrink drops what was not used for longest until what is left takes no more
// than limit. What is being read stays. last, if set, tells what to drop last.
func (s *remains) shrink(ctx context.Context, limit drover.Bytes, last func(remain) bool) error {
	all, err := s.oldest(last)
	if err != nil {
		return err
	}
	var sum drover.Bytes
	for _, n := range all {
		sum += n.AllocatedBytes
	}
	for _, n := range all {
		if sum <= limit {
			return nil
		}
		switch err := s.drop(ctx, n); {
		case err == nil:
			sum -= n.AllocatedBytes
		case drover.KindOf(err) != drover.Refused:
			return err
		}
	}
	return nil
}

// oldest returns all that is kept, what was not used for longest first.
func (s *remains) oldest(last func(remain) bool) ([]remain, error) {
	all, err := s.list("")
	slices.SortFunc(all, func(x, y remain) int {
		if last != nil && last(x) != last(y) {
			if last(x) {
				return 1
			}
			return -1
		}
		return cmp.Or(x.Used.Compare(y.Used), cmp.Compare(x.Path, y.Path))
	})
	return all, err
}

// drop deletes a remain. drover.Refused: it is being read; it stays in the
// journal as going, and goes later.
func (s *remains) drop(ctx context.Context, n remain) error {
	if n.State == remainKept && s.dropped != nil {
		s.dropped(n)
	}
	n.State = remainGoing
	if err := s.a.journal.putRemain(n); err != nil {
		return err
	}
	if err := s.a.volumes.Delete(ctx, n.Path); err != nil {
		return err
	}
	if err := s.a.journal.deleteRemain(n); err != nil {
		return err
	}
	s.a.log.Info("what was kept of a moved vm's disk is dropped", "vm", n.VM, "disk", n.Target, "takes", n.AllocatedBytes.String())
	return nil
}

// forget drops what is kept of a VM: it is here again, and newer.
func (s *remains) forget(ctx context.Context, uuid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.a.journal.remains()
	for _, n := range all {
		if n.VMUUID == uuid && err == nil {
			err = s.drop(ctx, n)
		}
	}
	if err != nil {
		// What is left goes by its age, or when something newer takes its place.
		s.a.log.Warn("what was kept of a vm cannot be dropped yet", "uuid", uuid, "err", err)
	}
}

// room drops remains until the folder of path has need bytes free, or none is
// left that would help; what is kept of the VM itself goes last.
func (s *remains) room(ctx context.Context, path string, need drover.Bytes, uuid string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.free(ctx, path, need, func(n remain) bool { return n.VMUUID == uuid })
}

func (s *remains) free(ctx context.Context, path string, need drover.Bytes, last func(remain) bool) error {
	all, err := s.oldest(last)
	if err != nil {
		return err
	}
	for _, n := range all {
		free, err := s.a.volumes.FreeBytes(ctx, path)
		if err != nil || free >= need {
			return err
		}
		if filepath.Dir(n.Path) != filepath.Dir(path) {
			continue
		}
		if err := s.drop(ctx, n); err != nil && drover.KindOf(err) != drover.Refused {
			return err
		}
	}
	return nil
}

// evictable is what remains take in the folder: room would drop them.
func (s *remains) evictable(dir string) drover.Bytes {
	all, err := s.list("")
	if err != nil {
		return 0
	}
	var sum drover.Bytes
	for _, n := range all {
		if filepath.Dir(n.Path) == dir {
			sum += n.AllocatedBytes
		}
	}
	return sum
}

// run settles what an earlier process left half done, and drops what is too old,
// too much, or in the way of guests that write, until ctx ends.
func (s *remains) run(ctx context.Context) {
	if s.a.edge() {
		return
	}
	for {
		if err := s.tidy(ctx); err != nil && ctx.Err() == nil {
			s.a.log.Warn("what is kept of moved vms is not in order yet", "err", err)
		}
		if sleep(ctx, remainsEvery, nil) != nil {
			return
		}
	}
}

// tidy makes one round.
func (s *remains) tidy(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.a.journal.remains()
	if err != nil {
		return err
	}
	now, keep := s.a.clock(), s.a.config.Remains.keep()
	folders := make(map[string]string)
	for _, n := range all {
		switch {
		case n.State == remainKeeping:
			err = s.settle(ctx, n)
		case n.State == remainGoing, now.Sub(n.Used) > keep:
			err = s.drop(ctx, n)
		default:
			folders[filepath.Dir(n.Path)] = n.Path
			err = s.present(ctx, n)
		}
		if err != nil && drover.KindOf(err) != drover.Refused {
			return err
		}
	}
	for _, path := range folders {
		if err := s.free(ctx, path, leastFree, nil); err != nil {
			return err
		}
	}
	return s.shrink(ctx, s.a.config.Remains.limit(), nil)
}

// settle ends a keep that a crash has interrupted: the image has its old name
// and is the move's, or its new one and is a remain.
func (s *remains) settle(ctx context.Context, n remain) error {
	_, err := s.a.volumes.Volume(ctx, n.Path)
	if err != nil && drover.KindOf(err) == drover.NotFound && !fileThere(n.Path) {
		return s.a.journal.deleteRemain(n)
	}
	return s.admit(ctx, n)
}

// present forgets a remain that somebody has removed by hand.
func (s *remains) present(ctx context.Context, n remain) error {
	_, err := s.a.volumes.Volume(ctx, n.Path)
	if err != nil && drover.KindOf(err) == drover.NotFound && !fileThere(n.Path) {
		if s.dropped != nil {
			s.dropped(n)
		}
		return s.a.journal.deleteRemain(n)
	}
	return nil
}
