package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/lab/guest/journal"
)

// mountKernelFS mounts what a program expects of a Linux system. The
// initramfs brings the mount points.
func mountKernelFS() error {
	for _, m := range []struct{ fs, at, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", "mode=0755"},
		{"tmpfs", "/run", "mode=0755"},
	} {
		err := unix.Mount(m.fs, m.at, m.fs, unix.MS_NOSUID, m.data)
		if err != nil && !errors.Is(err, unix.EBUSY) { // mounted by the kernel already
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// loadModules loads the modules in dir in the order of their names, which is
// the order of their dependencies: the builder of the initramfs numbers them.
// The files are deleted afterwards to give their memory back.
func loadModules(log *slog.Logger, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return err
	}
	for _, file := range files { // Glob sorts
		if err := loadModule(file); err != nil {
			return fmt.Errorf("load module %s: %w", filepath.Base(file), err)
		}
	}
	log.Info("modules loaded", "count", len(files))
	return os.RemoveAll(dir)
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil // loaded already, or a machine without that hardware
	}
	return err
}

func bootID() (journal.ID, error) {
	var id journal.ID
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, fmt.Errorf("read boot id: %w", err)
	}
	err = id.UnmarshalText([]byte(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", "")))
	return id, err
}
