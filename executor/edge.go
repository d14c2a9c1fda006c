package executor

import (
	"net/netip"

	"github.com/drover-vm/drover"
)

// EdgeAgent is the agent of a site's edge, as the hosts of its site reach it. The
// zero value is none.
type EdgeAgent struct {
	Host    string `json:"host,omitempty"`
	Address string `json:"address,omitempty"` // "ip:port"
}

// Edge has a site's edge carry out operations, in their order. On an error those
// before it have been carried out. Its Result has Addresses and Gateways where
// a lease was reserved.
type Edge struct {
	Ops []drover.EdgeOp
	// Undo first ends every other action of the move on this edge, as the
	// actions that take back do.
	Undo bool
}

// StageEdge checks operations as far as can be done without carrying them out,
// and keeps them for the move's cut-over, which the site's own hosts call out.
// They replace those staged before; without any, nothing is staged any more. By
// is the host that may call them out; empty: any agent. What was staged goes
// with the cut-over, an Edge with Undo, or Release.
type StageEdge struct {
	Ops []drover.EdgeOp
	By  string
}

// CountSessions counts the sessions that are open: of addresses that the edge
// watches, or of a load balancer's server. Its Result says Sessions.
type CountSessions struct {
	Addresses       []netip.Addr
	Backend, Server string
}

func (Edge) isAction()          {}
func (StageEdge) isAction()     {}
func (CountSessions) isAction() {}
