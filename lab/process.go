package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/drover-vm/drover/lab/node"
)

// process is a background process of some lab.
type process struct {
	pid int
	lab string // the lab's folder
	// node is the node that the process holds, "" for the WAN emulator.
	node string
}

// processes finds the background processes of all labs on the machine by what
// they carry in their arguments, which holds also when a lab's folder is gone.
func processes() []process {
	entries, _ := os.ReadDir("/proc") // without it there is no process to be seen
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil { // it has ended
			continue
		}
		if p, ok := labProcess(bytes.Split(bytes.TrimSuffix(line, []byte{0}), []byte{0})); ok {
			p.pid = pid
			found = append(found, p)
		}
	}
	return found
}

// labProcess reads "drover lab-node --lab DIR --node NAME" and "drover lab-wan
// --lab DIR".
func labProcess(argv [][]byte) (process, bool) {
	if len(argv) < 4 || string(argv[2]) != "--lab" {
		return process{}, false
	}
	p := process{lab: string(argv[3])}
	switch string(argv[1]) {
	case WANSubcommand:
		return p, true
	case node.Subcommand:
		if len(argv) < 6 || string(argv[4]) != "--node" {
			return process{}, false
		}
		p.node = string(argv[5])
		return p, true
	default:
		return process{}, false
	}
}

// Times for killing a lab's processes.
const (
	killPoll = 10 * time.Millisecond
	// killLimit is how long the kernel may take to end all of a lab: a QEMU in
	// the middle of a disk write has to finish it first.
	killLimit = 30 * time.Second
)

// killAll kills the processes of the lab whose folder is dir, and returns when
// the last of them and all that lived in their namespaces has ended.
func killAll(ctx context.Context, dir string) (killed int, err error) {
	seen := map[int]bool{}
	err = poll(ctx, killPoll, killLimit, func(context.Context) error {
		left := 0
		for _, p := range processes() {
			if p.lab != dir {
				continue
			}
			left++
			seen[p.pid] = true
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d: %w", p.pid, err)
			}
		}
		if left > 0 {
			return fmt.Errorf("%d processes still end", left)
		}
		return nil
	})
	for pid := range seen {
		// Collects what this very process started; others' children are not ours.
		_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
	}
	return len(seen), err
}
