package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/topology"
)

// vxlanFrame is what a segment's tunnel adds to each of its frames on a link:
// Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348).
const vxlanFrame = 50

// cpuInterval is how often the hosts' processes are looked at: what a process
// used after the last look before its end is not counted.
const cpuInterval = 100 * time.Millisecond

// meter reads what a move costs: the bytes on the link between the two sites
// and the processor time of the two hosts.
//
// The bytes are the emulator's, of both directions, less those of stretched
// segments, which are the guests' and their clients' own traffic. Agents report
// to the server over the same link: that, and the processor time that is used
// anyway, is a rate measured before each move and subtracted.
type meter struct {
	lab  *lab.Lab
	link string
	edge string // where the segments' tunnels are read
	cpu  *cpuMeter
}

// reading is a meter's state.
type reading struct {
	at   time.Time
	wire int64
	cpu  time.Duration
}

func newMeter(l *lab.Lab, from, to string) (*meter, error) {
	a, err := l.Node(from)
	if err != nil {
		return nil, err
	}
	b, err := l.Node(to)
	if err != nil {
		return nil, err
	}
	link, err := l.LinkNamed(a.Site, b.Site)
	if err != nil {
		return nil, err
	}
	m := &meter{lab: l, link: link.Name}
	for _, n := range l.Nodes {
		if n.Role == topology.Edge && n.Site == link.A {
			m.edge = n.Name
		}
	}
	m.cpu, err = newCPUMeter(l, from, to)
	return m, err
}

func (m *meter) close() { m.cpu.close() }

// read returns the counters now.
func (m *meter) read(ctx context.Context) (reading, error) {
	s, err := m.lab.LinkStatus(ctx, m.link)
	if err != nil {
		return reading{}, err
	}
	segments, err := m.segmentBytes(ctx)
	return reading{
		at: time.Now(), wire: int64(s.Forward.Bytes+s.Reverse.Bytes) - segments, cpu: m.cpu.used(),
	}, err
}

// segmentBytes is what the segments' tunnels have carried at one end of the
// link, as it is on the link.
func (m *meter) segmentBytes(ctx context.Context) (int64, error) {
	const script = `cd /proc/net && awk 'NR>2 {sub(":"," "); print $1,$2,$3,$10,$11}' dev; ip -o link show type vxlan | awk -F': ' '{print "vxlan",$2}'`
	cmd, err := m.lab.Command(ctx, m.edge, "sh", "-c", script)
	if err != nil {
		return 0, err
	}
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("count segments at %s: %w", m.edge, err)
	}
	return parseSegmentBytes(string(out))
}

// parseSegmentBytes adds up the tunnels named at the end of the script's output.
func parseSegmentBytes(out string) (int64, error) {
	bytes := map[string]int64{}
	var sum int64
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "vxlan":
			name, _, _ := strings.Cut(f[1], "@")
			n, ok := bytes[name]
			if !ok {
				return 0, fmt.Errorf("interface %s has no counters", name)
			}
			sum += n
		case len(f) == 5:
			var v [4]int64 // received bytes and packets, sent bytes and packets
			for i := range v {
				n, err := strconv.ParseInt(f[i+1], 10, 64)
				if err != nil {
					return 0, fmt.Errorf("counters of %s: %w", f[0], err)
				}
				v[i] = n
			}
			bytes[f[0]] = v[0] + v[2] + vxlanFrame*(v[1]+v[3])
		}
	}
	return sum, nil
}

// rates are what goes on without a move, per second.
type rates struct {
	wire float64 // bytes
	cpu  float64 // processor seconds
}

// baseline measures what goes on without a move for a while.
func (m *meter) baseline(ctx context.Context, d time.Duration) (rates, error) {
	before, err := m.read(ctx)
	if err != nil {
		return rates{}, err
	}
	if err := sleep(ctx, d); err != nil {
		return rates{}, err
	}
	after, err := m.read(ctx)
	s := after.at.Sub(before.at).Seconds()
	return rates{wire: float64(after.wire-before.wire) / s, cpu: (after.cpu - before.cpu).Seconds() / s}, err
}

// cost is what was used between two readings beyond the rates.
func (r rates) cost(before, after reading) (wire int64, cpu float64) {
	s := after.at.Sub(before.at).Seconds()
	wire = max(0, after.wire-before.wire-int64(r.wire*s))
	return wire, max(0, (after.cpu-before.cpu).Seconds()-r.cpu*s)
}

// cpuMeter adds up the processor time of all processes of some nodes, of those
// that have ended too: QEMU, agents, libvirtd, ssh. What QEMU's virtual
// processors use is the guest's and left out.
type cpuMeter struct {
	spaces []string // the nodes' process namespaces
	stop   chan struct{}
	wg     sync.WaitGroup

	mu   sync.Mutex
	seen map[string]time.Duration // by process id and start
}

func newCPUMeter(l *lab.Lab, nodes ...string) (*cpuMeter, error) {
	c := &cpuMeter{stop: make(chan struct{}), seen: map[string]time.Duration{}}
	for _, n := range nodes {
		pid, err := l.Holder(n)
		if err != nil {
			return nil, err
		}
		space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", n, err)
		}
		c.spaces = append(c.spaces, space)
	}
	c.look()
	c.wg.Go(func() {
		tick := time.NewTicker(cpuInterval)
		defer tick.Stop()
		for {
			select {
			case <-c.stop:
				return
			case <-tick.C:
				c.look()
			}
		}
	})
	return c, nil
}

func (c *cpuMeter) close() {
	close(c.stop)
	c.wg.Wait()
}

// used looks once more and returns the sum.
func (c *cpuMeter) used() time.Duration {
	c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum time.Duration
	for d := range maps.Values(c.seen) {
		sum += d
	}
	return sum
}

func (c *cpuMeter) look() {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, dir := range dirs {
		space, err := os.Readlink(dir + "/ns/pid")
		if err != nil || !slices.Contains(c.spaces, space) {
			continue // it has ended, or is none of ours
		}
		used, start, err := processTime(dir)
		if err == nil {
			c.seen[dir+start] = max(c.seen[dir+start], used-virtualTime(dir))
		}
	}
}

// virtualThread is how QEMU names the threads of virtual processors, as libvirt
// runs it.
const virtualThread = "CPU "

// virtualTime is what a process's virtual processors have used; none, if it is
// not QEMU.
func virtualTime(dir string) (sum time.Duration) {
	name, err := os.ReadFile(dir + "/comm")
	if err != nil || !strings.HasPrefix(string(name), "qemu-system") {
		return 0
	}
	tasks, _ := filepath.Glob(dir + "/task/*") // the pattern is right
	for _, task := range tasks {
		name, err := os.ReadFile(task + "/comm")
		if err != nil || !strings.HasPrefix(string(name), virtualThread) {
			continue
		}
		if used, _, err := processTime(task); err == nil {
			sum += used
		}
	}
	return sum
}

var errNoStat = errors.New("stat is cut short")

// clockTick is the unit of times in /proc/PID/stat (proc(5)).
const clockTick = 10 * time.Millisecond

// processTime reads a process's own processor time, and when it started, from
// its folder in /proc.
func processTime(dir string) (used time.Duration, start string, err error) {
	raw, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0, "", err
	}
	// After the command's closing bracket, utime and stime are fields 12 and
	// 13, and starttime is 20 (proc(5)).
	_, rest, _ := strings.Cut(string(raw), ") ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return 0, "", errNoStat
	}
	u, uerr := strconv.ParseInt(f[11], 10, 64)
	s, serr := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(u+s) * clockTick, f[19], errors.Join(uerr, serr)
}

// sleep waits, or returns early with ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
