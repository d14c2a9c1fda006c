package server

import (
	"time"

	"github.com/drover-vm/drover"
)

const (
	// replicaShare is what replicas may have of a link together, of a hundred:
	// they go on all day, beside everything else that the link is for.
	replicaShare = 25
	// replicaYield is what they have of that while a move crosses the link: their
	// rounds come to an end, and the move hardly notices.
	replicaYield = 10
	// leastReplicaRate is what a round gets however many share the link: below it
	// the frames' own overhead is most of what is sent.
	leastReplicaRate = 256 * drover.Kbps
	// roundSpare is the part of the RPO that is kept free for a round that takes
	// longer than the one before, roundRest the least time between two rounds, of
	// how long one takes: the VM's disk has other things to do.
	roundSpare = 10
	roundRest  = 4
)

// nextRound is when the next round is to begin, so that it is complete before the
// replica is older than it may be. A round sends what was written until it began,
// so during it the replica goes on ageing from the beginning of the one before.
func nextRound(p drover.Protection, ended time.Time) time.Time {
	if p.Point.IsZero() {
		return time.Time{} // at once
	}
	took := p.RoundTime()
	due := p.Point.Add(p.RPO() - p.RPO()/roundSpare - 2*took)
	if least := ended.Add(took / roundRest); due.Before(least) {
		return least
	}
	return due
}

// keepsUp says why rounds cannot be as young as they have to be; empty when they
// can.
func keepsUp(p drover.Protection) string {
	if took := p.RoundTime(); took > p.RPO()-p.RPO()/roundSpare {
		return "a round takes " + took.Round(100*time.Millisecond).String() + ": ask for a longer RPO, or give replicas a higher rate"
	}
	return ""
}

// allotment is what a round may send over a link of a rate (zero: not known), with
// n rounds under way there, and with or without moves; most is the protection's
// own limit. Zero is unlimited.
func allotment(link drover.BitRate, n int, moving bool, most drover.BitRate) drover.BitRate {
	share := link * replicaShare / 100
	if link > 0 {
		if moving {
			share = share * replicaYield / 100
		}
		share = max(share/drover.BitRate(max(n, 1)), leastReplicaRate)
	}
	if most > 0 && (share == 0 || most < share) {
		return most
	}
	return share
}
