package guest

import (
	"context"
	"debug/elf"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
)

// kernelPackage is Debian's kernel for virtual machines; it depends on the
// package of the current version.
const kernelPackage = "linux-image-cloud-amd64"

// wantModules are the modules that a guest needs; what they depend on is
// found in the modules themselves.
var wantModules = []string{
	"virtio_pci", "virtio_net", "virtio_blk", // devices
	"virtio_console",  // the guest agent's port
	"virtio_rng",      // random numbers at once where the machine has the device
	"virtio_balloon",  // lets QEMU read the guest's memory statistics
	"button", "evdev", // ACPI power button, and reading it
}

// kernel is an unpacked kernel.
type kernel struct {
	image   string   // path of vmlinuz
	modules []string // paths in the order in which they have to be loaded
}

// buildKernel returns the cached kernel, downloaded from Debian on the first
// call. Later versions in the archive are not looked for: deleting the
// folder asks for a new one.
func buildKernel(ctx context.Context, log *slog.Logger, cacheDir string) (kernel, error) {
	release, err := lockCache(ctx, cacheDir, "kernel")
	if err != nil {
		return kernel{}, err
	}
	defer release()
	dir := filepath.Join(cacheDir, "kernel")
	if !exists(dir) {
		if err := unpackKernel(ctx, log, cacheDir, dir); err != nil {
			return kernel{}, fmt.Errorf("get kernel: %w", err)
		}
	}
	k := kernel{image: filepath.Join(dir, "vmlinuz")}
	if k.modules, err = orderModules(filepath.Join(dir, "modules"), wantModules); err != nil {
		return kernel{}, fmt.Errorf("kernel in %s: %w", dir, err)
	}
	return k, nil
}

// unpackKernel downloads the kernel's package and leaves vmlinuz and
// modules/*.ko in dir.
func unpackKernel(ctx context.Context, log *slog.Logger, cacheDir, dir string) (err error) {
	tmp, err := os.MkdirTemp(cacheDir, ".kernel-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	pkg, err := currentKernelPackage(ctx)
	if err != nil {
		return err
	}
	log.Info("download guest kernel", "package", pkg)
	if _, err := command(ctx, tmp, "apt", "apt-get", "download", "-q", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("download %s: %d packages came (%w)", pkg, len(debs), err)
	}
	if _, err := command(ctx, tmp, "dpkg", "dpkg", "-x", debs[0], filepath.Join(tmp, "deb")); err != nil {
		return err
	}
	out := filepath.Join(tmp, "out")
	if err := os.MkdirAll(filepath.Join(out, "modules"), 0o755); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(tmp, "deb/boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("package %s: %d kernels in it (%w)", pkg, len(images), err)
	}
	if err := os.Rename(images[0], filepath.Join(out, "vmlinuz")); err != nil {
		return err
	}
	if err := collectModules(filepath.Join(tmp, "deb/lib/modules"), filepath.Join(out, "modules")); err != nil {
		return err
	}
	return os.Rename(out, dir)
}

// currentKernelPackage returns the package that kernelPackage depends on.
func currentKernelPackage(ctx context.Context) (string, error) {
	out, err := command(ctx, "", "apt", "apt-cache", "depends", "--important", kernelPackage)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if pkg, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(pkg, "linux-image-") {
			return pkg, nil
		}
	}
	return "", drover.Errorf(drover.Unavailable, "find "+kernelPackage, "unknown to apt: run apt-get update")
}

// collectModules moves all modules below from into one folder.
func collectModules(from, to string) error {
	return filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".ko" {
			return err
		}
		return os.Rename(path, filepath.Join(to, e.Name()))
	})
}

// orderModules returns the files of the wanted modules and of all that they
// need, each after what it needs.
func orderModules(dir string, want []string) ([]string, error) {
	var order []string
	var visit func(name string) error
	visit = func(name string) error {
		file := filepath.Join(dir, name+".ko")
		if !exists(file) { // file names have a dash where some names have an underscore
			file = filepath.Join(dir, strings.ReplaceAll(name, "_", "-")+".ko")
		}
		if slices.Contains(order, file) {
			return nil
		}
		needs, err := moduleNeeds(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, name := range want {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleNeeds reads the names of the modules that a module depends on from
// its .modinfo section: NUL-terminated key=value strings.
func moduleNeeds(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s: no .modinfo section", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if needs, ok := strings.CutPrefix(entry, "depends="); ok && needs != "" {
			return strings.Split(needs, ","), nil
		}
	}
	return nil, nil
}
