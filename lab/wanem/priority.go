package wanem

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
)

// niceness is well above that of the guests and compilers a lab shares its
// cores with, and leaves room for what must come first.
const niceness = -15

// RaisePriority puts every thread of the process, and with them all threads and
// child processes they start later, at a priority above ordinary processes, so
// that frames are read and delivered on time on a busy machine. It is for a
// process whose work is the emulator. Without the right to do so the error is
// of kind drover.Denied.
func RaisePriority() error {
	const op = "raise the emulator's priority"
	// A thread that starts during the first pass may have inherited the old
	// priority; one that starts during the second cannot.
	for range 2 {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return drover.E(drover.Internal, op, err)
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				return drover.E(drover.Internal, op, err)
			}
			err = unix.Setpriority(unix.PRIO_PROCESS, tid, niceness)
			if err != nil && !errors.Is(err, unix.ESRCH) { // ended meanwhile
				return drover.E(openKind(err), op, fmt.Errorf("thread %d: %w", tid, err))
			}
		}
	}
	return nil
}
