package server

import (
	"context"
	"fmt"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
)

// agents is how the executor's steps reach the hosts: the API's client.
type agents struct{ fleet *fleet }

var _ executor.Agents = agents{}

// Run implements executor.Agents.
func (g agents) Run(ctx context.Context, host string, ref executor.Ref, step string, action executor.Action, progress func(drover.Progress)) (executor.Result, error) {
	a, err := g.fleet.agent(host)
	if err != nil {
		return executor.Result{}, err
	}
	req := &droverv1.RunRequest{Ref: refToProto(ref), Step: step}
	if err := setAction(req, action); err != nil {
		return executor.Result{}, err
	}
	// The stream is freed with its context.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.client.Run(ctx, req)
	if err != nil {
		return executor.Result{}, broken(err)
	}
	defer stream.Close()
	for stream.Receive() {
		m := stream.Msg()
		if r := m.GetResult(); r != nil {
			return resultFromProto(r)
		}
		if p := m.GetProgress(); p != nil && progress != nil {
			progress(api.ProgressFromProto(p))
		}
	}
	if err := stream.Err(); err != nil {
		return executor.Result{}, broken(err)
	}
	return executor.Result{}, executor.CallCut(drover.Errorf(drover.Unavailable, step+" on "+host, "the agent ended the stream without a result"))
}

// broken tells a call that broke from an action that failed.
func broken(err error) error {
	if api.Unanswered(err) {
		return executor.CallCut(err)
	}
	return err
}

// Cancel implements executor.Agents.
func (g agents) Cancel(ctx context.Context, host string, ref executor.Ref, step string) error {
	a, err := g.fleet.agent(host)
	if err != nil {
		return err
	}
	_, err = a.client.Cancel(ctx, &droverv1.CancelRequest{Ref: refToProto(ref), Step: step})
	return err
}

// SetRate implements executor.Agents.
func (g agents) SetRate(ctx context.Context, host string, ref executor.Ref, rate drover.BitRate) error {
	a, err := g.fleet.agent(host)
	if err != nil {
		return err
	}
	_, err = a.client.SetRate(ctx, &droverv1.SetRateRequest{Ref: refToProto(ref), BandwidthBps: int64(rate)})
	return err
}

func refToProto(r executor.Ref) *droverv1.MoveRef {
	return &droverv1.MoveRef{Move: r.Move, Generation: r.Generation, Vm: r.VM, VmUuid: r.VMUUID}
}

