package trial

import (
	"context"
	"os"
	"path/filepath"
	"regexp"

	"github.com/drover-vm/drover/lab"
)

// corruptLine is how an agent tells of a connection of the data path that it
// dropped because bytes were not what was sent: TLS found it, or a frame's own
// checksum.
var corruptLine = regexp.MustCompile(`(?m)^.*wan connection lost.*(bad record MAC|checksum does not match).*$`)

// CorruptConnections counts, over all hosts of the lab since it is up, the
// connections of the data path that were dropped because bytes were not what was
// sent. It is read from the agents' logs, since such a connection may end after
// its move's figures were taken.
func (l *Lab) CorruptConnections(ctx context.Context) (n int64, err error) {
	running, err := lab.Open(lab.Options{Exe: l.Bin}, l.Name)
	if err != nil {
		return 0, err
	}
	hosts, err := l.Hosts(ctx)
	if err != nil {
		return 0, err
	}
	for _, h := range hosts {
		node, err := running.Node(h.Name)
		if err != nil {
			return 0, err
		}
		raw, err := os.ReadFile(filepath.Join(node.Dir, "log", "agent.log"))
		if err != nil {
			return 0, err
		}
		n += int64(len(corruptLine.FindAll(raw, -1)))
	}
	return n, nil
}
