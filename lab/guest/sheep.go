package guest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/drover-vm/drover"
)

const (
	// sheepBinary is the guest program's file name. It is a program of its
	// own and not a mode of drover's: all of drover would have to fit into
	// the guest's memory, three times while the kernel unpacks it.
	sheepBinary = "drover-sheep"
	sheepSource = "github.com/drover-vm/drover/lab/guest/sheep"
)

// BuildSheep returns the small guest. The guest program is the file
// drover-sheep beside the running executable, as make build puts it there;
// without one it is compiled from the module's source, which is what happens
// under go test. The kernel is downloaded from Debian once. The initramfs is
// named by its content.
func BuildSheep(ctx context.Context, log *slog.Logger, cacheDir string) (Sheep, error) {
	const op = "build the small guest"
	k, err := buildKernel(ctx, log, cacheDir)
	if err != nil {
		return Sheep{}, wrap(op, err)
	}
	release, err := lockCache(ctx, cacheDir, "sheep")
	if err != nil {
		return Sheep{}, wrap(op, err)
	}
	defer release()
	tmp, err := os.MkdirTemp(cacheDir, ".sheep-")
	if err != nil {
		return Sheep{}, wrap(op, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	program, err := findSheep(ctx, tmp)
	if err != nil {
		return Sheep{}, wrap(op, err)
	}
	initrd := filepath.Join(tmp, "initrd")
	sum, err := writeInitrd(initrd, program, k.modules)
	if err != nil {
		return Sheep{}, wrap(op, err)
	}
	final := filepath.Join(cacheDir, fmt.Sprintf("sheep-%x.cpio", sum[:8]))
	if !exists(final) {
		if err := os.Rename(initrd, final); err != nil {
			return Sheep{}, wrap(op, err)
		}
		log.Info("guest built", "initrd", final)
	}
	return Sheep{Kernel: k.image, Initrd: final}, nil
}

// wrap makes err the package's border error, keeping a kind it has already.
func wrap(op string, err error) error {
	kind := drover.KindOf(err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		kind = drover.Canceled
	}
	return drover.E(kind, op, err)
}

// findSheep returns the path of the guest program, compiled into tmp if need
// be.
func findSheep(ctx context.Context, tmp string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), sheepBinary)
	if exists(beside) {
		return beside, nil
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		return "", drover.Errorf(drover.Unavailable, "find the guest program", "no %s and no Go tool to build it with: run make build", beside)
	}
	out := filepath.Join(tmp, sheepBinary)
	cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, sheepSource)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", drover.Errorf(drover.Unavailable, "find the guest program", "no %s, and building it from source failed: %w: %s", beside, err, lastLines(string(text), 3))
	}
	return out, nil
}

// writeInitrd writes an initramfs of program as /init and the modules, in
// their order, and returns its hash. It is not compressed: an emulated
// processor takes longer to unpack it than QEMU to load the difference.
func writeInitrd(path, program string, modules []string) (sum [sha256.Size]byte, err error) {
	f, err := os.Create(path)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	records, err := initrdRecords(program, modules)
	if err != nil {
		return sum, err
	}
	w := cpio.Newc.Writer(io.MultiWriter(f, h))
	cpio.MakeAllReproducible(records)
	if err := cpio.WriteRecords(w, records); err != nil {
		return sum, fmt.Errorf("write initramfs: %w", err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return sum, fmt.Errorf("write initramfs: %w", err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

func initrdRecords(program string, modules []string) ([]cpio.Record, error) {
	var records []cpio.Record
	for _, dir := range []string{"dev", "etc", "modules", "proc", "root", "run", "sys", "tmp"} {
		records = append(records, cpio.Directory(dir, 0o755))
	}
	records = append(records, cpio.CharDev("dev/console", 0o600, 5, 1)) // init's standard streams
	add := func(name, from string, mode uint64) error {
		b, err := os.ReadFile(from)
		if err == nil {
			records = append(records, cpio.StaticFile(name, string(b), mode))
		}
		return err
	}
	if err := add("init", program, 0o755); err != nil {
		return nil, err
	}
	for i, m := range modules {
		if err := add(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(m)), m, 0o644); err != nil {
			return nil, err
		}
	}
	return records, nil
}