// setAction fills the request's action.
func setAction(req *droverv1.RunRequest, action executor.Action) error {
	switch v := action.(type) {
	case executor.Reserve:
		req.Action = &droverv1.RunRequest_Reserve{Reserve: &droverv1.Reserve{
			Target: v.Target, MemoryBytes: int64(v.MemoryBytes), DisksOnly: v.DisksOnly, Replica: v.Replica, Keeps: v.Keeps,
		}}
	case executor.Release:
		req.Action = &droverv1.RunRequest_Release{Release: &droverv1.Release{Target: v.Target}}
	case executor.CreateVolumes:
		req.Action = &droverv1.RunRequest_CreateVolumes{CreateVolumes: &droverv1.CreateVolumes{Disks: plansToProto(v.Disks), Replica: v.Replica}}
	case executor.DeleteVolumes:
		req.Action = &droverv1.RunRequest_DeleteVolumes{DeleteVolumes: &droverv1.DeleteVolumes{}}
	case executor.Transfer:
		req.Action = &droverv1.RunRequest_Transfer{Transfer: &droverv1.Transfer{
			PeerAddress: v.PeerAddress, PeerHost: v.PeerHost, Disks: plansToProto(v.Disks),
			BandwidthBps: int64(v.Bandwidth), MaxPauseMillis: v.MaxPause.Milliseconds(),
			NoThrottle: v.NoThrottle, SourceEdge: edgeToProto(v.SourceEdge), TargetEdge: edgeToProto(v.TargetEdge),
			Retarget: retargetToProto(v.Retarget), Guest: guestToProto(v.Guest), Remote: remoteToProto(v.Remote),
		}}
	case executor.AbortTransfer:
		req.Action = &droverv1.RunRequest_AbortTransfer{AbortTransfer: &droverv1.AbortTransfer{PeerAddress: v.PeerAddress, PeerHost: v.PeerHost}}
	case executor.Shutdown:
		req.Action = &droverv1.RunRequest_Shutdown{Shutdown: &droverv1.Shutdown{GraceMillis: v.Grace.Milliseconds(), Force: v.Force}}
	case executor.GiveUp:
		req.Action = &droverv1.RunRequest_GiveUp{GiveUp: &droverv1.GiveUp{}}
	case executor.TakeBack:
		req.Action = &droverv1.RunRequest_TakeBack{TakeBack: &droverv1.TakeBack{Start: v.Start}}
	case executor.Copy:
		req.Action = &droverv1.RunRequest_Copy{Copy: &droverv1.Copy{
			PeerAddress: v.PeerAddress, PeerHost: v.PeerHost, Disks: plansToProto(v.Disks), BandwidthBps: int64(v.Bandwidth), Changes: v.Changes,
		}}
	case executor.Replicate:
		req.Action = &droverv1.RunRequest_Replicate{Replicate: &droverv1.Replicate{
			PeerAddress: v.PeerAddress, PeerHost: v.PeerHost, Disks: plansToProto(v.Disks), BandwidthBps: int64(v.Bandwidth),
			MaxDowntimeMillis: v.MaxDowntime.Milliseconds(), Once: v.Once,
		}}
	case executor.StopReplication:
		req.Action = &droverv1.RunRequest_StopReplication{StopReplication: &droverv1.StopReplication{}}
	case executor.StopVM:
		req.Action = &droverv1.RunRequest_StopVm{StopVm: &droverv1.StopVM{}}
	case executor.CheckHealth:
		req.Action = &droverv1.RunRequest_CheckHealth{CheckHealth: &droverv1.CheckHealth{
			Kind: string(v.Kind), Target: v.Target, LimitMillis: v.Limit.Milliseconds(),
		}}
	case executor.Commit:
		req.Action = &droverv1.RunRequest_Commit{Commit: &droverv1.Commit{}}
	case executor.AbortCommit:
		req.Action = &droverv1.RunRequest_AbortCommit{AbortCommit: &droverv1.AbortCommit{}}
	case executor.Define:
		req.Action = &droverv1.RunRequest_Define{Define: &droverv1.Define{Definition: v.Definition}}
	case executor.Undefine:
		req.Action = &droverv1.RunRequest_Undefine{Undefine: &droverv1.Undefine{}}
	case executor.StartVM:
		req.Action = &droverv1.RunRequest_Start{Start: &droverv1.StartVM{TargetEdge: edgeToProto(v.TargetEdge)}}
	case executor.Verify:
		req.Action = &droverv1.RunRequest_Verify{Verify: &droverv1.Verify{Running: v.Running}}
	case executor.ReleaseSource:
		req.Action = &droverv1.RunRequest_ReleaseSource{ReleaseSource: &droverv1.ReleaseSource{
			KeepVolumes: v.KeepVolumes, Disks: plansToProto(v.Disks),
		}}
	case executor.Edge:
		req.Action = &droverv1.RunRequest_Edge{Edge: &droverv1.Edge{Ops: api.ListToProto(v.Ops, api.EdgeOpToProto), Undo: v.Undo}}
	case executor.StageEdge:
		req.Action = &droverv1.RunRequest_StageEdge{StageEdge: &droverv1.StageEdge{Ops: api.ListToProto(v.Ops, api.EdgeOpToProto), By: v.By}}
	case executor.ChangeGuest:
		req.Action = &droverv1.RunRequest_ChangeGuest{ChangeGuest: &droverv1.ChangeGuest{Change: guestToProto(&v.GuestChange), Undo: v.Undo}}
	case executor.FindStation:
		req.Action = &droverv1.RunRequest_FindStation{FindStation: &droverv1.FindStation{
			Segment: v.Segment, Mac: v.MAC, Addresses: api.AddressesToProto(v.Addresses), WaitMillis: v.Wait.Milliseconds(),
		}}
	case executor.CountSessions:
		req.Action = &droverv1.RunRequest_CountSessions{CountSessions: &droverv1.CountSessions{
			Addresses: api.AddressesToProto(v.Addresses), Backend: v.Backend, Server: v.Server,
		}}
	default:
		if cloneActions(req, action) || diskActions(req, action) {
			return nil
		}
		return drover.Errorf(drover.Internal, "run action", "%s", fmt.Sprintf("the API has no action for %T", action))
	}
	return nil
}

