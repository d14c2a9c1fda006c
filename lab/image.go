package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
)

// goldenDir is where hosts have the images, each in a folder of its name.
const goldenDir = volumesDir + "/golden"

// maxBackingDepth bounds a chain of backing files; qemu itself is slow long before.
const maxBackingDepth = 8

// image is a guest image and where it is. The same files are at the same paths
// in every host that has it: one file of the lab machine, mounted read-only.
type image struct {
	name    string
	sites   []string // empty for all
	cmdline string
	// kernel, initrd and layers[0] (the disk) are files of the lab machine; the
	// others back the one before them.
	kernel, initrd string
	layers         []layer
}

type layer struct {
	path   string
	format string
	bytes  drover.Bytes // virtual size
}

func (i *image) placedAt(site string) bool {
	return len(i.sites) == 0 || slices.Contains(i.sites, site)
}

// The paths of an image's parts in a host; empty when it has no such part.
func (i *image) kernelPath() string { return i.at("kernel", i.kernel) }
func (i *image) initrdPath() string { return i.at("initrd", i.initrd) }

// layerPath is the path of a layer; 0 is the disk.
func (i *image) layerPath(n int) string {
	name := "disk"
	if n > 0 {
		name = fmt.Sprintf("backing%d", n)
	}
	return i.at(name+"."+i.layers[n].format, i.layers[n].path)
}

func (i *image) at(part, source string) string {
	if source == "" {
		return ""
	}
	return filepath.Join(goldenDir, i.name, part)
}

// binds mount the image into a host.
func (i *image) binds() []node.Bind {
	var all []node.Bind
	add := func(source, target string) {
		if source != "" {
			all = append(all, node.Bind{Source: source, Target: target, ReadOnly: true})
		}
	}
	add(i.kernel, i.kernelPath())
	add(i.initrd, i.initrdPath())
	for n, l := range i.layers {
		add(l.path, i.layerPath(n))
	}
	return all
}

// usedImages are the names of the images that a lab needs, sorted.
func usedImages(f *labfile.File) []string {
	used := map[string]bool{}
	for name := range f.Images {
		used[name] = true
	}
	for _, g := range f.Guests {
		used[g.Image] = true
	}
	return slices.Sorted(maps.Keys(used))
}

// checkImages looks at the files that the lab file names, before anything starts.
func checkImages(ctx context.Context, f *labfile.File) labfile.Problems {
	var ps labfile.Problems
	for _, name := range slices.Sorted(maps.Keys(f.Images)) {
		img, at := f.Images[name], "images."+name
		if labfile.Builtin(name) {
			continue
		}
		if img.Kernel != "" {
			if err := checkKernel(f.Resolve(img.Kernel)); err != nil {
				ps = append(ps, f.Problem(at+".kernel", img.Kernel, err.Error()))
			}
		}
		if img.Initrd != "" {
			if err := checkFile(f.Resolve(img.Initrd)); err != nil {
				ps = append(ps, f.Problem(at+".initrd", img.Initrd, err.Error()))
			}
		}
		for _, d := range []struct{ key, path, format string }{
			{"disk", img.Disk, img.Format}, {"backing", img.Backing, img.BackingFormat},
		} {
			if d.path == "" {
				continue
			}
			info, err := guest.CheckImage(ctx, f.Resolve(d.path))
			switch {
			case err != nil:
				ps = append(ps, f.Problem(at+"."+d.key, d.path, cause(err)))
			case info.Format != d.format && d.format == "qcow2":
				ps = append(ps, f.Problem(at+"."+d.key, d.path, fmt.Sprintf("is a %s image, want qcow2, or another format in the file", info.Format)))
			}
		}
	}
	return ps
}

// cause is an error without what was being done.
func cause(err error) string {
	var e *drover.Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}

// checkFile refuses what is not a regular file with something in it.
func checkFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("no such file")
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Size() == 0:
		return errors.New("want a regular file that is not empty")
	}
	return nil
}

// kernelMagic is at kernelMagicAt in every x86 Linux kernel image ("The Linux/x86
// Boot Protocol").
const (
	kernelMagic   = "HdrS"
	kernelMagicAt = 0x202
)

func checkKernel(path string) error {
	if err := checkFile(path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, len(kernelMagic))
	if _, err := f.ReadAt(b, kernelMagicAt); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(b, []byte(kernelMagic)) {
		return errors.New("not a Linux kernel image for x86, want a bzImage")
	}
	return nil
}

// prepareImages builds the built-in images and stages the named ones. A copy is
// made only of a layer that names its backing file, because the name has to be
// the one that the hosts have.
func (l *Lab) prepareImages(ctx context.Context, f *labfile.File) ([]image, error) {
	var all []image
	for _, name := range usedImages(f) {
		in := f.Images[name]
		img := image{name: name, sites: in.Sites, cmdline: in.Cmdline, kernel: f.Resolve(in.Kernel), initrd: f.Resolve(in.Initrd)}
		var err error
		switch {
		case name == labfile.ImageSheep:
			var s guest.Sheep
			s, err = guest.BuildSheep(ctx, l.opt.Log, l.opt.CacheDir)
			img.kernel, img.initrd, img.cmdline = s.Kernel, s.Initrd, "console=ttyS0"
		case name == labfile.ImageDebian:
			var d guest.Debian
			if d, err = guest.BuildDebian(ctx, l.opt.Log, l.opt.CacheDir); err == nil {
				img.kernel, img.initrd, img.cmdline = d.Kernel, d.Initrd, "console=ttyS0 root=/dev/vda"
				err = l.stage(ctx, &img, d.Disk, "raw", "", "")
			}
		case in.Disk != "":
			err = l.stage(ctx, &img, f.Resolve(in.Disk), in.Format, f.Resolve(in.Backing), in.BackingFormat)
		}
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		all = append(all, img)
	}
	return all, nil
}

// stage adds a disk and what backs it to an image. backing, if not empty,
// replaces what the disk itself names.
func (l *Lab) stage(ctx context.Context, img *image, disk, format, backing, backingFormat string) error {
	for path := disk; path != ""; {
		if len(img.layers) == maxBackingDepth {
			return fmt.Errorf("more than %d backing files", maxBackingDepth)
		}
		info, err := guest.CheckImage(ctx, path)
		if err != nil {
			return err
		}
		if format == "" {
			format = info.Format
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		img.layers = append(img.layers, layer{path: abs, format: format, bytes: drover.Bytes(info.VirtualBytes)})
		if backing == "" && format == "qcow2" {
			backing, backingFormat = info.Backing, info.BackingFormat
		}
		path, format = backing, backingFormat
		backing, backingFormat = "", ""
	}
	for n := range len(img.layers) - 1 {
		dir := filepath.Join(l.Dir, imagesDir, img.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		own := filepath.Join(dir, filepath.Base(img.layerPath(n)))
		if err := run(ctx, "cp", "--reflink=auto", "--sparse=always", "--", img.layers[n].path, own); err != nil {
			return err
		}
		img.layers[n].path = own
		if err := run(ctx, "qemu-img", "rebase", "-u", "-b", img.layerPath(n+1), "-F", img.layers[n+1].format, "--", own); err != nil {
			return err
		}
	}
	return nil
}

// run runs a tool; its standard error becomes part of the error.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
