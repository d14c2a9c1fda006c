package wan

import "sync/atomic"

// flag says that a sender waits for verification, and whether a sign of life
// came since it was last asked.
type flag struct {
	atomic.Bool
	alive atomic.Bool
}

func (f *flag) beat()          { f.alive.Store(true) }
func (f *flag) takeBeat() bool { return f.alive.Swap(false) }
