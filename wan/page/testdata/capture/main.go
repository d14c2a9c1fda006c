// Capture makes the streams that the package's golden test reads: it starts
// small guests in QEMU, migrates them the ways that a plain pre-copy
// migration can be set up, and keeps what QEMU wrote, compressed.
//
//	go run ./wan/page/testdata/capture -version 10.0 -out wan/page/testdata
//	go run ./wan/page/testdata/capture -version 7.2 -qemu /opt/qemu-7.2/bin/qemu-system-x86_64 -out wan/page/testdata
//
// and then go test ./wan/page -run Golden -update, and a look at the difference.
// Names of cases as arguments restrict it to them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
)

// guest is what is migrated, and how.
type guest struct {
	name     string
	versions []string // of QEMU; all without
	args     []string
	bios     bool     // QEMU's own firmware instead of the busy one
	caps     []string // migration capabilities
	socket   bool     // to a second QEMU instead of a file
	rounds   bool     // hold it until several rounds have passed
	bitmap   bool     // give disk d0 a dirty bitmap
}

var guests = []guest{
	{name: "plain", args: []string{"-machine", "pc", "-m", "8"}, bios: true},
	{name: "microvm", args: []string{"-machine", "microvm", "-m", "8"}, rounds: true},
	{name: "old-machine", versions: []string{"7.2"}, args: []string{"-machine", "pc-i440fx-2.3", "-m", "8"}, rounds: true},
	{
		// What libvirt asks for in a peer-to-peer migration with disks.
		name: "return-path", args: []string{"-machine", "q35", "-m", "8"}, rounds: true, socket: true,
		caps: []string{"return-path", "events", "pause-before-switchover"},
	},
	{name: "postcopy-advised", args: []string{"-machine", "pc", "-m", "8"}, rounds: true, socket: true, caps: []string{"postcopy-ram", "return-path"}},
	{name: "xbzrle", args: []string{"-machine", "pc", "-m", "8"}, rounds: true, caps: []string{"xbzrle"}},
	{name: "compress", versions: []string{"7.2"}, args: []string{"-machine", "pc", "-m", "8"}, rounds: true, caps: []string{"compress"}},
	{
		name: "ignore-shared", rounds: true, caps: []string{"x-ignore-shared"},
		args: []string{"-machine", "pc,memory-backend=m", "-m", "8", "-object", "memory-backend-file,id=m,size=8M,mem-path=ram,share=on"},
	},
	{
		name: "dirty-bitmaps", rounds: true, caps: []string{"dirty-bitmaps"}, bitmap: true,
		args: []string{"-machine", "pc", "-m", "8", "-blockdev", "driver=null-co,node-name=d0,size=67108864"},
	},
	{
		name: "virtio-mem", rounds: true,
		args: []string{
			"-machine", "q35", "-m", "8M,slots=1,maxmem=1G", "-object", "memory-backend-ram,id=m,size=128M",
			"-device", "virtio-mem-pci,memdev=m,requested-size=0",
		},
	},
}

// enoughRounds makes pages that are sent three times, so that there are
// differences for QEMU to encode. The set-up counts as a round.
const enoughRounds = 8

// limit is for one guest; each takes a few seconds.
const limit = 30 * time.Second

func main() {
	version := flag.String("version", "10.0", "QEMU's version, the beginning of the files' names")
	qemu := flag.String("qemu", "qemu-system-x86_64", "QEMU")
	out := flag.String("out", ".", "folder of the captures")
	flag.Parse()
	for _, g := range guests {
		if flag.NArg() > 0 && !slices.Contains(flag.Args(), g.name) ||
			len(g.versions) > 0 && !slices.Contains(g.versions, *version) {
			continue
		}
		file := filepath.Join(*out, *version+"-"+g.name+".stream.zst")
		if err := capture(*qemu, g, file); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", g.name, err)
			os.Exit(1)
		}
		fmt.Println(file)
	}
}

