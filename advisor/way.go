package advisor

import (
	"math"

	"github.com/drover-vm/drover"
)

// way is what is known of the way between two sites.
type way struct {
	// rtt in milliseconds and rate are zero where not known, km and loss below
	// zero.
	rtt  float64
	rate drover.BitRate
	km   float64
	loss float64
	// bought says that round trip or rate are what the file says, and not
	// measured.
	bought bool
}

func wayOf(q *Question) way {
	w := way{km: Distance(q.From, q.To), loss: -1, rtt: q.Way.RTTMillis.Or(0)}
	w.rate = drover.BitRate(q.Way.CapacityBPS.Or(0))
	if q.Way.LossShare.Known() {
		w.loss = q.Way.LossShare.Value
	}
	if q.Link == nil {
		return w
	}
	if w.rtt <= 0 && q.Link.RTTMillis > 0 {
		w.rtt, w.bought = q.Link.RTTMillis, true
	}
	if w.rate <= 0 && q.Link.Rate > 0 {
		w.rate, w.bought = q.Link.Rate, true
	}
	return w
}

// earthRadiusKM is the mean radius that the IUGG recommends.
const earthRadiusKM = 6371.0088

// Distance is how far two sites are apart as the crow flies, in km, on a sphere
// (the haversine formula; within 0.6 % of the ellipsoid); negative where it is
// not known where one of them is.
func Distance(a, b drover.Site) float64 {
	known := func(s drover.Site) bool { return s.Latitude != 0 || s.Longitude != 0 }
	if a.Name == b.Name {
		return 0
	}
	if !known(a) || !known(b) {
		return -1
	}
	rad := func(deg float64) float64 { return deg * math.Pi / 180 }
	sin := func(deg float64) float64 { s := math.Sin(rad(deg) / 2); return s * s }
	h := sin(b.Latitude-a.Latitude) + math.Cos(rad(a.Latitude))*math.Cos(rad(b.Latitude))*sin(b.Longitude-a.Longitude)
	return 2 * earthRadiusKM * math.Asin(math.Sqrt(min(1, h)))
}
