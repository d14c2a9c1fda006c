package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
)

// way is one way to move a running guest to another site.
type way struct {
	name string
	// virsh are the arguments of virsh migrate that make it this way.
	virsh []string
	// ssh carries memory and disks through forwarded ports.
	ssh bool
	// drover is the way measured against the others, which are QEMU's own.
	drover bool
}

// xbzrleCache is the size of the page cache of XBZRLE: all of the guest's
// memory, as large as it can be of use.
const xbzrleCache = "536870912"

// ways are QEMU's own, as an operator who knows them would run them, and
// Drover. Bandwidth stays unlimited, which libvirt makes of QEMU's default of
// 128 MiB/s; the limit for the pause is QEMU's own of 300 ms.
var ways = []way{
	{name: "plain"},
	{name: "xbzrle", virsh: []string{"--comp-methods", "xbzrle", "--comp-xbzrle-cache", xbzrleCache}},
	{name: "multifd", virsh: []string{"--parallel", "--parallel-connections", "2"}},
	{name: "multifd-zstd1", virsh: []string{
		"--parallel", "--parallel-connections", "2", "--comp-methods", "zstd", "--comp-zstd-level", "1",
	}},
	{name: "multifd-zstd3", virsh: []string{
		"--parallel", "--parallel-connections", "2", "--comp-methods", "zstd", "--comp-zstd-level", "3",
	}},
	{name: "postcopy", virsh: []string{"--postcopy", "--postcopy-after-precopy"}},
	{name: "ssh", ssh: true},
	{name: "drover", drover: true},
}

// Ports at the destination, of memory and of disks.
const (
	memoryPort = 49152
	diskPort   = 49153
)

// moved is what a way says of its move.
type moved struct {
	// took is the time until the guest is at the destination and released at
	// the source.
	took time.Duration
	// pause is the guest's own, negative when the way does not say.
	pauseMillis            float64
	memoryBytes, diskBytes int64
	// more are further figures of the way.
	more Row
	// diverged says that the move did not end within its limit.
	diverged bool
}

// run moves the guest from one host to the other, within limit.
func (y way) run(ctx context.Context, w *wanLab, vm, from, to string, limit time.Duration) (moved, error) {
	if y.drover {
		return droverMove(ctx, w, vm, to, limit)
	}
	destination, err := w.Node(to)
	if err != nil {
		return moved{}, err
	}
	address := destination.Address
	if y.ssh {
		stop, err := w.startTunnel(ctx, from, to, memoryPort, diskPort)
		if err != nil {
			return moved{}, err
		}
		defer stop()
		address = "127.0.0.1"
	}
	began := time.Now()
	m := moved{pauseMillis: -1}
	var copied string
	if copied, m.diskBytes, err = w.makeTargets(ctx, vm, from, to); err != nil {
		return m, err
	}
	args := append([]string{
		"migrate", "--live", "--persistent", "--undefinesource", vm, w.uri(to),
		"--migrateuri", fmt.Sprintf("tcp://%s:%d", address, memoryPort),
	}, y.virsh...)
	if copied != "" {
		args = append(args, copied, "--disks-uri", fmt.Sprintf("tcp://%s:%d", address, diskPort))
	}
	m.diverged, err = w.migrate(ctx, vm, from, limit, args)
	m.took = time.Since(began)
	if err != nil || m.diverged {
		return m, err
	}
	err = w.completed(vm, to, &m)
	return m, err
}

// statsOf are the whole numbers among a job's figures.
func statsOf(params []libvirt.TypedParam) map[string]int64 {
	stats := map[string]int64{}
	for _, p := range params {
		if v, err := strconv.ParseInt(fmt.Sprint(p.Value.I), 10, 64); err == nil {
			stats[p.Field] = v
		}
	}
	return stats
}

// migrate runs virsh migrate, and aborts what has not ended within limit.
func (w *wanLab) migrate(ctx context.Context, vm, from string, limit time.Duration, args []string) (diverged bool, err error) {
	done := make(chan error, 1)
	go func() {
		_, err := w.virsh(ctx, from, args...)
		done <- err
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return false, err
	case <-timer.C:
	}
	_, abortErr := w.virsh(ctx, from, "domjobabort", vm)
	err = <-done
	if err == nil {
		return false, nil // it ended as the time was up
	}
	return true, abortErr
}