func capture(qemu string, g guest, file string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "capture-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if !g.bios {
		if err := os.WriteFile(filepath.Join(dir, "firmware"), firmware(), 0o644); err != nil {
			return err
		}
		g.args = append(g.args, "-bios", "firmware")
	}
	source, err := start(ctx, qemu, dir, "source", g.args)
	if err != nil {
		return err
	}
	defer source.stop()
	uri := "exec:cat > stream"
	if g.socket {
		target, err := start(ctx, qemu, dir, "target", append(g.args, "-incoming", "defer"))
		if err != nil {
			return err
		}
		defer target.stop()
		if err := target.capabilities(g.caps); err != nil {
			return err
		}
		if err := target.do("migrate-incoming", map[string]any{"uri": "unix:target.sock"}); err != nil {
			return err
		}
		relayed, err := relay(dir)
		if err != nil {
			return err
		}
		defer func() { <-relayed }()
		uri = "unix:relay.sock"
	}
	if err := migrate(source, g, uri); err != nil {
		return err
	}
	return compress(filepath.Join(dir, "stream"), file)
}

// migrate runs a migration to its end.
func migrate(source *machine, g guest, uri string) error {
	time.Sleep(time.Second) // the firmware is through with what it does first
	if g.bitmap {
		if err := source.do("block-dirty-bitmap-add", map[string]any{"node": "d0", "name": "b0"}); err != nil {
			return err
		}
	}
	if err := source.capabilities(g.caps); err != nil {
		return err
	}
	if g.rounds {
		// The busy firmware's 16 pages do not go into a millisecond of this.
		if err := source.do("migrate-set-parameters", map[string]any{"max-bandwidth": 1 << 20, "downtime-limit": 1}); err != nil {
			return err
		}
	}
	if err := source.do("migrate", map[string]any{"uri": uri}); err != nil {
		return err
	}
	for {
		var m struct {
			Status string `json:"status"`
			RAM    struct {
				Rounds int `json:"dirty-sync-count"`
			} `json:"ram"`
			Error string `json:"error-desc"`
		}
		if err := source.ask("query-migrate", nil, &m); err != nil {
			return err
		}
		switch {
		case m.Status == "completed":
			return nil
		case m.Status == "failed", m.Status == "cancelled":
			return errors.New("migration " + m.Status + ": " + m.Error)
		case m.Status == "pre-switchover":
			if err := source.do("migrate-continue", map[string]any{"state": "pre-switchover"}); err != nil {
				return err
			}
		case m.RAM.Rounds > enoughRounds:
			if err := source.do("migrate-set-parameters", map[string]any{"downtime-limit": 2000}); err != nil {
				return err
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// firmware is 64 KiB that count in the first word of each of 16 pages for ever.
func firmware() []byte {
	b := make([]byte, 64<<10)
	copy(b, []byte{
		0xb8, 0x00, 0x20, // mov ax, 0x2000
		0x8e, 0xd8, // mov ds, ax
		0x31, 0xf6, // xor si, si
		0xff, 0x04, // inc word [si]
		0x81, 0xc6, 0x00, 0x10, // add si, 0x1000
		0xeb, 0xf8, // jmp to inc
	})
	copy(b[0xfff0:], []byte{0xea, 0x00, 0x00, 0x00, 0xf0}) // reset: jmp f000:0000
	return b
}

// relay passes a migration from relay.sock on to target.sock and keeps what the
// source sends.
func relay(dir string) (done <-chan error, err error) {
	l, err := net.Listen("unix", filepath.Join(dir, "relay.sock"))
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, "stream"))
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	ch := make(chan error, 1)
	go func() {
		defer l.Close()
		defer f.Close()
		ch <- pass(l, f, filepath.Join(dir, "target.sock"))
	}()
	return ch, nil
}

func pass(l net.Listener, keep io.Writer, to string) error {
	from, err := l.Accept()
	if err != nil {
		return err
	}
	defer from.Close()
	target, err := net.Dial("unix", to)
	if err != nil {
		return err
	}
	defer target.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(from, target) // ends with the target
	}()
	_, err = io.Copy(io.MultiWriter(keep, target), from)
	_ = target.Close()
	<-back
	return err
}

func compress(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return err
	}
	return os.WriteFile(to, enc.EncodeAll(b, nil), 0o644)
}

func start(ctx context.Context, qemu, dir, name string, args []string) (*machine, error) {
	args = append([]string{
		"-name", name, "-nodefaults", "-display", "none", "-vga", "none", "-accel", "tcg",
		"-qmp", "unix:" + name + ".qmp,server=on,wait=off",
	}, args...)
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	m := &machine{cmd: cmd}
	if err := m.connect(ctx, filepath.Join(dir, name+".qmp")); err != nil {
		m.stop()
		return nil, err
	}
	return m, nil
}
