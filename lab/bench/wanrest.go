package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// An agent is at rest when it reads less than restBytes in restWindow,
	// restWindows times in a row: cataloguing reads megabytes a second, idle
	// conversation a few kilobytes.
	restBytes   = 1 << 20
	restWindow  = time.Second
	restWindows = 4
	// restLimit is how long is waited: a lab's images take seconds.
	restLimit = 2 * time.Minute
)

// agentsAtRest waits until the agents of the hosts have looked at what they
// hold. In a lab they have just been started; a host's agent had the time long
// before a move. It reports whether they came to rest.
func (w *wanLab) agentsAtRest(ctx context.Context, hosts ...string) (bool, error) {
	var agents []string
	for _, h := range hosts {
		dirs, err := w.agentsOf(h)
		if err != nil {
			return false, err
		}
		agents = append(agents, dirs...)
	}
	last, quiet := bytesRead(agents), 0
	for end := time.Now().Add(restLimit); time.Now().Before(end); {
		if err := sleep(ctx, restWindow); err != nil {
			return false, err
		}
		now := bytesRead(agents)
		if quiet++; now-last > restBytes {
			quiet = 0
		}
		if quiet >= restWindows {
			return true, nil
		}
		last = now
	}
	return false, nil
}

// agentsOf are the folders in /proc of a node's drover processes.
func (w *wanLab) agentsOf(name string) ([]string, error) {
	pid, err := w.Holder(name)
	if err != nil {
		return nil, err
	}
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	return slices.DeleteFunc(dirs, func(dir string) bool {
		own, err := os.Readlink(dir + "/ns/pid")
		if err != nil || own != space {
			return true
		}
		line, err := os.ReadFile(dir + "/cmdline")
		return err != nil || !strings.Contains(string(line), "\x00agent\x00")
	}), nil
}

// bytesRead is what processes have read so far, from files and sockets (rchar
// in proc(5)).
func bytesRead(dirs []string) (sum int64) {
	for _, dir := range dirs {
		raw, err := os.ReadFile(dir + "/io")
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(raw)) {
			if v, ok := strings.CutPrefix(line, "rchar: "); ok {
				n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64) // the kernel's own
				sum += n
			}
		}
	}
	return sum
}

// peakRSS is the most memory that an agent of the hosts has had at a time since
// it began (VmHWM in proc(5)), in bytes; 0 when that cannot be read.
func (w *wanLab) peakRSS(hosts ...string) (most int64) {
	for _, h := range hosts {
		dirs, err := w.agentsOf(h)
		if err != nil {
			return 0
		}
		for _, dir := range dirs {
			raw, err := os.ReadFile(dir + "/status")
			if err != nil {
				continue // it has ended
			}
			for line := range strings.Lines(string(raw)) {
				if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
					kib, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64) // the kernel's own
					most = max(most, kib<<10)
				}
			}
		}
	}
	return most
}
