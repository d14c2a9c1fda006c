package executor

// routeMethod is the live move whose addresses follow as host routes.
//
//	reserve-target   destination     release
//	reserve-source   source          release
//	create-volumes   destination     delete-volumes
//	plan-network     (here)          release, at edges
//	prepare-edge     destination's   forget
//	stage-cut-over   two edges       stage nothing
//	transfer         source          PIVOT: settled by abort-transfer
//	cut-over         two edges       ─
//	settle           other edges     ─
//	verify           destination     ─
//	retract          edges           ─
//	release-source   source          ─
//	release          all             ─
//
// Nothing is announced before the guest runs at the destination: a host route
// wins over the segment's own from the moment it is heard of. So the outage is
// the pause and what routers take to hear of it, and the announcement is made by
// the destination's edge on the word of the host beside it. Withdrawing comes
// after announcing wherever both are due, half a round trip later at the other
// site: for that time routers have two ways, of which the shorter wins.
func routeMethod() method {
	return method{id: "route/1", steps: []step{
		reserveTarget(),
		reserveSource(),
		createVolumes("the disk mirror needs images of the same size at the destination"),
		planNetwork(),
		extend("prepare-edge", "the guest's neighbours are answered for before it is there, or its first words to them would be lost"),
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
