package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/drover-vm/drover/driver"
)

// confine says whether path names a place below the store's folders, as
// written and after symbolic links.
func (s *Store) confine(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("path %q is not absolute", path)
	case filepath.Clean(path) != path:
		return fmt.Errorf("path %q is not plain: want no dots, no double slashes and none at the end", path)
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("path %q has control characters", path)
	case isTemp(filepath.Base(path)):
		return fmt.Errorf("path %q: names beginning with %q are the store's own", path, tempPrefix)
	}
	if !s.holds(path, s.cfg.Dirs) {
		return fmt.Errorf("path %q is not below the store's folders (%s)", path, strings.Join(s.cfg.Dirs, ", "))
	}
	real, err := realPath(path)
	if err != nil {
		return fmt.Errorf("path %q: %w", path, err)
	}
	dirs := make([]string, 0, len(s.cfg.Dirs))
	for _, d := range s.cfg.Dirs {
		if r, err := realPath(d); err == nil {
			dirs = append(dirs, r)
		}
	}
	if !s.holds(real, dirs) {
		return fmt.Errorf("path %q leads out of the store's folders, to %s", path, real)
	}
	return nil
}

// isTemp reports whether a name is that of an image in the making.
func isTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && !driver.Hidden(name) && !strings.HasPrefix(name, driver.ScratchPrefix)
}

func (s *Store) holds(path string, dirs []string) bool {
	for _, d := range dirs {
		if strings.HasPrefix(path, d+"/") {
			return true
		}
	}
	return false
}

// realPath resolves symbolic links in the part of path that exists.
func realPath(path string) (string, error) {
	rest := ""
	for p := path; ; {
		real, err := filepath.EvalSymlinks(p)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		fi, err := os.Lstat(p)
		switch {
		case err == nil && fi.Mode()&fs.ModeSymlink != 0:
			return "", errors.New("is a symbolic link to nowhere")
		case err == nil:
			continue // made between the two looks
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
		p, rest = filepath.Dir(p), filepath.Join(filepath.Base(p), rest)
	}
}
