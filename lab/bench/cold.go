package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
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

// coldTrip is one copy, in a lab of its own.
type coldTrip struct {
	lab      *wanLab
	c        coldCase
	from, to string
	path     string // of the disk, at both hosts
	ssh      *sshd
	move     *drover.Move // what Drover did, nil for the others
}

func (b *coldBench) measure(ctx context.Context, c coldCase, link wanLink, y coldWay, row Row) (err error) {
	s, err := b.prepared(ctx, c)
	if err != nil {
		return err
	}
	w, err := startWANLab(ctx, b.Options, c.file, []string{coldVM})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	t, err := newColdTrip(ctx, w, c, s)
	if err != nil {
		return err
	}
	defer t.ssh.stop()
	if err := t.before(ctx, y, b.Seed); err != nil {
		return fmt.Errorf("what the destination has before: %w", err)
	}
	if _, err := w.setLink(ctx, link, t.from, t.to); err != nil {
		return err
	}
	if _, err := w.agentsAtRest(ctx, t.from, t.to); err != nil {
		return err
	}
	reference := w.shared("reference")
	if err := copyFile(ctx, w.machinePath(t.from, t.path), reference); err != nil {
		return err
	}
	size, err := t.size(ctx)
	if err != nil {
		return err
	}
	row["disk_bytes"] = size
	m, err := newMeter(w.Lab, t.from, t.to)
	if err != nil {
		return err
	}
	defer m.close()
	base, err := m.baseline(ctx, baselineTime)
	if err != nil {
		return err
	}
	before, err := m.read(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	copyErr := y.copy(t, ctx)
	took := time.Since(began)
	if t.move != nil {
		// The others copy a disk. Drover moves a guest: total_s is the copy with the comparison of its digests, move_s the
		// whole move, from the command on, with preflight, definition and start.
		row["move_s"] = t.move.Ended.Sub(began).Seconds()
		if took, err = stepTime(t.move, "copy"); err != nil {
			return err
		}
	}
	if err := sleep(ctx, drain); err != nil {
		return err
	}
	after, err := m.read(ctx)
	if err = errors.Join(copyErr, err); err != nil {
		return err
	}
	wire, cpu := base.cost(before, after)
	row["total_s"], row["wire_bytes"], row["cpu_s"] = took.Seconds(), wire, cpu
	// Paths in the images are those of hosts, the machine's own are seen there too.
	if _, err := w.exec(ctx, t.from, "qemu-img", "compare", "-q", reference, w.machinePath(t.to, t.path)); err != nil {
		return fmt.Errorf("the copy differs: %w", err)
	}
	row["ok"] = true
	return nil
}

// newColdTrip puts the disk at its source.
func newColdTrip(ctx context.Context, w *wanLab, c coldCase, s *snapshot) (*coldTrip, error) {
	g := w.guest(coldVM)
	to, err := w.other(g.Host)
	if err != nil {
		return nil, err
	}
	t := &coldTrip{lab: w, c: c, from: g.Host, to: to}
	for path, saved := range s.disks {
		t.path = path
		if err := copyFile(ctx, saved, w.machinePath(t.from, path)); err != nil {
			return nil, err
		}
	}
	conn, err := w.Libvirt(t.from)
	if err != nil {
		return nil, err
	}
	_, err = conn.DomainDefineXMLFlags(s.domain, libvirt.DomainDefineValidate)
	if err = errors.Join(err, conn.Disconnect()); err != nil {
		return nil, err
	}
	// The link is as the lab file has it: what follows is not measured.
	t.ssh, err = w.startSSHD(ctx, to)
	return t, err
}

// before brings the destination what it has before the copy that is measured:
// what casync can have of the golden image, or an earlier copy of the disk, of
// which a share then changes at the source.
func (t *coldTrip) before(ctx context.Context, y coldWay, seed int64) error {
	defer func() { t.move = nil }()
	if t.c.golden == goldenBoth && y.name == "casync" {
		return t.casyncGolden(ctx)
	}
	if t.c.changed == 0 {
		return nil
	}
	if y.seed != nil {
		fast := newWANLink("", 10e9, 0)
		if _, err := t.lab.setLink(ctx, fast, t.from, t.to); err != nil {
			return err
		}
		if err := y.seed(t, ctx); err != nil {
			return err
		}
	}
	if y.name == "drover" {
		// The guest is at the other site now, and its earlier disk here.
		t.from, t.to = t.to, t.from
	}
	return t.change(ctx, seed)
}

// allocated lists where the disk at the source has data, as offsets of
// changePiece.
func (t *coldTrip) allocated(ctx context.Context) ([]int64, int64, error) {
	out, err := t.lab.exec(ctx, t.from, "qemu-img", "map", "--output=json", "--", t.path)
	if err != nil {
		return nil, 0, err
	}
	var extents []struct {
		Start  int64 `json:"start"`
		Length int64 `json:"length"`
		Data   bool  `json:"data"`
	}
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		return nil, 0, fmt.Errorf("qemu-img map: %w", err)
	}
	var pieces []int64
	var bytes int64
	for _, e := range extents {
		if !e.Data {
			continue
		}
		bytes += e.Length
		for at := e.Start / changePiece * changePiece; at < e.Start+e.Length; at += changePiece {
			if len(pieces) == 0 || pieces[len(pieces)-1] < at {
				pieces = append(pieces, at)
			}
		}
	}
	return pieces, bytes, nil
}

