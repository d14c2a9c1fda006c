package forecast

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// facts are an Input's signals, each with how far it may be off, and with
// something usual in the place of what nobody knows.
type facts struct {
	in      Input
	taught  taught
	unknown []string
	sampled float64 // small, before moves have corrected it

	memory             guess // bytes
	zero, known, small guess // shares: zeros, of the rest known there, of the rest left by a compressor
	resent             guess // of a page that is sent again
	dirty              dirty
	dirtySpread        float64

	diskLeft              guess // what is left of a byte of them on the wire
	disk                  guess // bytes to copy
	diskKnown, diskSmall  guess
	diskWrite, diskUnique guess // bytes/s
	remote                guess // bytes/s of disks that stay behind

	link    guess // bits/s on the wire, for this move
	rtt     guess // seconds
	encode  guess // bytes/s of memory that is not zero
	traffic guess // bits/s to and from the guest
	opened  guess // sessions
	emulate bool  // the guest has no hardware acceleration
}

// What is assumed where nobody has measured. The spreads say that these are
// usual values and no more.
const (
	// Guests that have run for a while have a fifth to a half of zeros; page
	// caches fill the rest.
	usualZero, usualZeroSpread = 0.25, 0.35
	// Whole pages shared between unrelated VMs are below 15 % (Barker et al.,
	// ATC'12); page cache of a golden image is two thirds. Nobody knows which.
	usualKnown, usualKnownSpread = 0.10, 0.40
	// Fast compressors leave 0.42 to 0.45 of a VM image (zstd's tables).
	usualSmall, usualSmallSpread = 0.45, 0.35
	// Of pages that are sent again some have not changed, or a little, and cross as
	// their difference; the others are as new ones.
	changedShare, usualDelta, usualResentSpread = 0.90, 0.02, 0.35
	// Rate of a WAN that nobody has told of, bits per second.
	usualLink, usualLinkSpread = 100e6, 1.2
	// Inside a site, likewise.
	usualLAN, usualLANSpread = 1e9, 0.7
	// Round trips.
	usualRTT, usualRTTSpread       = 30e-3, 1.0
	usualLANRTT, usualLANRTTSpread = 0.3e-3, 0.7
	// laneBytes is what a core makes ready for the link in a second: a cheap
	// level of zstd, BLAKE3 and AES.
	laneBytes, usualEncodeSpread = 130e6, 0.5
	mostLanes                    = 4
	// emulatedShare is what an emulated guest leaves of that: its own processor
	// is the same.
	emulatedShare = 0.6
	usualMemory   = 4 * float64(drover.GiB)
	usualDisk     = 8 * float64(drover.GiB)
	// What a link carries of data is less than its rate by headers and by what
	// congestion control leaves; see Payload.
	linkFill = 0.95
	// lossCost is by how many times the loss the filling falls: 1 % costs 5 %.
	lossCost = 5
	// ageDoubt is the spread that a reading gains when its age is tenfold: from an
	// hour to ten, from ten to a hundred.
	ageDoubt = 0.08
)

// freshFor is how long a reading is as good as new.
const freshFor = 10 * time.Minute

func newFacts(in Input, t taught) *facts {
	f := &facts{in: in, taught: t}
	f.emulate = in.VM.Accelerator == "tcg"
	f.ofMemory()
	f.ofDisks()
	f.ofLink()
	f.ofSender(t)
	s := in.Signals
	rx, tx := f.take(s.NetworkRxBPS, 0, 0, ""), f.take(s.NetworkTxBPS, 0, 0, "")
	f.traffic = guess{rx.value + tx.value, with(0.3, rx.spread, tx.spread)}
	if !s.NetworkRxBPS.Known() || !s.NetworkTxBPS.Known() {
		f.miss("the VM's traffic")
		f.traffic = guess{max(f.traffic.value, 1e6), 1.5}
	}
	f.opened = f.take(s.Sessions, 1, 1.2, "the VM's open sessions")
	return f
}

// miss notes what nobody knows.
func (f *facts) miss(what string) {
	if what != "" {
		f.unknown = append(f.unknown, what)
	}
}

// take is a reading, wider the older it is, or what is usual.
func (f *facts) take(r drover.Reading, usual, spread float64, what string) guess {
	if !r.Known() {
		f.miss(what)
		return guess{usual, spread}
	}
	doubt := 0.0
	if age := r.Age(f.in.Now); age > freshFor {
		doubt = ageDoubt * math.Log10(float64(age)/float64(freshFor))
	}
	if !r.Observed && r.Samples > 0 {
		// A sample of pages is off by what a binomial one of its size is.
		doubt = with(doubt, 0.5/math.Sqrt(float64(r.Samples)))
	}
	return guess{sane(r.Value), min(doubt, mostSpread)}
}

