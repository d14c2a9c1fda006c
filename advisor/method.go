package advisor

import (
	"slices"

	"github.com/drover-vm/drover"
)

// nature is what a method does to a VM, whoever the VM is.
type nature struct {
	// does says it in a few words.
	does string
	// sessions, address, mac and memory say what is kept.
	sessions, address, mac, memory kept
	// running: it moves a VM that runs; another has nothing to keep running.
	running bool
}

// kept is whether something is kept.
type kept int

const (
	lost kept = iota
	keeps
	// drains: sessions are left to end by themselves.
	drains
	// ifJoined: where source and destination are one layer 2 network.
	ifJoined
	// byService: clients who come by way of a load balancer do not notice.
	byService
)

func natureOf(m drover.Method) nature {
	switch m {
	case drover.Spawn:
		return nature{does: "a new VM is made of the template; this one stays as it is"}
	case drover.Redirect:
		return nature{does: "a second VM takes the new sessions, this one drains and stops", sessions: drains, address: byService, running: true}
	case drover.Cold:
		return nature{does: "it is shut down, copied and started", address: ifJoined, mac: keeps}
	case drover.Warm:
		return nature{does: "its disks are copied while it runs, then it is shut down and started anew", address: ifJoined, mac: keeps, running: true}
	case drover.Renumber:
		return nature{
			does: "it moves while it runs and gets a new address; old sessions go on through a tunnel", sessions: keeps,
			mac: keeps, memory: keeps, running: true,
		}
	case drover.Live:
		return nature{does: "it moves while it runs, inside its segment", sessions: keeps, address: keeps, mac: keeps, memory: keeps, running: true}
	case drover.Route:
		return nature{
			does: "it moves while it runs, and its address follows as a host route", sessions: keeps, address: keeps,
			mac: keeps, memory: keeps, running: true,
		}
	default: // Stretch
		return nature{
			does: "it moves while it runs, and its segment is extended to the other site", sessions: keeps, address: keeps,
			mac: keeps, memory: keeps, running: true,
		}
	}
}

func keepsMemory(m drover.Method) bool {
	return slices.Contains([]drover.Method{drover.Live, drover.Route, drover.Renumber, drover.Stretch}, m)
}
