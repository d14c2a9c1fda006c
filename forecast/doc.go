// Package forecast says what a move by each method will cost, as ranges: how
// long it takes, how long the guest stands still, what clients notice, how much
// crosses the link, and whether a live move converges at all.
//
// It works in two layers. The models (a file each: rounds and live, copy, clone,
// drain, notice) turn what is known of the VM, the hosts and the link into one
// answer per figure and a spread, from physics and from what QEMU and this
// program do. The calibration turns answer and spread into a range, by how far the
// same models were off in the moves this installation has made: split conformal
// prediction on normalised log ratios, behind a robust straight line (calibrate.go).
// Without a history the ranges are wide.
//
// The package keeps nothing, measures nothing and waits for nothing: signals,
// history and the time are arguments. No input, however wrong, leads to a
// figure that is negative, infinite or not a number. Sources of the models are
// named in docs/forecasting.md. Which method suits a VM is package advisor's to
// say.
package forecast