func (f *facts) ofMemory() {
	s, now := f.in.Signals, usualMemory
	spread := 0.7
	if b := float64(f.in.VM.MemoryBytes); b > 0 {
		now, spread = b, 0
	}
	what := ""
	if spread > 0 {
		what = "how much memory the VM has"
	}
	f.memory = f.take(s.MemoryBytes, now, spread, what)
	if f.memory.value < 1<<20 { // a balloon's nonsense
		f.memory = guess{now, spread}
	}
	f.zero = f.take(s.ZeroShare, usualZero, usualZeroSpread, "how much of the memory is zeros")
	if used := s.MemoryUsedBytes; !s.ZeroShare.Known() && used.Known() {
		// What is not used is zeros or cache; nobody can tell, but the used part
		// is a floor.
		f.zero.value = min(f.zero.value, share(1-over(used.Value, f.memory.value)))
	}
	f.known = f.take(s.KnownShare[f.in.To.Site], usualKnown, usualKnownSpread, "how much of the memory's content is at the destination")
	f.packing()
	f.resent = guess{changedShare*f.rewritten() + usualDelta, with(usualResentSpread, f.small.spread)}
	for _, g := range []*guess{&f.zero, &f.known, &f.small, &f.resent} {
		g.value = share(g.value)
	}
	f.small.value, f.resent.value = max(f.small.value, leastShare), max(f.resent.value, leastShare)
	f.dirty, f.dirtySpread = newDirty(s, f.memory.value, f.in.Now)
	if f.dirtySpread >= usualDirtySpread {
		f.miss("how fast the guest writes to its memory")
	}
}

// packing is what a compressor leaves of the pages that the destination does not
// have. Those that the VM's own host does not have either are of one kind, those that
// it has of another; what moves have shown corrects what samples say.
func (f *facts) packing() {
	s := f.in.Signals
	f.small = f.take(s.CompressedShare, usualSmall, usualSmallSpread, "how well the memory compresses")
	if s.KnownHereShare.Known() && s.KnownHereCompressedShare.Known() {
		here, rest := share(s.KnownHereShare.Value), 1-share(f.known.value)
		own := min(1-here, rest)
		if rest > 0 {
			f.small.value = (own*share(f.small.value) + (rest-own)*share(s.KnownHereCompressedShare.Value)) / rest
		}
	}
	f.sampled = f.small.value
	if f.taught.packedAll > 0 {
		f.small.value *= f.taught.packedAll
	}
	if told := f.taught.packed[f.in.VM.UUID]; len(told) > 0 {
		left := make([]float64, len(told))
		for i, t := range told {
			left[i] = t.left
			if t.sampled > 0 && f.sampled > 0 {
				left[i] *= math.Pow(f.sampled/t.sampled, sampleTrust)
			}
		}
		f.small.value = math.Exp(drawn(logs(left), math.Log(max(f.small.value, leastShare)), priorMoves))
	}
	f.small.value = min(1, f.small.value)
}

// sampleTrust is how far what moves have shown of a VM follows what samples say since:
// they are of other pages, and of few of them.
const sampleTrust = 1.0 / 3

// rewritten is what a compressor leaves of pages that the guest writes: they are of
// the kind that nobody has.
func (f *facts) rewritten() float64 {
	own := f.in.Signals.CompressedShare
	if !own.Known() || f.sampled <= 0 {
		return f.small.value
	}
	return min(1, share(own.Value)*f.small.value/f.sampled)
}

// leastShare is what is left of a page at best: its name.
const leastShare = 0.004

