package guest

import (
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
)

const (
	// DebianDiskBytes is the virtual size of the Debian guest's disk.
	DebianDiskBytes = 3 << 30
	// debianSuite is the Debian release of the guest.
	debianSuite = "bookworm"
	// debianRoomBytes is what a build needs for a while: the unpacked system
	// and the image.
	debianRoomBytes = 3 << 30
)

// recipe is all that the Debian image is made of besides Debian; its hash
// names the image.
//
//go:embed debian
var recipe embed.FS

// BuildDebian returns the Debian guest: PostgreSQL 15 with a database bench
// made by pgbench -i -s 5, Redis, and nginx with a sparse file /1g of 1 GiB,
// listening on all addresses without passwords (for labs only), beside the
// small guest's own services and QEMU's guest agent.
// The first call takes about a minute and needs root, debootstrap, e2fsprogs,
// util-linux and an archive that apt knows; later ones find the image in the
// cache, by the hash of its recipe.
func BuildDebian(ctx context.Context, log *slog.Logger, cacheDir string) (Debian, error) {
	const op = "build the Debian guest"
	sheep, err := BuildSheep(ctx, log, cacheDir)
	if err != nil {
		return Debian{}, err
	}
	release, err := lockCache(ctx, cacheDir, "debian")
	if err != nil {
		return Debian{}, wrap(op, err)
	}
	defer release()
	name, err := debianName()
	if err != nil {
		return Debian{}, wrap(op, err)
	}
	d := Debian{Kernel: sheep.Kernel, Initrd: sheep.Initrd, Disk: filepath.Join(cacheDir, name)}
	if exists(d.Disk) {
		return d, nil
	}
	began := time.Now()
	if err := buildDebianDisk(ctx, log, cacheDir, d.Disk); err != nil {
		return Debian{}, wrap(op, err)
	}
	log.Info("guest built", "disk", d.Disk, "took", time.Since(began).Round(time.Second))
	return d, nil
}

// debianName names the image by its recipe.
func debianName() (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, debianSuite, DebianDiskBytes)
	err := fs.WalkDir(recipe, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := recipe.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
		return err
	})
	return fmt.Sprintf("debian-%x.img", h.Sum(nil)[:8]), err
}

func buildDebianDisk(ctx context.Context, log *slog.Logger, cacheDir, final string) error {
	if os.Geteuid() != 0 {
		return drover.Errorf(drover.Refused, "", "needs root: debootstrap makes files of other users")
	}
	if err := requireRoom(cacheDir, debianRoomBytes); err != nil {
		return err
	}
	for _, tool := range []struct{ name, pkg string }{{"debootstrap", "debootstrap"}, {"mke2fs", "e2fsprogs"}, {"unshare", "util-linux"}} {
		if _, err := command(ctx, "", tool.pkg, tool.name, "--version"); drover.KindOf(err) == drover.Unavailable {
			return err
		}
	}
	work, err := os.MkdirTemp(cacheDir, ".debian-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	files := filepath.Join(work, "recipe")
	if err := os.CopyFS(files, recipe); err != nil {
		return err
	}
	mirror := aptMirror(ctx)
	log.Info("build Debian guest, about a minute", "suite", debianSuite, "mirror", mirror)
	// In namespaces of its own nothing that the build mounts or starts can
	// outlive it, however it ends.
	_, err = command(ctx, work, "util-linux", "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child",
		"bash", filepath.Join(files, "debian/build.sh"), work, mirror, debianSuite, strconv.Itoa(DebianDiskBytes), filepath.Join(files, "debian"))
	if err != nil {
		return err
	}
	disk := filepath.Join(work, "disk")
	if err := os.Chmod(disk, 0o444); err != nil { // shared: nobody may write to it
		return err
	}
	return os.Rename(disk, final)
}

// requireRoom fails when the file system of dir has less than want bytes.
func requireRoom(dir string, want int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("free space in %s: %w", dir, err)
	}
	if free := int64(s.Bavail) * s.Bsize; free < want {
		return drover.Errorf(drover.Exhausted, "", "%s has %s free, the build needs %s", dir, drover.Bytes(free), drover.Bytes(want))
	}
	return nil
}

// aptMirror returns the archive, or "", that apt uses on this machine for the
// guest's release.
func aptMirror(ctx context.Context) string {
	out, err := command(ctx, "", "apt", "apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return "" // not a Debian machine; debootstrap will say more
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == debianSuite && f[1] == "main" && strings.HasPrefix(f[2], "http") {
			return strings.TrimSuffix(f[2], "/")
		}
	}
	return ""
}
