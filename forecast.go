package drover

import "time"

// Range is a figure as it is expected: below P10 in one case of ten, above P90
// in one of ten, and as often below as above P50.
type Range struct {
	P10 float64 `json:"p10"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
}

// Contains reports whether a measured value is inside the range.
func (r Range) Contains(v float64) bool { return v >= r.P10 && v <= r.P90 }

// Forecast is what a move is expected to cost. Its figures have the names and
// units of Figures; one that is nil could not be said, which is not zero.
type Forecast struct {
	Method Method `json:"method"`
	// At is when it was made.
	At           time.Time `json:"at,omitzero"`
	TotalSeconds *Range    `json:"total_s,omitempty"`
	PauseMillis  *Range    `json:"pause_ms,omitempty"`
	OutageMillis *Range    `json:"outage_ms,omitempty"`
	WireBytes    *Range    `json:"wire_bytes,omitempty"`
	GuestBytes   *Range    `json:"guest_bytes,omitempty"`
	SessionsLost *Range    `json:"sessions_lost,omitempty"`
	ExtraRTT     *Range    `json:"extra_rtt_ms,omitempty"`
	HairpinBPS   *Range    `json:"hairpin_bps,omitempty"`
	RemoteIOBPS  *Range    `json:"remote_io_bps,omitempty"`
	Cost         *Range    `json:"cost,omitempty"`
	// Convergence is nil for methods that need none.
	Convergence *Convergence `json:"convergence,omitempty"`
	// Calibrated is how many earlier moves the ranges rest on; zero are the
	// built-in ones, which are wide.
	Calibrated int `json:"calibrated"`
	// Unknown are the inputs that nobody has measured and that were assumed, in
	// plain words: why the ranges are as wide as they are.
	Unknown []string `json:"unknown,omitempty"`
	// Points are the models' own answers before calibration, by the figure's
	// name, and Spreads how far they believe to be off (the standard deviation of
	// the logarithm): what later moves' ranges are calibrated by.
	Points  map[string]float64 `json:"points,omitempty"`
	Spreads map[string]float64 `json:"spreads,omitempty"`
}

// Figure is a figure of a Forecast or of Figures with its JSON name.
type Figure[T any] struct {
	Name  string
	Value *T
}

// Each returns the figures, those not known included, in the order of their
// importance.
func (f Forecast) Each() []Figure[Range] {
	return []Figure[Range]{
		{"total_s", f.TotalSeconds},
		{"pause_ms", f.PauseMillis},
		{"outage_ms", f.OutageMillis},
		{"wire_bytes", f.WireBytes},
		{"guest_bytes", f.GuestBytes},
		{"sessions_lost", f.SessionsLost},
		{"extra_rtt_ms", f.ExtraRTT},
		{"hairpin_bps", f.HairpinBPS},
		{"remote_io_bps", f.RemoteIOBPS},
		{"cost", f.Cost},
	}
}

// Each returns the figures that a forecast has too, in the same order.
func (f Figures) Each() []Figure[float64] {
	return []Figure[float64]{
		{"total_s", f.TotalSeconds},
		{"pause_ms", f.PauseMillis},
		{"outage_ms", f.OutageMillis},
		{"wire_bytes", asFloat(f.WireBytes)},
		{"guest_bytes", asFloat(f.GuestBytes)},
		{"sessions_lost", asFloat(f.SessionsLost)},
		{"extra_rtt_ms", f.ExtraRTT},
		{"hairpin_bps", asFloat(f.HairpinBPS)},
		{"remote_io_bps", asFloat(f.RemoteIOBPS)},
		{"cost", f.Cost},
	}
}

func asFloat(v *int64) *float64 {
	if v == nil {
		return nil
	}
	f := float64(*v)
	return &f
}

// Convergence says whether a live move's rounds are expected to become small
// enough to pause the guest for the rest.
type Convergence struct {
	// Will is the verdict, Probability what it rests on, between 0 and 1.
	Will        bool    `json:"will"`
	Probability float64 `json:"probability"`
	// DirtyBytesPerSecond is what the guest writes anew while a round is sent,
	// CarryBytesPerSecond what the link and the hosts carry of it after
	// reduction; both in the guest's bytes.
	DirtyBytesPerSecond float64 `json:"dirty_bytes_per_s"`
	CarryBytesPerSecond float64 `json:"carry_bytes_per_s"`
	// Remedies are what would make it converge, the mildest first; empty when
	// it will anyhow.
	Remedies []Remedy `json:"remedies,omitempty"`
}

// RemedyKind is a way to make a live move converge.
type RemedyKind string

// The remedies.
const (
	RemedyQuietHour RemedyKind = "quiet-hour" // wait until the link is emptier
	RemedyBandwidth RemedyKind = "bandwidth"  // give the move more of the link
	RemedyPause     RemedyKind = "pause"      // accept a longer pause
	RemedyThrottle  RemedyKind = "throttle"   // hold the guest's processors back
	RemedyPostCopy  RemedyKind = "post-copy"  // fetch the rest after the switchover
)

// Remedy is one thing that would make a live move converge. Of its figures
// those of its kind are set.
type Remedy struct {
	Kind RemedyKind `json:"kind"`
	// Rate is how much more bandwidth is needed, in bits per second.
	Rate BitRate `json:"more_bps,omitempty"`
	// PauseMillis is how long a pause would do.
	PauseMillis float64 `json:"pause_ms,omitempty"`
	// ThrottlePercent is how far the guest's processors have to be held back.
	ThrottlePercent int `json:"throttle_percent,omitempty"`
	// Hour is the hour of the week, see HourOfWeek; negative for other kinds.
	Hour int `json:"hour"`
	// Detail says it in plain words.
	Detail string `json:"detail"`
}

// Accuracy is how well the forecasts of one method and figure have come true.
type Accuracy struct {
	// Method is empty for all methods together.
	Method Method `json:"method,omitempty"`
	Figure string `json:"figure"`
	// From and Until bound the ends of the moves that are counted.
	From  time.Time `json:"from,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Moves is how many had both a forecast and a measurement.
	Moves int `json:"n"`
	// Bias is the median of (P50 − truth) ÷ truth: positive when too much was
	// foreseen.
	Bias float64 `json:"bias"`
	// MedianError and P90Error are of |P50 − truth| ÷ truth.
	MedianError float64 `json:"median_error"`
	P90Error    float64 `json:"p90_error"`
	// Coverage is the share of the truths inside P10 to P90; 0.8 is right.
	Coverage float64 `json:"coverage"`
}
