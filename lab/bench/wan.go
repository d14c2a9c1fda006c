package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/wanem"
)

// What the destination has of a guest's disk.
const (
	// goldenBoth: the image that the disk is an overlay of is at both sites.
	goldenBoth = "both"
	// goldenNone: the whole disk travels.
	goldenNone = "none"
	// goldenShared: the disk is shared by both sites, only memory travels.
	goldenShared = "shared"
)

// wanLink is a link that the moves are measured over.
type wanLink struct {
	name  string
	shape *wanem.ShapeChange // nil leaves the lab file's
	bps   int64
}

func newWANLink(name string, bps int64, rtt time.Duration) wanLink {
	return wanLink{
		name: name, bps: bps,
		shape: &wanem.ShapeChange{RateBps: new(bps), Delay: new(rtt / 2), Jitter: new(time.Duration(0)), Loss: new(0.0), QueueBytes: new(0)},
	}
}

// wanLinks are named by rate and round trip.
var wanLinks = []wanLink{
	newWANLink("100M50ms", 100e6, 50*time.Millisecond),
	newWANLink("622M10ms", 622e6, 10*time.Millisecond),
	newWANLink("1G100ms", 1e9, 100*time.Millisecond),
}

// labLink is the link as the lab file has it.
const labLink = "lab"

// wanCase is what is moved: one guest, or several one after another.
type wanCase struct {
	name   string // scene
	file   string // lab file
	golden string // "" is found out
	hops   []hop
	// dirtyRate is what the small guest dirties, bytes per second.
	dirtyRate int64
	// kernelOf is the image whose kernel the guest boots, where its own is not
	// at both sites.
	kernelOf string
	seed     int64
	// few leaves out, unless asked for, what teaches little: other links than
	// the first, and ways that are not the best.
	few bool
}

// hop is one move of a case.
type hop struct {
	guest string // as the row calls it
	vm    string
	trip  int
	// again moves the guest of an earlier hop back, after a time.
	again bool
}

// fewWays are the ways that later trips are measured by.
var fewWays = []string{"multifd-zstd1", "multifd-zstd3", "drover"}

// wanCases are the benchmark's own guests.
func wanCases(seed int64) []*wanCase {
	var all []*wanCase
	for _, mb := range []int64{2, 8, 20} {
		name := fmt.Sprintf("sheep-%dMB", mb)
		all = append(all, &wanCase{
			name: "dirty", file: "wanbench", golden: goldenNone, dirtyRate: mb * 1e6,
			hops: []hop{{guest: name, vm: "sheep1", trip: 1}},
		})
	}
	deb1 := []hop{{guest: "deb1", vm: "deb1", trip: 1}}
	all = append(all,
		&wanCase{name: "first", file: "wanbench", golden: goldenBoth, hops: deb1},
		&wanCase{name: "whole", file: "wanbench-whole", golden: goldenNone, kernelOf: labfile.ImageSheep, hops: deb1},
		&wanCase{name: "memory", file: "wanbench-whole", golden: goldenShared, kernelOf: labfile.ImageSheep, hops: deb1},
		&wanCase{name: "return", file: "wanbench", golden: goldenBoth, few: true, hops: []hop{
			{guest: "deb1", vm: "deb1", trip: 1}, {guest: "deb1", vm: "deb1", trip: 2, again: true},
		}},
		&wanCase{name: "fleet", file: "wanbench", golden: goldenBoth, few: true, hops: []hop{
			{guest: "deb1", vm: "deb1", trip: 1},
			{guest: "deb2", vm: "deb2", trip: 2},
			{guest: "deb3", vm: "deb3", trip: 3},
			{guest: "deb4", vm: "deb4", trip: 4},
		}},
	)
	for _, c := range all {
		c.seed = seed
	}
	return all
}

// wan measures every way to move a guest, on the same lab, guest and link.
func wan(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Runs == 0 {
		o.Runs = 1
	}
	b := &wanBench{Options: o, snapshots: map[string]*snapshot{}}
	defer func() { err = errors.Join(err, b.close()) }()
	cases, links, err := b.choose()
	if err != nil {
		return nil, nil, err
	}
	random := rand.New(rand.NewPCG(uint64(o.Seed), 0))
	for _, c := range cases {
		for _, link := range links {
			for run := range o.Runs {
				// The order of the ways does not follow their names.
				for _, i := range random.Perm(len(ways)) {
					more, err := b.sequence(ctx, c, link, ways[i], run)
					rows = append(rows, more...)
					if err != nil {
						return rows, nil, err
					}
				}
			}
		}
	}
	return rows, summariseWAN(rows), nil
}

