package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/journal"
)

// ImageInfo describes a disk image.
type ImageInfo struct {
	// Format is "raw" or "qcow2".
	Format string
	// VirtualBytes is the size of the disk that a guest sees.
	VirtualBytes int64
	// AllocatedBytes is what the file occupies, without backing files.
	AllocatedBytes int64
	// Backing is the full path of the backing file, empty for none, and
	// BackingFormat its format as the image names it, empty when it does
	// not.
	Backing       string
	BackingFormat string
}

// imageFormats are the formats that the lab gives to guests.
var imageFormats = []string{"raw", "qcow2"}

// sectorBytes is the smallest unit of a disk.
const sectorBytes = 512

// CheckImage says what the disk image at path is. It fails with one line when
// the file does not exist (NotFound), or is not a raw or qcow2 disk image or
// names a backing file that is not there (Invalid). Any file of whole
// sectors can be a raw disk; text and other odd sizes are refused.
func CheckImage(ctx context.Context, path string) (ImageInfo, error) {
	const op = "check image"
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return ImageInfo{}, drover.Errorf(drover.NotFound, op, "%s: no such file", path)
	case err != nil:
		return ImageInfo{}, drover.E(drover.Invalid, op, err)
	case fi.IsDir():
		return ImageInfo{}, drover.Errorf(drover.Invalid, op, "%s: is a folder, want a raw or qcow2 image", path)
	}
	info, err := imageInfo(ctx, path)
	if err != nil {
		return ImageInfo{}, drover.E(drover.Invalid, op, fmt.Errorf("%s: not a usable disk image: %w", path, err))
	}
	switch {
	case !slices.Contains(imageFormats, info.Format):
		return ImageInfo{}, drover.Errorf(drover.Invalid, op, "%s: is a %s image, want raw or qcow2", path, info.Format)
	case info.Format == "raw" && fi.Mode().IsRegular() && (fi.Size() == 0 || fi.Size()%sectorBytes != 0):
		return ImageInfo{}, drover.Errorf(drover.Invalid, op, "%s: not a disk image: %d bytes are not whole sectors of %d", path, fi.Size(), sectorBytes)
	case info.Backing != "" && !exists(info.Backing):
		return ImageInfo{}, drover.Errorf(drover.Invalid, op, "%s: its backing file %s does not exist", path, info.Backing)
	}
	return info, nil
}

// imageInfo asks qemu-img. The image may be in use: only its header is read.
func imageInfo(ctx context.Context, path string) (ImageInfo, error) {
	out, err := command(ctx, "", "qemu-utils", "qemu-img", "info", "-U", "--output=json", "--", path)
	if err != nil {
		return ImageInfo{}, err
	}
	var v struct {
		Format         string `json:"format"`
		VirtualBytes   int64  `json:"virtual-size"`
		AllocatedBytes int64  `json:"actual-size"`
		Backing        string `json:"backing-filename"`
		FullBacking    string `json:"full-backing-filename"`
		BackingFormat  string `json:"backing-filename-format"`
	}
	if err := json.Unmarshal(out, &v); err != nil {
		return ImageInfo{}, fmt.Errorf("qemu-img info: %w", err)
	}
	if v.FullBacking == "" {
		v.FullBacking = v.Backing
	}
	return ImageInfo{
		Format: v.Format, VirtualBytes: v.VirtualBytes, AllocatedBytes: v.AllocatedBytes,
		Backing: strings.TrimPrefix(v.FullBacking, "file:"), BackingFormat: v.BackingFormat,
	}, nil
}

// ScanJournal reads the disk journal on the image at path, raw or qcow2 with
// its backing files. No machine may be using the image: what it reads would
// not be one state of the disk. tmpDir holds a sparse copy of a qcow2 image
// meanwhile; empty means the system's.
func ScanJournal(ctx context.Context, path, tmpDir string) (journal.Scan, error) {
	const op = "check journal"
	info, err := CheckImage(ctx, path)
	if err != nil {
		return journal.Scan{}, err
	}
	raw := path
	if info.Format != "raw" {
		tmp, err := os.MkdirTemp(tmpDir, "journal-")
		if err != nil {
			return journal.Scan{}, wrap(op, err)
		}
		defer func() { _ = os.RemoveAll(tmp) }()
		raw = filepath.Join(tmp, "disk")
		if _, err := command(ctx, "", "qemu-utils", "qemu-img", "convert", "-f", info.Format, "-O", "raw", "--", path, raw); err != nil {
			return journal.Scan{}, wrap(op, fmt.Errorf("%s: %w", path, err))
		}
	}
	f, err := os.Open(raw)
	if err != nil {
		return journal.Scan{}, wrap(op, err)
	}
	defer func() { _ = f.Close() }()
	scan, err := journal.Check(f, info.VirtualBytes)
	if err != nil {
		return journal.Scan{}, drover.E(drover.Corrupt, op, fmt.Errorf("%s: %w", path, err))
	}
	return scan, nil
}
