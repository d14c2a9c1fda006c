package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/guest/journal"
)

const (
	defaultBlockBytes = 4096
	// diskTick is the shortest sleep between records that are not due yet.
	diskTick = 2 * time.Millisecond
	// diskRetry is the wait after a failed write; the number of retries has
	// no limit because giving up would look like a finished writer.
	diskRetry = 100 * time.Millisecond
)

// errNoDisk says that the guest has no disk to write to.
var errNoDisk = errors.New("the guest has no virtio disk for the journal")

// diskWriter runs the journal's writer and knows what it acknowledged.
type diskWriter struct {
	log  *slog.Logger
	boot journal.ID
	root string // device that must not be written to

	ctl  sync.Mutex // one start or stop at a time
	stop func()     // ends the running writer and waits for it, nil when none runs

	io sync.Mutex // held over each write, and over a check

	mu      sync.Mutex // guards what follows
	stat    control.DiskStats
	changed chan struct{} // closed when stat has changed, then replaced
}

func newDiskWriter(log *slog.Logger, boot journal.ID, root string) *diskWriter {
	d := &diskWriter{log: log, boot: boot, root: root, changed: make(chan struct{})}
	d.stat.Device, _ = findDisk(root) // none is fine: start says so
	return d
}

// run stops the writer when ctx is done.
func (d *diskWriter) run(ctx context.Context) {
	<-ctx.Done()
	d.halt()
}

// start opens the journal and begins to append; a running writer is replaced.
func (d *diskWriter) start(req control.Disk) error {
	if err := req.Validate(); err != nil {
		return err
	}
	if req.BlockBytes == 0 {
		req.BlockBytes = defaultBlockBytes
	}
	d.ctl.Lock()
	defer d.ctl.Unlock()
	d.haltLocked()
	f, size, err := d.open(os.O_RDWR, req.Sync == nil || *req.Sync)
	if err != nil {
		return err
	}
	w, err := journal.Open(f, size, journal.Options{
		BlockBytes: req.BlockBytes, RingBytes: req.RingBytes, Format: req.Format, Boot: d.boot,
	})
	if err != nil {
		return errors.Join(err, f.Close())
	}
	d.update(func(s *control.DiskStats) {
		if s.Journal != w.Geometry().Journal {
			s.FirstSeq, s.LastSeq = 0, 0
		}
		s.Device, s.Geometry, s.Running = f.Name(), w.Geometry(), true
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { d.append(ctx, w, req) })
	d.stop = func() {
		cancel()
		wg.Wait()
		if err := f.Close(); err != nil {
			d.log.Error("close disk", "err", err)
		}
		d.update(func(s *control.DiskStats) { s.Running = false })
	}
	return nil
}

func (d *diskWriter) halt() {
	d.ctl.Lock()
	defer d.ctl.Unlock()
	d.haltLocked()
}

func (d *diskWriter) haltLocked() {
	if d.stop != nil {
		d.stop()
		d.stop = nil
	}
}

// append writes records at the rate asked for until ctx is done. A write that
// has begun is always waited for.
func (d *diskWriter) append(ctx context.Context, w *journal.Writer, req control.Disk) {
	p := pace{perSecond: float64(req.RateBytesPerS) / float64(req.BlockBytes)}
	for ctx.Err() == nil {
		due := int64(1)
		if req.RateBytesPerS > 0 {
			if due, _ = p.take(time.Now()); due == 0 {
				sleep(ctx, max(diskTick, time.Duration(float64(time.Second)/p.perSecond)/4))
				continue
			}
		}
		for ; due > 0 && ctx.Err() == nil; due-- {
			if err := d.appendOne(w); err != nil {
				d.log.Error("disk write failed, trying again", "err", err)
				sleep(ctx, diskRetry)
			}
		}
	}
}

func (d *diskWriter) appendOne(w *journal.Writer) error {
	d.io.Lock()
	defer d.io.Unlock()
	began := time.Now()
	seq, err := w.Append()
	took := float64(time.Since(began)) / float64(time.Millisecond)
	d.update(func(s *control.DiskStats) {
		s.MaxWriteMS = max(s.MaxWriteMS, took)
		if err != nil {
			s.Errors++
			return
		}
		if s.FirstSeq == 0 {
			s.FirstSeq = seq
		}
		s.LastSeq = seq
		s.WrittenBytes += int64(w.Geometry().BlockBytes)
	})
	return err
}

// check reads the disk while the writer waits.
func (d *diskWriter) check(acked *journal.Acks) (control.DiskCheck, error) {
	d.io.Lock()
	defer d.io.Unlock()
	f, size, err := d.open(os.O_RDONLY, false)
	if err != nil {
		return control.DiskCheck{}, err
	}
	defer func() { _ = f.Close() }()
	scan, err := journal.Check(f, size)
	if err != nil {
		return control.DiskCheck{}, err
	}
	if acked == nil {
		acked = new(journal.Acks)
		if s, _ := d.watch(); s.LastSeq > 0 {
			acked = &journal.Acks{Journal: s.Journal, Ranges: []journal.Range{{First: s.FirstSeq, Last: s.LastSeq}}}
		}
	}
	return control.DiskCheck{Scan: scan, Verdict: scan.Verify(*acked)}, nil
}

func (d *diskWriter) update(change func(*control.DiskStats)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.stat)
	close(d.changed)
	d.changed = make(chan struct{})
}

// watch returns the state and a channel that is closed when it has changed.
func (d *diskWriter) watch() (control.DiskStats, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stat, d.changed
}

// open opens the disk past the guest's page cache: what is read is what the
// disk holds, and a write has reached it on return.
func (d *diskWriter) open(mode int, durable bool) (*os.File, int64, error) {
	path, err := findDisk(d.root)
	if err != nil {
		return nil, 0, err
	}
	mode |= unix.O_DIRECT
	if durable {
		mode |= unix.O_DSYNC
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open disk: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("size of disk: %w", err), f.Close())
	}
	return f, size, nil
}

// findDisk returns the first virtio disk that does not hold the root file
// system.
func findDisk(root string) (string, error) {
	found, err := filepath.Glob("/sys/block/vd*") // sorted
	if err != nil {
		return "", err
	}
	for _, dir := range found {
		path := "/dev/" + filepath.Base(dir)
		if root == "" || !strings.HasPrefix(root, path) {
			return path, nil
		}
	}
	return "", errNoDisk
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