func plansToProto(in []executor.DiskPlan) []*droverv1.DiskPlan {
	out := make([]*droverv1.DiskPlan, len(in))
	for i, d := range in {
		out[i] = &droverv1.DiskPlan{
			Target: d.Target, Path: d.Path, Format: d.Format, VirtualBytes: int64(d.VirtualBytes),
			BackingPath: d.BackingPath, BackingFormat: d.BackingFormat, TopOnly: d.TopOnly,
			AllocatedBytes: int64(d.AllocatedBytes), Fresh: d.Fresh,
		}
	}
	return out
}

// retargetToProto and guestToProto are nil for nil.
func retargetToProto(r *executor.Retarget) *droverv1.Retarget {
	if r == nil {
		return nil
	}
	p := &droverv1.Retarget{Mac: r.MAC, Network: r.Network}
	if r.Probe != nil {
		p.Probe = api.ProbeTargetToProto(*r.Probe)
	}
	return p
}

func guestToProto(c *executor.GuestChange) *droverv1.GuestChange {
	if c == nil {
		return nil
	}
	return &droverv1.GuestChange{
		Mac: c.MAC, Add: api.PrefixesToProto(c.Add), Gateways: api.AddressesToProto(c.Gateways), Primary: c.Primary,
		Drop: api.AddressesToProto(c.Drop), Ask: c.Ask,
	}
}

// edgeToProto is nil for none.
func edgeToProto(e executor.EdgeAgent) *droverv1.EdgeAgent {
	if e == (executor.EdgeAgent{}) {
		return nil
	}
	return &droverv1.EdgeAgent{Host: e.Host, Address: e.Address}
}

// resultFromProto converts a result. Addresses that cannot be read make it an
// error: a VM would get none, or others than are reserved for it.
func resultFromProto(r *droverv1.RunResult) (executor.Result, error) {
	addresses, err := api.ParsePrefixes("addresses", r.GetAddresses())
	if err != nil {
		return executor.Result{}, err
	}
	gateways, err := api.ParseAddresses("gateways", r.GetGateways())
	return executor.Result{
		RemoteDisks: remoteFromProto(r.GetRemoteDisks()),
		Addresses:   addresses, Gateways: gateways, Sessions: int(r.GetSessions()),
		Moved: r.GetMoved(), Healthy: r.GetHealthy(), Detail: r.GetDetail(), WasRunning: r.GetWasRunning(), Definition: r.GetDefinition(),
		Pause:       time.Duration(r.GetPauseNanos()),
		MemoryBytes: drover.Bytes(r.GetMemoryBytes()), DiskBytes: drover.Bytes(r.GetDiskBytes()),
		PathWireBytes: drover.Bytes(r.GetPathWireBytes()), Path: api.OptionalPathFromProto(r.GetPath()),
		Point:   instant(r.GetPointUnixNanos()),
		Stopped: instant(r.GetStoppedUnixNanos()), Resumed: instant(r.GetResumedUnixNanos()),
	}, err
}

func instant(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos).UTC()
}
