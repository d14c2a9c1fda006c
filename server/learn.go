package server

import (
	"context"
	"maps"
	"time"

	"github.com/drover-vm/drover"
)

// How much of a move has to have crossed for it to tell something: fewer blocks are
// an accident, and a shorter transfer is over before the path has found its rate.
const (
	learnBytes   = 1 << 20  // of blocks of one kind
	learnCarried = 64 << 20 // on the wire, for a link's capacity
	learnSeconds = 5
	// learnLanes is how many lanes encode at most, see the data path.
	learnLanes = 4
)

// merge is what is known of a VM after its agent was asked again: what is new,
// what is old where there is nothing new, and what a real move has shown, which no
// sample replaces.
func merge(old, v drover.Signals, now time.Time) drover.Signals {
	for _, r := range []struct{ old, now *drover.Reading }{
		{&old.MemoryBytes, &v.MemoryBytes},
		{&old.MemoryUsedBytes, &v.MemoryUsedBytes},
		{&old.ZeroShare, &v.ZeroShare},
		{&old.ResentShare, &v.ResentShare},
		{&old.KnownHereShare, &v.KnownHereShare},
		{&old.KnownHereCompressedShare, &v.KnownHereCompressedShare},
		{&old.HotBytes, &v.HotBytes},
		{&old.HotSeconds, &v.HotSeconds},
		{&old.ColdBytesPerSecond, &v.ColdBytesPerSecond},
		{&old.DiskAllocatedBytes, &v.DiskAllocatedBytes},
		{&old.DiskCompressedShare, &v.DiskCompressedShare},
		{&old.DiskReadBytesPerSecond, &v.DiskReadBytesPerSecond},
		{&old.DiskWriteBytesPerSecond, &v.DiskWriteBytesPerSecond},
		{&old.DiskDistinctBytesPerSecond, &v.DiskDistinctBytesPerSecond},
		{&old.NetworkRxBPS, &v.NetworkRxBPS},
		{&old.NetworkTxBPS, &v.NetworkTxBPS},
		{&old.CPUShare, &v.CPUShare},
		{&old.Sessions, &v.Sessions},
	} {
		*r.now = better(*r.old, *r.now, now)
	}
	// What a move has shown of how well memory compresses was of what it had to send
	// then; a forecast corrects what samples say now by it.
	if !v.CompressedShare.Known() {
		v.CompressedShare = old.CompressedShare
	}
	v.KnownShare = mergeShares(old.KnownShare, v.KnownShare)
	v.DiskKnownShare = mergeShares(old.DiskKnownShare, v.DiskKnownShare)
	if !v.Dirty.Known() {
		v.Dirty = old.Dirty
	}
	if !v.Lifetimes.Known() {
		v.Lifetimes = old.Lifetimes
	}
	if v.At.IsZero() {
		v.At = old.At
	}
	return v
}

func better(old, v drover.Reading, now time.Time) drover.Reading {
	if !v.Known() || old.Known() && old.Observed && !v.Observed && old.Age(now) < learntAge {
		return old
	}
	return v
}

// mergeShares is the newer of each site's, as a map of its own.
func mergeShares(old, v map[string]drover.Reading) map[string]drover.Reading {
	if len(old)+len(v) == 0 {
		return nil
	}
	out := maps.Clone(old)
	if out == nil {
		out = map[string]drover.Reading{}
	}
	for site, r := range v {
		if !out[site].Known() || !r.At.Before(out[site].At) {
			out[site] = r
		}
	}
	return out
}

// learn takes over what the data path saw in a move that has ended: how its VM's
// content fared, how fast its host encoded, what its link carried. It is kept at
// once.
func (g *signals) learn(ctx context.Context, m drover.Move) {
	now := g.s.now().UTC()
	k := way{m.From.Site, m.To.Site}
	g.mu.Lock()
	g.ours[k] = now // also one that was undone has filled its link
	path := m.Measured.Path
	if path == nil || m.State != drover.MoveDone {
		g.mu.Unlock()
		return
	}
	v := g.vms[m.VMUUID]
	v.VM, v.UUID = m.VM, m.VMUUID
	if !m.Method.Makes() {
		learnVM(&v, *path, m.To.Site, now)
		g.vms[m.VMUUID] = v
	}
	h := g.hosts[m.From.Host]
	h.Host = m.From.Host
	cpus := learnLanes
	if host, ok := g.s.fleet.host(m.From.Host); ok && host.CPUs > 0 {
		cpus = min(cpus, host.CPUs)
	}
	if r := encodeRate(*path, cpus, now); r.Known() {
		h.EncodeBytesPerSecond = r
		g.hosts[m.From.Host] = h
	}
	l := g.ways[k]
	l.From, l.To = k.from, k.to
	r := carriedRate(*path, now)
	// The most that it has carried lately is the least that it can.
	if r.Known() && k.from != k.to && (!l.CapacityBPS.Observed || l.CapacityBPS.Age(now) > learntAge || r.Value >= l.CapacityBPS.Value) &&
		r.Value > l.CapacityBPS.Or(0) {
		l.CapacityBPS = r
		g.ways[k] = l
	}
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	inv := g.s.deps.Inventory
	if !m.Method.Makes() {
		if err := inv.Signals().Put(ctx, v); err != nil {
			g.s.log.WarnContext(ctx, "what a move has shown of its VM is not kept", "move", m.Name, "error", err)
		}
	}
	if h.EncodeBytesPerSecond.Known() {
		if err := inv.HostSignals().Put(ctx, h); err != nil {
			g.s.log.WarnContext(ctx, "what a move has shown of its host is not kept", "move", m.Name, "error", err)
		}
	}
}

