package executor

// stretchMethod is the live move into another site's part of the segment, which
// is extended there.
//
//	reserve-target   destination     release
//	reserve-source   source          release
//	create-volumes   destination     delete-volumes
//	plan-network     (here)          release, at edges
//	extend-segment   edges           retract, or as before
//	set-stations     edges           set-stations, as before
//	stage-cut-over   two edges       stage nothing
//	transfer         source          PIVOT: settled by abort-transfer
//	cut-over         two edges       ─
//	settle           other edges     ─
//	verify           destination     ─
//	retract          edges           ─
//	release-source   source          ─
//	release          all             ─
//
// Hosts come before edges, since a host refuses more often (memory, names,
// space) and undoing an extension is seen by neighbours, if only as a tunnel that
// comes and goes. Extending before the transfer costs nobody anything: the
// guest is at the source, and frames to it stay there. Its station has a Next
// there, so the tunnel takes over with the first frame that the guest sends at
// the destination, before anybody was told.
//
// The extension stays for as long as the VM is away from the segment's home. It
// is retracted, for this owner, by the move that brings it home or makes it
// routed; and that only after verify, since through it the VM is reached.
func stretchMethod() method {
	return method{id: "stretch/1", steps: []step{
		reserveTarget(),
		reserveSource(),
		createVolumes("the disk mirror needs images of the same size at the destination"),
		planNetwork(),
		extend("extend-segment", "before the guest moves, since tunnels take a moment to open; it is at the source, and so are frames to it"),
		setStations(),
		stageCutOver(),
		transfer(),
		cutOver(),
		settleEdges(),
		verify(),
		retract("only when the VM is known to be there: what goes now is the way to where it was"),
		releaseSource(),
		releaseAll(),
	}}
}
