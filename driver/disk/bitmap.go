package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/nbd"
)

// flagChanged of a dirty bitmap's context says that a run has changed.
const flagChanged = 1 << 0

// bitmapInUse marks, in an image at rest, a bitmap that the hypervisor has not
// written back: it died (QEMU, docs/interop/qcow2.rst, "in_use").
const bitmapInUse = "in-use"

// Bitmaps lists those that the header tells of.
func (s *Store) Bitmaps(ctx context.Context, path string) ([]driver.Checkpoint, error) {
	op := "bitmaps of volume " + path
	if err := s.admit(op, path); err != nil {
		return nil, err
	}
	stored, err := s.bitmaps(ctx, path)
	if err != nil {
		return nil, fault(op, err)
	}
	var list []driver.Checkpoint
	for _, b := range stored {
		if c, ours := driver.ParseCheckpoint(b.Name); ours {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b driver.Checkpoint) int {
		if a.Owner != b.Owner {
			return strings.Compare(string(a.Owner), string(b.Owner))
		}
		return int(a.Number - b.Number)
	})
	return list, nil
}

// storedBitmap is one as qemu-img shows it.
type storedBitmap struct {
	Name  string   `json:"name"`
	Flags []string `json:"flags"`
}

// bitmaps asks qemu-img, which takes no lock for it.
func (s *Store) bitmaps(ctx context.Context, path string) ([]storedBitmap, error) {
	v, err := s.observe(path)
	if err != nil {
		return nil, err
	}
	if v.Format != "qcow2" {
		return nil, drover.Errorf(drover.Refused, "", "its format is %s, and only qcow2 can record changes: convert it (qemu-img convert -O qcow2)", v.Format)
	}
	out, err := s.tool(ctx, "info", "--output=json", "-U", "-f", v.Format, path)
	if err != nil {
		return nil, err
	}
	var info struct {
		Specific struct {
			Data struct {
				Compat  string         `json:"compat"`
				Bitmaps []storedBitmap `json:"bitmaps"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return nil, fmt.Errorf("read qemu-img's answer: %w", err)
	}
	if compat := info.Specific.Data.Compat; compat == "0.10" {
		return nil, drover.Errorf(drover.Refused, "", "it is qcow2 of version %s, which cannot record changes: amend it (qemu-img amend -o compat=1.1)", compat)
	}
	return info.Specific.Data.Bitmaps, nil
}

// OpenChanges opens an image through qemu-nbd with a bitmap.
func (s *Store) OpenChanges(ctx context.Context, path string, since driver.Checkpoint) (driver.ImageReader, error) {
	op := "open changes of volume " + path
	if err := errors.Join(s.admit(op, path), since.Validate()); err != nil {
		return nil, err
	}
	stored, err := s.bitmaps(ctx, path)
	if err != nil {
		return nil, fault(op, err)
	}
	i := slices.IndexFunc(stored, func(b storedBitmap) bool { return b.Name == since.String() })
	switch {
	case i < 0:
		return nil, drover.Errorf(drover.NotFound, op, "it has no bitmap %s", since)
	case slices.Contains(stored[i].Flags, bitmapInUse):
		if locked(path) {
			return nil, fault(op, errInUse())
		}
		return nil, drover.Errorf(drover.NotFound, op, "bitmap %s was not written back: the hypervisor died", since)
	}
	chain, err := s.chain(path)
	if err != nil {
		return nil, fault(op, err)
	}
	im, err := s.open(ctx, op, &image{store: s, path: path, bitmap: since.String()}, chain)
	if err != nil {
		return nil, err // and not a typed nil
	}
	return im, nil
}

// RemoveBitmap has qemu-img remove it.
func (s *Store) RemoveBitmap(ctx context.Context, path string, c driver.Checkpoint) error {
	op := "remove bitmap of volume " + path
	if err := errors.Join(s.admit(op, path), c.Validate()); err != nil {
		return err
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	stored, err := s.bitmaps(ctx, path)
	switch {
	case drover.KindOf(err) == drover.Refused:
		return nil // its format cannot have any
	case err != nil:
		return fault(op, err)
	case locked(path):
		return fault(op, errInUse())
	case !slices.ContainsFunc(stored, func(b storedBitmap) bool { return b.Name == c.String() }):
		return nil
	}
	_, err = s.tool(ctx, "bitmap", "--remove", "-f", "qcow2", path, c.String())
	return fault(op, err)
}

// changedExtents reports the runs that a bitmap marks.
func changedExtents(m *merger, off int64, list []nbd.Extent) int64 {
	for _, e := range list {
		if e.Flags&flagChanged != 0 {
			m.add(driver.Extent{Offset: off, Length: int64(e.Length)})
		}
		off += int64(e.Length)
	}
	return off
}
