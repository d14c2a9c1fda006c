package executor

import (
	"context"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
)

// liveMethod is the live move.
//
//	reserve-target   destination   release
//	reserve-source   source        release
//	create-volumes   destination   delete-volumes
//	transfer         source        PIVOT: settled by abort-transfer
//	verify           destination   ─
//	release-source   source        ─
//	release          both          ─
//
// The point of no return lies inside transfer: it is where the destination's
// agent accepts the source's word that it has given the guest up. The two
// agents decide that between themselves, since between them lies one round
// trip and no third party could be asked in time. From outside, a transfer has
// three outcomes: it says that it has moved the VM (passed); it has ended
// otherwise or is to be canceled, and abort-transfer at the source then finds
// out definitely (passed, or not passed and never will); or nobody answers,
// and it is asked again, for as long as it takes: the VM runs wherever it runs,
// and neither undoing nor going on would be safe.
//
// Nothing before transfer touches the VM. Volumes are created before it
// because QEMU's disk mirror needs them to exist; reservations before volumes
// because a refused move should leave nothing to clean up.
func liveMethod() method {
	return method{id: "live/1", steps: []step{
		reserveTarget(),
		reserveSource(),
		createVolumes("the disk mirror needs images of the same size at the destination"),
		transfer(),
		verify(),
		releaseSource(),
		release(),
	}}
}

func transfer() step {
	return step{
		Step: saga.Step{
			Name:  "transfer",
			Why:   "memory, disks and the switchover in one, since only the two agents are near enough to decide it",
			Pivot: true,
		},
		do: func(s *state) []call {
			r := s.Request
			t := Transfer{
				PeerAddress: r.ToAddress, PeerHost: r.To.Host,
				Disks: r.Disks, Bandwidth: r.Bandwidth, MaxPause: r.MaxPause, NoThrottle: r.NoThrottle,
				SourceEdge: told(s.network().Source), TargetEdge: told(s.network().Target), Remote: s.Remote,
			}
			s.intoSegment(&t)
			return []call{{host: r.From.Host, action: t}}
		},
		note: func(s *state, _ int, r Result) error {
			if !r.Moved {
				return drover.Errorf(drover.Internal, "transfer", "it ended without an error, but the VM has not moved")
			}
			s.measured(r)
			return nil
		},
		settle: func(ctx context.Context, s *state, ask asker) (bool, error) {
			r := s.Request
			res, err := ask(ctx, call{host: r.From.Host, action: AbortTransfer{PeerAddress: r.ToAddress, PeerHost: r.To.Host}})
			if err != nil {
				return false, err
			}
			if res.Moved {
				s.measured(res)
			}
			return res.Moved, nil
		},
		lost: map[saga.Verb]string{
			saga.Settle: "neither side has the VM running or able to run; both sides' disks are kept",
		},
	}
}