// completed reads what QEMU counted.
func (w *wanLab) completed(vm, to string, m *moved) error {
	return w.call(to, vm, func(conn *libvirt.Libvirt, dom libvirt.Domain) error {
		_, params, err := conn.DomainGetJobStats(dom, libvirt.DomainJobStatsCompleted)
		if err != nil {
			return err
		}
		stats := statsOf(params)
		m.memoryBytes = -1 // post-copy leaves libvirt without the figures
		if normal, ok := stats["memory_normal_bytes"]; ok {
			m.memoryBytes = normal + stats["memory_page_size"]*stats["memory_constant"]
		}
		if d, ok := stats["downtime"]; ok {
			m.pauseMillis = float64(d)
		}
		m.more = Row{"rounds": stats["memory_iteration"], "qemu_memory_wire_bytes": stats["memory_processed"]}
		return nil
	})
}

// diskImage is a disk's file as qemu-img describes it.
type diskImage struct {
	Path          string `json:"filename"`
	Format        string `json:"format"`
	VirtualBytes  int64  `json:"virtual-size"`
	Backing       string `json:"full-backing-filename"`
	BackingFormat string `json:"backing-filename-format"`
	Allocated     int64  `json:"actual-size"`
}

// images describes the disks of a guest that have to be carried.
func (w *wanLab) images(ctx context.Context, vm, host string) ([]diskImage, error) {
	d, err := w.domain(host, vm)
	if err != nil {
		return nil, err
	}
	var all []diskImage
	for _, disk := range d.Devices.Disks {
		if disk.Source == nil || disk.Source.File == nil || disk.Shareable != nil || disk.ReadOnly != nil {
			continue
		}
		out, err := w.exec(ctx, host, "qemu-img", "info", "-U", "--output=json", "--", disk.Source.File.File)
		if err != nil {
			return nil, err
		}
		var i diskImage
		if err := json.Unmarshal([]byte(out), &i); err != nil {
			return nil, fmt.Errorf("qemu-img info: %w", err)
		}
		all = append(all, i)
	}
	return all, nil
}

// makeTargets makes the volumes at the destination that virsh migrate copies
// into, and returns the flag that does: only the top layer where the
// destination has what is below, everything otherwise, "" without disks. bytes
// is what the disks hold: libvirt's own figure counts holes, too.
func (w *wanLab) makeTargets(ctx context.Context, vm, from, to string) (flag string, bytes int64, err error) {
	disks, err := w.images(ctx, vm, from)
	if err != nil || len(disks) == 0 {
		return "", 0, err
	}
	backed := w.backed(ctx, to, disks)
	for _, d := range disks {
		bytes += d.Allocated
		args := []string{"qemu-img", "create", "-q", "-f", d.Format}
		if backed {
			args = append(args, "-b", d.Backing, "-F", d.BackingFormat)
		}
		// What an earlier stay has left is of no use to QEMU.
		if _, err := w.exec(ctx, to, "rm", "-f", "--", d.Path); err != nil {
			return "", 0, err
		}
		if _, err := w.exec(ctx, to, append(args, "--", d.Path, strconv.FormatInt(d.VirtualBytes, 10))...); err != nil {
			return "", 0, err
		}
	}
	if backed {
		return "--copy-storage-inc", bytes, nil
	}
	return "--copy-storage-all", bytes, nil
}

// backed reports whether every disk has a backing file that is at the host too.
func (w *wanLab) backed(ctx context.Context, host string, disks []diskImage) bool {
	for _, d := range disks {
		if d.Backing == "" {
			return false
		}
		if _, err := w.exec(ctx, host, "test", "-e", d.Backing); err != nil {
			return false
		}
	}
	return len(disks) > 0
}