// size is how much data the disk holds, its backing file's included.
func (t *coldTrip) size(ctx context.Context) (int64, error) {
	_, bytes, err := t.allocated(ctx)
	return bytes, err
}

// change rewrites a share of the disk's data, half of it random.
func (t *coldTrip) change(ctx context.Context, seed int64) error {
	pieces, _, err := t.allocated(ctx)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(uint64(seed), 1))
	random.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	pieces = pieces[:int(math.Ceil(float64(len(pieces))*t.c.changed))]
	dir := t.lab.shared("change")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var script strings.Builder
	content := make([]byte, changePiece)
	for i, at := range pieces {
		for j := range len(content) / 2 {
			content[j] = byte(random.Uint32())
		}
		name := strconv.Itoa(i)
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
		fmt.Fprintf(&script, "write -q -s %s %d %d\n", sharedInNode("change/"+name), at, changePiece)
	}
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte(script.String()), 0o600); err != nil {
		return err
	}
	_, err = t.lab.exec(ctx, t.from, "sh", "-c", `qemu-io -f qcow2 "$1" <"$2" >/dev/null`, "sh", t.path, sharedInNode("change/script"))
	return errors.Join(err, os.RemoveAll(dir))
}

// sh runs a script at the source with $SSH, $HOST, $DISK and $SHARED set.
func (t *coldTrip) sh(ctx context.Context, script string) error {
	_, err := t.lab.exec(ctx, t.from, "env",
		"SSH="+strings.Join(t.ssh.command(), " "), "HOST="+t.ssh.address, "DISK="+t.path, "SHARED="+sharedInNode(""),
		"bash", "-euo", "pipefail", "-c", script)
	return err
}

// rsync sends the disk's file: the top layer where the golden image is at both
// sites, against the earlier copy where there is one.
func (t *coldTrip) rsync(ctx context.Context) error {
	return t.sh(ctx, `rsync -z --inplace --no-whole-file -e "$SSH" -- "$DISK" "root@$HOST:$DISK"`)
}

// convert packs the disk with qemu-img, which leaves out what is free, and
// sends it through zstd. It has no use for an earlier copy.
func (t *coldTrip) convert(ctx context.Context) error {
	backing := ""
	if t.c.golden == goldenBoth {
		disks, err := t.lab.images(ctx, coldVM, t.from)
		if err != nil {
			return err
		}
		backing = fmt.Sprintf("-B %s -F %s", disks[0].Backing, disks[0].BackingFormat)
	}
	return t.sh(ctx, fmt.Sprintf(`qemu-img convert -O qcow2 %s -- "$DISK" "$DISK.packed"
zstd -q -3 -T0 -c "$DISK.packed" | $SSH "root@$HOST" "zstd -q -d -c >'$DISK'"
rm "$DISK.packed"`, backing))
}

// casync cuts the disk's content into chunks, which go to a store at the
// destination unless they are there, and puts it together again there.
func (t *coldTrip) casync(ctx context.Context) error {
	return t.sh(ctx, casyncScript+`
qemu-img convert -O raw -- "$DISK" "$DISK.raw"
casync make --what=blob-index --store="root@$HOST:$DISK.castr" "root@$HOST:$DISK.caibx" "$DISK.raw" >/dev/null
$SSH "root@$HOST" "casync extract --store='$DISK.castr' '$DISK.caibx' '$DISK.raw' && qemu-img convert -f raw -O qcow2 '$DISK.raw' '$DISK' && rm '$DISK.raw'"
rm "$DISK.raw"`)
}

// casyncScript lets casync find the ssh that it is to use.
const casyncScript = `printf '#!/bin/sh\nexec %s "$@"\n' "$SSH" >"$SHARED/casync-ssh"
chmod 755 "$SHARED/casync-ssh"
export CASYNC_SSH_PATH="$SHARED/casync-ssh"
`

// casyncGolden fills the store at the destination from the golden image there.
func (t *coldTrip) casyncGolden(ctx context.Context) error {
	disks, err := t.lab.images(ctx, coldVM, t.from)
	if err != nil {
		return err
	}
	_, err = t.lab.exec(ctx, t.to, "sh", "-c", `casync make --what=blob-index --store="$1.castr" "$1.golden.caibx" "$2" >/dev/null`, "sh", t.path, disks[0].Backing)
	return err
}

// drover moves the guest, which is off.
func (t *coldTrip) drover(ctx context.Context) error {
	n, err := t.lab.Node(t.to)
	if err != nil {
		return err
	}
	m, err := t.lab.trial.Move(ctx, coldVM, n.Site+"/"+t.to, "--method", string(drover.Cold))
	if err != nil {
		return err
	}
	if m.State != drover.MoveDone {
		return fmt.Errorf("move %s is %s: %s", m.Name, m.State, m.Fault)
	}
	t.move = &m
	return nil
}

// stepTime is how long a step of a move took.
func stepTime(m *drover.Move, name string) (time.Duration, error) {
	for _, s := range m.Steps {
		if s.Name == name && !s.Ended.IsZero() {
			return s.Ended.Sub(s.Started), nil
		}
	}
	return 0, fmt.Errorf("move %s has not done step %s", m.Name, name)
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
