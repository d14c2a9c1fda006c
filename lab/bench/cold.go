package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover/lab/labfile"
)

// coldCase is a disk at rest that is carried to the other site.
type coldCase struct {
	disk   string
	file   string
	golden string
	// changed is the share of the disk that has changed since an earlier copy
	// of it came to the destination; 0 is no earlier copy.
	changed float64
	// target is what Drover may send as a share of the disk, 0 for no bound of
	// its own.
	target float64
}

var coldCases = []coldCase{
	{disk: "golden", file: "wanbench", golden: goldenBoth, target: 0.1},
	{disk: "whole", file: "wanbench-whole", golden: goldenNone},
	{disk: "again", file: "wanbench-whole", golden: goldenNone, changed: 0.05},
}

// coldWay carries a disk from one host to the other.
type coldWay struct {
	name string
	// seed brings the destination what it has before: an earlier copy, or what
	// the way can make of the golden image there. It is not measured.
	seed func(*coldTrip, context.Context) error
	// copy is what is measured.
	copy func(*coldTrip, context.Context) error
}

var coldWays = []coldWay{
	{"rsync", (*coldTrip).rsync, (*coldTrip).rsync},
	{"convert-zstd", nil, (*coldTrip).convert},
	{"casync", (*coldTrip).casync, (*coldTrip).casync},
	{"drover", (*coldTrip).drover, (*coldTrip).drover},
}

const (
	coldVM = "deb1"
	// ownData is what the guest has on its disk beyond the image: some 40 MB of
	// rows, and as much of PostgreSQL's log.
	ownData = "CREATE TABLE wanbench_own AS SELECT n, md5(n::text) AS a, md5((-n)::text) AS b FROM generate_series(1, 400000) n"
	// changePiece is the size of each change to a disk.
	changePiece = 64 << 10
)

// cold measures the copying of a disk of a guest that is off.
func cold(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Runs == 0 {
		o.Runs = 1
	}
	b := &coldBench{Options: o, disks: map[string]*snapshot{}}
	defer func() {
		for _, s := range b.disks {
			err = errors.Join(err, s.remove())
		}
	}()
	random := rand.New(rand.NewPCG(uint64(o.Seed), 0))
	for _, c := range coldCases {
		for _, link := range wanLinks {
			if link.name != wanLinks[0].name && len(o.Only["link"]) == 0 {
				continue
			}
			for run := range o.Runs {
				for _, i := range random.Perm(len(coldWays)) {
					row := Row{
						"disk": c.disk, "golden": c.golden, "link": link.name, "way": coldWays[i].name,
						"total_s": -1.0, "wire_bytes": int64(-1), "cpu_s": -1.0, "ok": false, "fault": "",
					}
					if !o.wants(row) {
						continue
					}
					row["run"] = run
					if err := b.measure(ctx, c, link, coldWays[i], row); err != nil {
						row["fault"], row["ok"] = err.Error(), false
					}
					if ctx.Err() != nil {
						return rows, nil, ctx.Err()
					}
					o.logf("%s %s %s: %.1f s, wire %.1f MB, ok %v %v", c.disk, link.name, coldWays[i].name,
						row["total_s"], float64(row["wire_bytes"].(int64))/1e6, row["ok"], row["fault"])
					rows = append(rows, row)
				}
			}
		}
	}
	return rows, summariseCold(rows), nil
}

type coldBench struct {
	Options
	disks map[string]*snapshot // of guests that were shut down, by lab file
}

// prepared boots a guest, has it work, and shuts it down, once for each lab.
func (b *coldBench) prepared(ctx context.Context, c coldCase) (s *snapshot, err error) {
	if s := b.disks[c.file]; s != nil {
		return s, nil
	}
	b.logf("prepare the disk of %s in %s", coldVM, c.file)
	w, err := startWANLab(ctx, b.Options, c.file, []string{coldVM})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	wc := &wanCase{file: c.file, golden: c.golden, kernelOf: labfile.ImageSheep, seed: b.Seed}
	g := w.guest(coldVM)
	def, err := w.adapt(ctx, wc, g)
	if err != nil {
		return nil, err
	}
	if _, err := w.virsh(ctx, g.Host, "start", coldVM); err != nil {
		return nil, err
	}
	kind, err := w.awaken(ctx, wc, g)
	if err != nil {
		return nil, err
	}
	if err := kind.warm(ctx); err != nil {
		return nil, err
	}
	if d, ok := kind.(*debianGuest); ok {
		if _, err := d.psql(ctx, ownData); err != nil {
			return nil, err
		}
	}
	if err := w.shutdown(ctx, g.Host, coldVM); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/var/tmp", "drover-bench-")
	if err != nil {
		return nil, err
	}
	s = &snapshot{dir: dir, disks: map[string]string{}}
	b.disks[c.file] = s
	if s.domain, err = def.Marshal(); err != nil {
		return nil, err
	}
	path := disksOf(def)[0]
	s.disks[path] = filepath.Join(dir, "disk")
	return s, copyFile(ctx, w.machinePath(g.Host, path), s.disks[path])
}

// shutdownLimit bounds a guest's way down, databases and all.
const shutdownLimit = 90 * time.Second

// shutdown has a guest power off.
func (w *wanLab) shutdown(ctx context.Context, host, vm string) error {
	if _, err := w.virsh(ctx, host, "shutdown", vm); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
	defer cancel()
	for {
		state, err := w.virsh(ctx, host, "domstate", vm)
		if err != nil {
			return err
		}
		if strings.TrimSpace(state) == "shut off" {
			return nil
		}
		if err := sleep(ctx, time.Second); err != nil {
			return fmt.Errorf("%s does not power off: it is %s", vm, strings.TrimSpace(state))
		}
	}
}

// summariseCold compares Drover with the best of the others for each disk.
func summariseCold(rows []Row) map[string]any {
	type key struct{ disk, link string }
	byKey := map[key]map[string][]Row{}
	for _, r := range rows {
		k := key{r["disk"].(string), r["link"].(string)}
		if byKey[k] == nil {
			byKey[k] = map[string][]Row{}
		}
		byKey[k][r["way"].(string)] = append(byKey[k][r["way"].(string)], r)
	}
	summary := map[string]any{}
	for k, byWay := range byKey {
		out := map[string]any{}
		for figure, name := range map[string]string{"wire_bytes": "wire", "total_s": "time"} {
			own := medianOf(byWay["drover"], figure)
			way, least := best(byWay, figure)
			if ratio := own / least; !math.IsNaN(ratio) {
				out["best_"+name+"_way"], out[name+"_ratio"], out[name+"_ok"] = way, ratio, ratio <= 1
			}
			i := slices.IndexFunc(coldCases, func(c coldCase) bool { return c.disk == k.disk })
			if share := own / medianOf(byWay["drover"], "disk_bytes"); figure == "wire_bytes" && !math.IsNaN(share) {
				out["wire_of_disk"] = share
				if target := coldCases[i].target; target > 0 {
					out["wire_of_disk_ok"] = share <= target
				}
			}
		}
		summary[k.disk+" "+k.link] = out
	}
	return summary
}
