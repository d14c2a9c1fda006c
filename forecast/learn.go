package forecast

import (
	"slices"

	"github.com/drover-vm/drover"
)

const (
	// busyShare of the wire's rate is what a move that is held back by its host
	// stays below: only such a move tells how fast the host is.
	busyShare = 0.75
	// speedMoves are the newest moves per host that tell.
	speedMoves = 15
	// leastTold is how many bytes a move must have sent to tell.
	leastTold = 32 << 20
)

// speeds are the hosts' encoders' speeds in moves that have been made, in bytes of
// memory that was not zero, per second: the median of the newest.
func speeds(history []drover.Move) map[string]float64 {
	seen := map[string][]float64{}
	for _, h := range slices.Backward(history) {
		if h.State != drover.MoveDone || h.Measured.Path == nil || !staysUp(h.Method) || len(seen[h.From.Host]) >= speedMoves {
			continue
		}
		p := h.Measured.Path.Memory
		bytes := float64(p.GuestBytes - p.Kinds.Zero.GuestBytes)
		link := float64(h.Bandwidth)
		if h.Forecast != nil && h.Forecast.Points != nil {
			if l := h.Forecast.Points[pointLink]; l > 0 && (link == 0 || l < link) {
				link = l
			}
		}
		if link <= 0 || bytes < leastTold || p.Seconds <= 0 || p.CutSeconds > 0 || float64(p.WireRate()) > busyShare*link {
			continue
		}
		seen[h.From.Host] = append(seen[h.From.Host], bytes/p.Seconds)
	}
	m := map[string]float64{}
	for host, vs := range seen {
		m[host] = sane(median(vs))
	}
	return m
}

// pointLink is the rate of the link that a forecast was made with, beside the
// figures in its Points.
const pointLink = "link_bps"

func (m *Model) encode(in Input) float64 { return m.speed[in.From.Host] }