// droverMove is the way of the drover command. Its time is that from the
// command's start to the end of the move: what follows is the observation of
// the clients, which is measured here for all ways alike.
func droverMove(ctx context.Context, w *wanLab, vm, to string, limit time.Duration) (moved, error) {
	n, err := w.Node(to)
	if err != nil {
		return moved{}, err
	}
	m := moved{pauseMillis: -1}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	mv, err := w.trial.Move(bounded, vm, n.Site+"/"+to, "--method", string(drover.Live))
	m.took = time.Since(began)
	switch {
	case err != nil && bounded.Err() != nil && ctx.Err() == nil:
		m.diverged = true
		return m, nil
	case err != nil:
		return m, err
	case mv.State != drover.MoveDone:
		return m, fmt.Errorf("move %s is %s: %s", mv.Name, mv.State, mv.Fault)
	}
	m.more = Row{"command_s": m.took.Seconds()}
	if !mv.Ended.IsZero() {
		m.took = mv.Ended.Sub(began)
	}
	m.more["agent_peak_rss_bytes"] = w.peakRSS(mv.From.Host, mv.To.Host)
	f := mv.Measured
	m.pauseMillis, m.memoryBytes, m.diskBytes = orNaN(f.PauseMillis), orMinus(f.MemoryBytes), orMinus(f.DiskBytes)
	if f.Path != nil {
		t := f.Path.Total()
		m.more["missed_references"], m.more["path_cpu_s"], m.more["memory_s"] = t.MissedReferences, t.CPUSeconds, f.Path.Memory.Seconds
		for _, k := range t.Kinds.Each() {
			m.more[k.Name+"_blocks"], m.more[k.Name+"_wire_bytes"] = k.Blocks, int64(k.WireBytes)
		}
	}
	m.more["drover_outage_ms"], m.more["drover_wire_bytes"] = orNaN(f.OutageMillis), orMinus(f.WireBytes)
	return m, nil
}

// tunnelReady bounds the start of a tunnel.
const tunnelReady = 15 * time.Second

// startTunnel forwards ports of the source's loopback to the same ports at the
// destination, through ssh without compression.
func (w *wanLab) startTunnel(ctx context.Context, from, to string, ports ...int) (stop func(), err error) {
	s, err := w.startSSHD(ctx, to)
	if err != nil {
		return nil, err
	}
	args := s.command("-N", "-o", "ExitOnForwardFailure=yes")
	for _, p := range ports {
		args = append(args, "-L", fmt.Sprintf("127.0.0.1:%d:127.0.0.1:%d", p, p))
	}
	client, err := w.start(ctx, from, append(args, s.address)...)
	if err != nil {
		s.stop()
		return nil, err
	}
	stop = func() { client.stop(); s.stop() }
	if err := client.await(ctx, tunnelReady, func(ctx context.Context) error {
		_, err := w.exec(ctx, from, "sh", "-c", "ss -Hltn sport = :"+strconv.Itoa(ports[0])+" | grep -q .")
		return err
	}); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// child is a process in a node that the benchmark has started.
type child struct {
	cmd    *exec.Cmd
	stderr strings.Builder
	done   chan struct{}
	err    error
}

// start runs a command in a node until stop is called.
func (w *wanLab) start(ctx context.Context, name string, args ...string) (*child, error) {
	cmd, err := w.Command(context.WithoutCancel(ctx), name, args...)
	if err != nil {
		return nil, err
	}
	return startChild(cmd)
}

// startChild starts a command made by wanLab.Command.
func startChild(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, done: make(chan struct{})}
	cmd.Stderr = &c.stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// stop ends the process and waits for it.
func (c *child) stop() {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM) // it may have ended
	select {
	case <-c.done:
	case <-time.After(childGrace):
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		<-c.done
	}
}

// childGrace is how long a process may take to end after SIGTERM.
const childGrace = 5 * time.Second

// await waits until ready says so, or the process has ended.
func (c *child) await(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			return fmt.Errorf("%s: %w: %s", c.cmd.Args[len(c.cmd.Args)-1], errors.Join(c.err, errEnded), strings.TrimSpace(c.stderr.String()))
		case <-ctx.Done():
			return fmt.Errorf("not ready within %s: %w", limit, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

var errEnded = errors.New("it has ended")