func (f *facts) ofDisks() {
	s := f.in.Signals
	var own, virtual float64
	behind := false
	for _, d := range f.in.VM.Disks {
		if d.Shared {
			behind = true
			continue
		}
		own += sane(float64(d.AllocatedBytes))
		virtual += sane(float64(d.VirtualBytes))
	}
	switch {
	case f.in.Terms.CopyBytes != nil:
		f.disk = guess{sane(float64(*f.in.Terms.CopyBytes)), 0.1}
	case s.DiskAllocatedBytes.Known():
		f.disk = f.take(s.DiskAllocatedBytes, 0, 0, "")
	case own > 0 || virtual == 0 && f.in.VM.Name != "":
		f.disk = guess{own, 0.2}
	default:
		f.miss("how much the disks have allocated")
		f.disk = guess{min(max(virtual/4, 64<<20), usualDisk), 1}
	}
	f.diskKnown = f.take(s.DiskKnownShare[f.in.To.Site], 0, 0.3, "")
	f.diskSmall = f.take(s.DiskCompressedShare, usualSmall, usualSmallSpread, "")
	f.diskKnown.value, f.diskSmall.value = share(f.diskKnown.value), max(share(f.diskSmall.value), leastShare)
	f.diskLeft = f.leftOfDisks()
	f.diskWrite = f.take(s.DiskWriteBytesPerSecond, 200e3, 1, "how much the VM writes to its disks")
	f.diskUnique = f.take(s.DiskDistinctBytesPerSecond, f.diskWrite.value/2, with(0.7, f.diskWrite.spread), "")
	if behind {
		read := f.take(s.DiskReadBytesPerSecond, 500e3, 1.5, "how much the VM reads from its disks")
		f.remote = guess{read.value + f.diskWrite.value, with(read.spread, f.diskWrite.spread)}
	}
}

// leftOfDisks is what moves have shown of disks, of those that go back to where they
// were known last, and of others; it begins with what is known of these.
func (f *facts) leftOfDisks() guess {
	left := guess{f.diskKnown.value*pageName + (1-f.diskKnown.value)*f.diskSmall.value, with(f.diskSmall.spread, f.diskKnown.spread)}
	told := f.taught.fresh
	if uuid := f.in.VM.UUID; uuid != "" && !f.in.Inside() {
		told = *f.taught.ofDisks(uuid, f.in.To.Site)
		if f.taught.cameFrom[uuid] == f.in.To.Site {
			left.value = min(left.value, keptLeft)
		}
	}
	if len(told) > 0 {
		left.value = drawn(slices.Clone(told), left.value, priorMoves)
	}
	return left
}

// keptLeft is what is left of a byte of a disk that goes back to where it was: what
// was written since.
const keptLeft = 0.1

func (f *facts) ofLink() {
	l := f.in.Link
	rate, rateSpread, rtt, rttSpread := usualLink, usualLinkSpread, usualRTT, usualRTTSpread
	where := fmt.Sprintf("from %s to %s", f.in.From.Site, f.in.To.Site)
	if f.in.Inside() {
		rate, rateSpread, rtt, rttSpread = usualLAN, usualLANSpread, usualLANRTT, usualLANRTTSpread
		where = "inside " + f.in.From.Site
	}
	f.link = f.take(l.CapacityBPS, rate, rateSpread, "")
	switch {
	case l.FreeBPS.Known():
		f.link = f.take(l.FreeBPS, 0, 0, "")
		if l.CapacityBPS.Known() {
			f.link.value = min(f.link.value, sane(l.CapacityBPS.Value))
		}
	case !l.CapacityBPS.Known():
		f.miss("the link's rate " + where)
	default:
		f.link.spread = with(f.link.spread, 0.1) // others may use it
	}
	loss := share(f.take(l.LossShare, 0, 0, "").value)
	f.link.value *= linkFill * max(0.3, 1-lossCost*loss)
	if b := float64(f.in.Terms.Bandwidth); b > 0 && b < f.link.value {
		f.link = guess{b, min(f.link.spread, 0.05)}
	}
	f.link.value = max(f.link.value, 8) // a link of nothing carries nothing: forever, and no division by zero
	r := f.take(l.RTTMillis, rtt*1e3, rttSpread, "the link's round trip "+where)
	f.rtt = guess{min(r.value/1e3, 3600), r.spread}
}

// ofSender is how fast the source's host makes memory ready: as its agent has seen
// it, as earlier moves have shown, or by its processors.
func (f *facts) ofSender(t taught) {
	learned, known := t.speed[f.in.From.Host]
	if !known {
		learned = t.speedAll // hosts of an installation are alike
	}
	lanes := min(max(f.in.Source.CPUs, 1), mostLanes)
	usual, spread := laneBytes*float64(lanes), usualEncodeSpread
	if f.emulate {
		usual *= emulatedShare
	}
	if free := f.in.Sender.CPUFreeShare; free.Known() {
		usual *= max(0.2, min(1, 0.5+share(free.Value)))
	}
	if learned > 0 {
		usual, spread = learned, 0.15
	}
	f.encode = f.take(f.in.Sender.EncodeBytesPerSecond, usual, spread, "")
	if learned > 0 && learned < f.encode.value {
		// Processor time says what the encoder could do alone; moves say what is left
		// of it beside both hypervisors and the guest itself.
		f.encode = guess{learned, 0.3}
	}
	f.encode.value = max(f.encode.value, 1e5)
}
