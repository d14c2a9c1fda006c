package chunk

import (
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// victim is something that may be evicted.
type victim struct {
	id      SourceID
	entry   *entry // nil: a catalogue of a source that is not registered
	used    time.Time
	bytes   int64 // of the limit
	onOurFS int64 // of the folder's file system
}

// makeRoom evicts until need more bytes fit within the limit and the file
// system's reserve. What nobody can use (catalogues without a source) goes
// first, then what was used least recently; catalogues of registered images
// stay, being a five-hundredth of what they save reading again. When even all
// of it would not do, nothing is evicted. files is held.
func (l *Library) makeRoom(need int64) error {
	l.mu.Lock()
	drops, err := l.chooseVictims(need)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return drops.run()
}

// trim evicts what it may to get back within the limit. files is held.
func (l *Library) trim() {
	if err := l.makeRoom(0); err != nil {
		l.log.Warn("evicted files stay until the next start", "error", err)
	}
}

// chooseVictims takes out of the maps what has to go. mu and files are held.
func (l *Library) chooseVictims(need int64) (dropList, error) {
	const op = "make room"
	over := l.keptBytes() + need - l.options.LimitBytes
	var lack int64
	if need > 0 {
		free, err := l.free()
		if err != nil {
			return nil, err
		}
		lack = need + l.reserve - free
	}
	var chosen []victim
	for _, v := range l.victims() {
		if over <= 0 && lack <= 0 {
			break
		}
		if over <= 0 && v.onOurFS == 0 {
			continue // it would not help
		}
		chosen = append(chosen, v)
		over -= v.bytes
		lack -= v.onOurFS
	}
	switch {
	case need == 0: // nobody waits for it; as much as can go does
	case over > 0 && need > l.options.LimitBytes:
		return nil, drover.Errorf(drover.Exhausted, op, "%v are over the limit of %v", drover.Bytes(need), drover.Bytes(l.options.LimitBytes))
	case over > 0:
		return nil, drover.Errorf(drover.Exhausted, op, "%v do not fit within the limit of %v beside what is in use", drover.Bytes(need), drover.Bytes(l.options.LimitBytes))
	case lack > 0:
		return nil, drover.Errorf(drover.Exhausted, op, "the file system would be %v short of its reserve of %v", drover.Bytes(lack), drover.Bytes(l.reserve))
	}
	var drops dropList
	for _, v := range chosen {
		drops = append(drops, l.drop(v.id)...)
		l.evicted++
		if v.entry != nil {
			l.log.Info("evicted", "source", v.id, "kind", v.entry.source.Kind, "bytes", v.bytes, "used", v.used)
			if v.entry.kept.Drop != nil {
				l.callbacks = append(l.callbacks, v.entry.kept.Drop)
			}
		}
	}
	if len(chosen) > 0 {
		l.note()
	}
	return drops, nil
}

// victims lists what may be evicted, the first to go first. mu is held.
func (l *Library) victims() []victim {
	var list []victim
	for id, o := range l.orphans {
		list = append(list, victim{id: id, used: o.used, bytes: o.bytes, onOurFS: o.bytes})
	}
	for id, e := range l.entries {
		mine := e.open == nil
		if e.pins > 0 || !mine && (e.kept.Drop == nil || e.kept.Bytes == 0) {
			continue
		}
		v := victim{id: id, entry: e, used: e.used, bytes: e.keptBytes(), onOurFS: e.catalogue.bytes}
		if mine {
			v.onOurFS += e.bytes
		}
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b victim) int {
		if (a.entry == nil) != (b.entry == nil) {
			if a.entry == nil {
				return -1
			}
			return 1
		}
		return a.used.Compare(b.used)
	})
	return list
}

// lockFiles begins a change of the folder; the function it returns ends it,
// and then tells owners of disks what was evicted, outside of all locks.
func (l *Library) lockFiles() (unlock func()) {
	l.files.Lock()
	return func() {
		l.mu.Lock()
		tell := l.callbacks
		l.callbacks = nil
		l.mu.Unlock()
		l.files.Unlock()
		for _, f := range tell {
			f()
		}
	}
}