// wanBench is a run of the benchmark.
type wanBench struct {
	Options
	snapshots map[string]*snapshot // of warm guests, by lab file and guest
}

func (b *wanBench) close() error {
	var errs []error
	for s := range maps.Values(b.snapshots) {
		errs = append(errs, s.remove())
	}
	return errors.Join(errs...)
}

// choose returns what is measured, and over which links.
func (b *wanBench) choose() ([]*wanCase, []wanLink, error) {
	if b.LabFile == "" {
		if b.Guest != "" {
			return nil, nil, drover.Errorf(drover.Invalid, "--guest", "%q: want --lab with the lab file that has it", b.Guest)
		}
		return wanCases(b.Seed), wanLinks, nil
	}
	f, err := labfile.Load(b.LabFile)
	if err != nil {
		return nil, nil, err
	}
	if b.Guest == "" && len(f.Guests) > 0 {
		b.Guest = f.Guests[0].Name
	}
	if indexGuest(f, b.Guest) < 0 {
		return nil, nil, drover.Errorf(drover.Invalid, "--guest", "%q: %s has no such guest", b.Guest, b.LabFile)
	}
	c := &wanCase{name: "lab", file: b.LabFile, seed: b.Seed, dirtyRate: 8e6, hops: []hop{{guest: b.Guest, vm: b.Guest, trip: 1}}}
	if slices.Contains(b.Only["trip"], "2") {
		c.hops = append(c.hops, hop{guest: b.Guest, vm: b.Guest, trip: 2, again: true})
	}
	links := []wanLink{{name: labLink}}
	if _, named := b.Only["link"]; named {
		links = append(links, wanLinks...)
	}
	return []*wanCase{c}, links, nil
}

// row is what is known of a hop before it is measured.
func (b *wanBench) row(c *wanCase, link wanLink, y way, h hop, run int) Row {
	r := Row{
		"scene": c.name, "guest": h.guest, "link": link.name, "trip": h.trip, "way": y.name, "run": run, "fault": "", "ok": false,
		"total_s": -1.0, "pause_ms": -1.0, "outage_ms": -1.0, "wire_bytes": int64(-1), "guest_bytes": int64(-1), "cpu_s": -1.0,
	}
	if c.golden != "" {
		r["golden"] = c.golden
	}
	return r
}

// wanted is how many of a case's hops have to be made, by one way and over one
// link, so that every row asked for is measured.
func (b *wanBench) wanted(c *wanCase, link wanLink, y way) int {
	named := func(key string) bool { return len(b.Only[key]) > 0 }
	if c.few && (!named("link") && link.name != wanLinks[0].name || !named("way") && !slices.Contains(fewWays, y.name)) {
		return 0
	}
	n := 0
	for i, h := range c.hops {
		// The first hop of these is measured as a case of its own.
		if c.few && i == 0 && !named("scene") {
			continue
		}
		row := b.row(c, link, y, h, 0)
		delete(row, "run") // all runs, and none picks
		if b.wants(row) {
			n = i + 1
		}
	}
	return n
}