// learnVM takes over how a VM's content crossed. What of its memory a site has is
// another thing after each move: samples tell that.
func learnVM(v *drover.Signals, p drover.PathFigures, to string, now time.Time) {
	memory := p.Memory.Plus(p.Switchover).Kinds
	packed := func(k drover.PathKinds) drover.Reading {
		return ratio(k.Compressed.WireBytes+k.Raw.WireBytes, k.Compressed.GuestBytes+k.Raw.GuestBytes, k.Compressed.Blocks+k.Raw.Blocks, now)
	}
	if r := packed(memory); r.Known() && !v.CompressedShare.Known() {
		v.CompressedShare = r
	}
	if again := resent(memory, drover.Bytes(v.MemoryBytes.Or(0)), now); again.Known() {
		v.ResentShare = again
	}
	disk := p.Disk.Kinds
	if r := packed(disk); r.Known() {
		v.DiskCompressedShare = r
	}
	known := disk.Same.GuestBytes + disk.Reference.GuestBytes + disk.Delta.GuestBytes
	all := known + disk.Compressed.GuestBytes + disk.Raw.GuestBytes
	if r := ratio(known, all, disk.Same.Blocks+disk.Reference.Blocks+disk.Delta.Blocks+disk.Compressed.Blocks+disk.Raw.Blocks, now); r.Known() {
		v.DiskKnownShare = mergeShares(v.DiskKnownShare, map[string]drover.Reading{to: r})
	}
}

// resent is what was left of pages that were sent again: those that had not changed
// or crossed as a difference, and those whose new content had nothing in common
// with the old, which are what crossed in excess of the memory itself.
func resent(k drover.PathKinds, memory drover.Bytes, now time.Time) drover.Reading {
	sent, wire, blocks := k.Same.GuestBytes+k.Delta.GuestBytes, k.Same.WireBytes+k.Delta.WireBytes, k.Same.Blocks+k.Delta.Blocks
	fresh, freshWire := k.Compressed.GuestBytes+k.Raw.GuestBytes, k.Compressed.WireBytes+k.Raw.WireBytes
	if more := min(fresh, k.Zero.GuestBytes+k.Reference.GuestBytes+fresh-memory); memory > 0 && more > 0 {
		wire += drover.Bytes(float64(freshWire) * float64(more) / float64(fresh))
		sent += more
	}
	return ratio(wire, sent, blocks, now)
}

// ratio is a share that a move has shown; unknown where too little crossed.
func ratio(part, whole drover.Bytes, blocks int64, now time.Time) drover.Reading {
	if whole < learnBytes {
		return drover.Reading{}
	}
	return drover.Reading{Value: float64(part) / float64(whole), At: now, Samples: blocks, Observed: true}
}

// encodeRate is what the source made ready for the link in a second of all lanes.
func encodeRate(p drover.PathFigures, lanes int, now time.Time) drover.Reading {
	m := p.Memory
	work := m.GuestBytes - m.Kinds.Zero.GuestBytes
	if work < learnBytes || m.CPUSeconds <= 0 {
		return drover.Reading{}
	}
	return drover.Reading{
		Value: float64(work) / m.CPUSeconds * float64(lanes), At: now, Samples: int64(work / 4096), Observed: true,
	}
}

// carriedRate is the highest rate of a phase that was long enough to show one.
func carriedRate(p drover.PathFigures, now time.Time) drover.Reading {
	var best drover.Reading
	for _, phase := range []drover.PathPhase{p.Disk, p.Memory, p.Total()} {
		rate := float64(phase.WireRate())
		if phase.WireBytes >= learnCarried && phase.Seconds >= learnSeconds && rate > best.Or(0) {
			best = drover.Reading{Value: rate, At: now, Samples: 1, Observed: true}
		}
	}
	return best
}
