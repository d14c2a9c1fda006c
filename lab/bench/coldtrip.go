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
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
)

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
