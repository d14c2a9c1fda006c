package agent

import (
	"context"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// notEdge refuses what only a site's edge can do.
func (a *Agent) notEdge() error {
	return drover.Errorf(drover.Refused, "host "+a.config.Name, "it is no site's edge: its file has no edge")
}

// EdgeStatus implements AgentService.
func (a agentService) EdgeStatus(context.Context, *droverv1.EdgeStatusRequest) (*droverv1.EdgeStatusResponse, error) {
	return nil, a.notEdge()
}

// SetMesh implements AgentService.
func (a agentService) SetMesh(context.Context, *droverv1.SetMeshRequest) (*droverv1.SetMeshResponse, error) {
	return nil, a.notEdge()
}

// Owned implements AgentService.
func (a agentService) Owned(context.Context, *droverv1.OwnedRequest) (*droverv1.OwnedResponse, error) {
	return nil, a.notEdge()
}

// RemoveOwned implements AgentService.
func (a agentService) RemoveOwned(context.Context, *droverv1.RemoveOwnedRequest) (*droverv1.RemoveOwnedResponse, error) {
	return nil, a.notEdge()
}

// CutOver implements PeerService.
func (a peerService) CutOver(context.Context, *droverv1.CutOverRequest) (*droverv1.CutOverResponse, error) {
	return nil, a.notEdge()
}