// sequence makes the hops of a case by one way, in a lab of its own.
func (b *wanBench) sequence(ctx context.Context, c *wanCase, link wanLink, y way, run int) (rows []Row, err error) {
	n := b.wanted(c, link, y)
	if n == 0 {
		return nil, nil
	}
	defer func() {
		if err == nil || ctx.Err() != nil {
			return
		}
		// Hours of other rows are worth more than an end at the first fault.
		b.logf("%s %s %s: %v", c.name, link.name, y.name, err)
		for _, h := range c.hops[len(rows):n] {
			row := b.row(c, link, y, h, run)
			row["fault"] = err.Error()
			rows = append(rows, row)
		}
		err = nil
	}()
	var vms []string
	for _, h := range c.hops[:n] {
		if !slices.Contains(vms, h.vm) {
			vms = append(vms, h.vm)
		}
	}
	for _, vm := range vms {
		if err := b.snapshot(ctx, c, vm); err != nil {
			return nil, err
		}
	}
	w, err := startWANLab(ctx, b.Options, c.file, vms)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	if c.golden == goldenShared {
		if err := w.declareShared(ctx); err != nil {
			return nil, err
		}
	}
	where := map[string]string{}
	for i, h := range c.hops[:n] {
		row := b.row(c, link, y, h, run)
		if h.again && i > 0 {
			b.logf("%s: away for %s", h.guest, b.ReturnAfter)
			if err := b.away(ctx, w, c, h); err != nil {
				return rows, err
			}
			row["away_s"] = b.ReturnAfter.Seconds()
		}
		err := b.measure(ctx, w, c, link, y, h, where, row)
		if ctx.Err() != nil {
			return rows, ctx.Err()
		}
		if err != nil {
			row["fault"], row["ok"] = err.Error(), false
		}
		b.logf("%s %s %s golden %v trip %d %s: %.1f s, pause %.0f ms, outage %.0f ms, wire %.1f MB, cpu %.1f s, ok %v %v",
			h.guest, c.name, link.name, row["golden"], h.trip, y.name, row["total_s"], row["pause_ms"], row["outage_ms"],
			float64(row["wire_bytes"].(int64))/1e6, row["cpu_s"], row["ok"], row["fault"])
		rows = append(rows, row)
		if err != nil {
			return rows, nil // later hops build on it
		}
	}
	return rows, nil
}

// away has a guest work where it is for as long as it stays.
func (b *wanBench) away(ctx context.Context, w *wanLab, c *wanCase, h hop) error {
	kind, err := w.awaken(ctx, c, w.guest(h.vm))
	if err != nil {
		return err
	}
	job, err := kind.work(ctx)
	if err != nil {
		return err
	}
	err = sleep(ctx, b.ReturnAfter)
	return errors.Join(err, job.stop(ctx))
}

// snapshot makes the warm guest that all ways start from, once.
func (b *wanBench) snapshot(ctx context.Context, c *wanCase, vm string) error {
	key := c.file + " " + c.golden + " " + vm
	if b.snapshots[key] != nil {
		return nil
	}
	s, err := prepare(ctx, b.Options, c, vm)
	if s != nil {
		b.snapshots[key] = s
	}
	return err
}

const (
	// runIn is how long a guest works after it was restored before anything is
	// measured.
	runIn = 5 * time.Second
	// baselineTime is how long is measured what goes on without a move.
	baselineTime = 4 * time.Second
	// drain is the time that the last packets get to be counted, beyond the
	// longest round trip of a link.
	drain = 300 * time.Millisecond
	// settleAfter is how long clients are watched after a move, and then as long
	// again as the guest's pause, which is when TCP's retransmissions come.
	settleAfter = 3 * time.Second
	settleMost  = 30 * time.Second
)

// measure makes one hop and fills its row.
func (b *wanBench) measure(ctx context.Context, w *wanLab, c *wanCase, link wanLink, y way, h hop, where map[string]string, row Row) error {
	g := w.guest(h.vm)
	from := where[h.vm]
	if from == "" {
		from = g.Host
		if err := w.restore(ctx, h.vm, b.snapshots[c.file+" "+c.golden+" "+h.vm]); err != nil {
			return err
		}
	}
	to, err := w.other(from)
	if err != nil {
		return err
	}
	bps, err := w.setLink(ctx, link, from, to)
	if err != nil {
		return err
	}
	kind, err := w.awaken(ctx, c, g)
	if err != nil {
		return err
	}
	job, err := kind.work(ctx)
	if err != nil {
		return fmt.Errorf("put the guest to work: %w", err)
	}
	err = sleep(ctx, runIn)
	if err == nil {
		var rest bool
		if rest, err = w.agentsAtRest(ctx, from, to); err == nil && !rest {
			b.logf("the agents of %s and %s do not come to rest", from, to)
		}
	}
	if err == nil {
		err = b.watched(ctx, w, g, row, func() error { return b.hop(ctx, w, y, h, from, to, bps, row) })
	}
	err = errors.Join(err, job.stop(ctx))
	if err == nil {
		where[h.vm] = to
		err = w.onlyAt(ctx, h.vm, from, to)
	}
	row["ok"] = err == nil
	return err
}

// watched runs f under the eyes of the guest's clients, if the lab file says
// where they are.
func (b *wanBench) watched(ctx context.Context, w *wanLab, g *labfile.Guest, row Row, f func() error) error {
	config, ok := w.probeOf(g)
	if !ok {
		return f()
	}
	c, err := w.startClients(ctx, config)
	if err != nil {
		return err
	}
	err = f()
	pause, _ := row["pause_ms"].(float64)
	_ = sleep(ctx, min(settleMost, settleAfter+time.Duration(pause)*time.Millisecond)) // the caller looks at ctx
	r, stopErr := c.stop()
	row["outage_ms"], row["outage_http_ms"], row["sessions_lost"], row["prober_stall_ms"] = r.OutageMS, r.OutageHTTPMS, r.SessionsLost, r.ProberStallMS
	return errors.Join(err, stopErr)
}

// setLink shapes the link between two hosts' sites, and returns its rate.
func (w *wanLab) setLink(ctx context.Context, link wanLink, from, to string) (bps int64, err error) {
	a, err := w.Node(from)
	if err != nil {
		return 0, err
	}
	b, err := w.Node(to)
	if err != nil {
		return 0, err
	}
	k, err := w.LinkNamed(a.Site, b.Site)
	if err != nil {
		return 0, err
	}
	if link.shape != nil {
		_, err = w.SetLink(ctx, k.Name, *link.shape)
		return link.bps, err
	}
	s, err := w.LinkStatus(ctx, k.Name)
	return s.Shape.RateBps, err
}

// Limits of a move, after which it counts as not converging: limitLeast, or
// limitFactor times what the link takes for the guest's memory and disks.
const (
	limitLeast  = 2 * time.Minute
	limitFactor = 6
)

// hop makes the move itself between two readings of the meter.
func (b *wanBench) hop(ctx context.Context, w *wanLab, y way, h hop, from, to string, bps int64, row Row) error {
	disks, err := w.images(ctx, h.vm, from)
	if err != nil {
		return err
	}
	if row["golden"] == nil {
		row["golden"] = goldenNone
		if w.backed(ctx, to, disks) {
			row["golden"] = goldenBoth
		}
	}
	all := int64(w.guest(h.vm).Memory)
	for _, d := range disks {
		all += d.Allocated
	}
	limit := limitLeast
	if bps > 0 {
		limit = max(limit, limitFactor*time.Duration(float64(all)*8/float64(bps)*float64(time.Second)))
	}
	m, err := newMeter(w.Lab, from, to)
	if err != nil {
		return err
	}
	defer m.close()
	base, err := m.baseline(ctx, baselineTime)
	if err != nil {
		return err
	}
	events, err := w.watchPause(ctx, h.vm, from, to)
	if err != nil {
		return err
	}
	before, err := m.read(ctx)
	if err != nil {
		events.stop()
		return err
	}
	done, moveErr := y.run(ctx, w, h.vm, from, to, limit)
	seen := events.stop()
	row["event_pause_ms"] = seen
	if done.pauseMillis < 0 {
		done.pauseMillis = seen
	}
	if err := sleep(ctx, drain); err != nil {
		return err
	}
	after, err := m.read(ctx)
	if err != nil {
		return errors.Join(moveErr, err)
	}
	wire, cpu := base.cost(before, after)
	row["wire_bytes"], row["cpu_s"], row["total_s"], row["pause_ms"] = wire, cpu, done.took.Seconds(), done.pauseMillis
	row["memory_bytes"], row["disk_bytes"] = done.memoryBytes, done.diskBytes
	if done.memoryBytes >= 0 && done.diskBytes >= 0 {
		row["guest_bytes"] = done.memoryBytes + done.diskBytes
	}
	row["base_wire_bps"], row["base_cores"] = int64(8*base.wire), base.cpu
	maps.Copy(row, done.more)
	if moveErr == nil && done.diverged {
		moveErr = fmt.Errorf("did not converge in %.0f s", limit.Seconds())
	}
	return moveErr
}

// onlyAt reports an error unless the guest runs at one host and is unknown at
// the other.
func (w *wanLab) onlyAt(ctx context.Context, vm, from, to string) error {
	if out, err := w.virsh(ctx, from, "domstate", vm); err == nil {
		return fmt.Errorf("%s is still known at %s: %s", vm, from, out)
	}
	state, err := w.virsh(ctx, to, "list", "--state-running", "--name")
	if err != nil {
		return err
	}
	if !slices.Contains(fields(state), vm) {
		return fmt.Errorf("%s does not run at %s", vm, to)
	}
	return nil
}
