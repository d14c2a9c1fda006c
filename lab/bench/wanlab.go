package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
	"github.com/drover-vm/drover/lab/trial"
)

// wanLabName is the name of every lab that the WAN benchmark starts: guests
// and hosts derive their identities from it, and what was saved in one lab is
// restored in the next.
const wanLabName = "benchwan"

// libvirtSocket is where a host's libvirtd listens, in its folder.
const libvirtSocket = "run/libvirt/libvirt-sock"

// wanLab is a fresh lab without running guests. Each sequence of moves gets
// one, so that no way finds anything of another's: no image left at the other
// site, nothing that an agent has kept.
type wanLab struct {
	*lab.Lab
	exe    string
	trial  *trial.Lab
	file   *labfile.File
	client string // "" for none
}

// startWANLab starts the lab of a file with only the named guests, all off.
func startWANLab(ctx context.Context, o Options, path string, guests []string) (*wanLab, error) {
	f, err := labfile.Load(path)
	if err != nil {
		return nil, err
	}
	f.Name = wanLabName
	var kept []labfile.Guest
	for _, name := range guests {
		i := indexGuest(f, name)
		if i < 0 {
			return nil, fmt.Errorf("%s has no guest %q", path, name)
		}
		g := f.Guests[i]
		g.Autostart = new(false)
		kept = append(kept, g)
	}
	f.Guests = kept
	l, err := lab.Up(ctx, lab.Options{Exe: o.Bin}, f)
	if err != nil {
		return nil, err
	}
	w := &wanLab{Lab: l, exe: o.Bin, trial: &trial.Lab{Bin: o.Bin, Name: wanLabName}, file: f}
	for _, n := range l.Nodes {
		if n.Role == topology.Client {
			w.client = n.Name
			break
		}
	}
	return w, nil
}

func indexGuest(f *labfile.File, name string) int {
	for i := range f.Guests {
		if f.Guests[i].Name == name {
			return i
		}
	}
	return -1
}

// down takes the lab down, whatever became of ctx.
func (w *wanLab) down(ctx context.Context) error {
	var own []int
	for _, n := range w.Nodes {
		if pid, err := w.Holder(n.Name); err == nil {
			own = append(own, pid)
		}
	}
	if pid, err := w.EmulatorPID(); err == nil {
		own = append(own, pid)
	}
	_, err := lab.Down(context.WithoutCancel(ctx), lab.Options{Exe: w.exe}, w.file.Name, false)
	// The lab's processes are children of this one, which starts many labs.
	for _, pid := range own {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // what is left is init's
	}
	return err
}

// guest returns a guest as the lab file has it.
func (w *wanLab) guest(name string) *labfile.Guest { return &w.file.Guests[indexGuest(w.file, name)] }

// other returns the first host at another site that has a link to the given
// host's.
func (w *wanLab) other(host string) (string, error) {
	here, err := w.Node(host)
	if err != nil {
		return "", err
	}
	for _, n := range w.Nodes {
		if n.Role != topology.Host || n.Site == here.Site {
			continue
		}
		if _, err := w.LinkNamed(here.Site, n.Site); err == nil {
			return n.Name, nil
		}
	}
	return "", fmt.Errorf("no other site with a host has a link to %s", here.Site)
}

// uri is how virsh on the lab machine reaches a host's libvirtd.
func (w *wanLab) uri(host string) string {
	return "qemu+unix:///system?socket=" + filepath.Join(node.Dir(w.Dir, host), libvirtSocket)
}

// shared is a folder that the lab machine and every node see: its path here.
func (w *wanLab) shared(name string) string { return filepath.Join(w.Dir, "shared", name) }

// sharedInNode is the same folder's path inside a node.
func sharedInNode(name string) string { return filepath.Join(node.LabDir, name) }

// exec runs a command in a node and returns its output.
func (w *wanLab) exec(ctx context.Context, name string, args ...string) (string, error) {
	cmd, err := w.Command(ctx, name, args...)
	if err != nil {
		return "", err
	}
	return output(cmd)
}

// virsh runs virsh against a host's libvirtd, on the lab machine.
func (w *wanLab) virsh(ctx context.Context, host string, args ...string) (string, error) {
	return output(exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", w.uri(host)}, args...)...))
}

// output runs a command; what it says on standard error becomes the error.
func output(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}

// domain reads a guest's persistent definition at a host.
func (w *wanLab) domain(host, name string) (*libvirtxml.Domain, error) {
	var d libvirtxml.Domain
	err := w.call(host, name, func(conn *libvirt.Libvirt, dom libvirt.Domain) error {
		text, err := conn.DomainGetXMLDesc(dom, libvirt.DomainXMLInactive|libvirt.DomainXMLSecure)
		if err != nil {
			return err
		}
		return d.Unmarshal(text)
	})
	return &d, err
}

// call looks a guest up at a host's libvirtd for f.
func (w *wanLab) call(host, name string, f func(*libvirt.Libvirt, libvirt.Domain) error) error {
	conn, err := w.Libvirt(host)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Disconnect() }() // nothing depends on a clean goodbye
	dom, err := conn.DomainLookupByName(name)
	if err == nil {
		err = f(conn, dom)
	}
	if err != nil {
		return fmt.Errorf("%s at %s: %w", name, host, err)
	}
	return nil
}

// disksOf are the files that a domain's writable disks lie in.
func disksOf(d *libvirtxml.Domain) []string {
	var paths []string
	if d.Devices == nil {
		return nil
	}
	for _, disk := range d.Devices.Disks {
		if disk.Source != nil && disk.Source.File != nil && disk.ReadOnly == nil {
			paths = append(paths, disk.Source.File.File)
		}
	}
	return paths
}

// snapshot is a guest at rest: its memory as libvirt saved it, and its disks.
// Every way starts from the same one, bit for bit.
type snapshot struct {
	dir    string
	domain string // definition
	disks  map[string]string
}

const savedMemory = "memory"

// prepare boots a guest in a lab of its own, warms it up and saves it.
func prepare(ctx context.Context, o Options, c *wanCase, name string) (s *snapshot, err error) {
	began := time.Now()
	o.logf("prepare %s: boot and warm it up", name)
	w, err := startWANLab(ctx, o, c.file, []string{name})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	if s, err = w.take(ctx, o, c, name); err != nil {
		if s != nil {
			err = errors.Join(err, s.remove())
		}
		return nil, fmt.Errorf("prepare %s: %w", name, err)
	}
	o.logf("prepare %s: took %.0f s", name, time.Since(began).Seconds())
	return s, nil
}

// take does prepare's work in the lab.
func (w *wanLab) take(ctx context.Context, o Options, c *wanCase, name string) (*snapshot, error) {
	g := w.guest(name)
	def, err := w.adapt(ctx, c, g)
	if err != nil {
		return nil, err
	}
	if _, err := w.virsh(ctx, g.Host, "start", name); err != nil {
		return nil, err
	}
	kind, err := w.awaken(ctx, c, g)
	if err != nil {
		return nil, err
	}
	if err := kind.warm(ctx); err != nil {
		return nil, fmt.Errorf("warm up: %w", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "drover-bench-")
	if err != nil {
		return nil, err
	}
	s := &snapshot{dir: dir, disks: map[string]string{}}
	if s.domain, err = def.Marshal(); err != nil {
		return s, err
	}
	if _, err := w.virsh(ctx, g.Host, "save", name, sharedInNode(savedMemory)); err != nil {
		return s, err
	}
	if err := moveFile(ctx, w.shared(savedMemory), filepath.Join(dir, savedMemory)); err != nil {
		return s, err
	}
	for i, path := range disksOf(def) {
		s.disks[path] = filepath.Join(dir, fmt.Sprintf("disk%d", i))
		if err := copyFile(ctx, w.machinePath(g.Host, path), s.disks[path]); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *snapshot) remove() error { return os.RemoveAll(s.dir) }

// machinePath is the path on the lab machine of what a host calls path.
func (w *wanLab) machinePath(host, path string) string {
	if rest, ok := strings.CutPrefix(path, node.LabDir+"/"); ok {
		return w.shared(rest)
	}
	if rest, ok := strings.CutPrefix(path, "/var/lib/libvirt/"); ok {
		return filepath.Join(node.Dir(w.Dir, host), "lib-libvirt", rest)
	}
	return path
}

// restore brings a saved guest to life in this lab.
func (w *wanLab) restore(ctx context.Context, name string, s *snapshot) error {
	g := w.guest(name)
	for path, saved := range s.disks {
		if err := copyFile(ctx, saved, w.machinePath(g.Host, path)); err != nil {
			return err
		}
	}
	conn, err := w.Libvirt(g.Host)
	if err != nil {
		return err
	}
	_, err = conn.DomainDefineXML(s.domain)
	if err = errors.Join(err, conn.Disconnect()); err != nil {
		return fmt.Errorf("define %s: %w", name, err)
	}
	memory := name + "-" + savedMemory
	if err := copyFile(ctx, filepath.Join(s.dir, savedMemory), w.shared(memory)); err != nil {
		return err
	}
	_, err = w.virsh(ctx, g.Host, "restore", sharedInNode(memory))
	return errors.Join(err, os.Remove(w.shared(memory)))
}

func moveFile(ctx context.Context, from, to string) error {
	if os.Rename(from, to) == nil {
		return nil
	}
	return errors.Join(copyFile(ctx, from, to), os.Remove(from))
}

// copyFile copies with holes, sharing blocks where the file system can.
func copyFile(ctx context.Context, from, to string) error {
	_, err := output(exec.CommandContext(ctx, "cp", "--reflink=auto", "--sparse=always", "--", from, to))
	return err
}

// adapt changes a guest's definition to what the case wants: a disk that both
// hosts share, and a kernel that both have.
func (w *wanLab) adapt(ctx context.Context, c *wanCase, g *labfile.Guest) (*libvirtxml.Domain, error) {
	d, err := w.domain(g.Host, g.Name)
	if err != nil {
		return nil, err
	}
	if c.kernelOf != "" {
		// The same kernel lies with another image that both sites hold.
		for _, p := range []*string{&d.OS.Kernel, &d.OS.Initrd} {
			*p = strings.Replace(*p, "/golden/"+g.Image+"/", "/golden/"+c.kernelOf+"/", 1)
		}
	}
	if c.golden == goldenShared {
		if err := w.shareDisk(ctx, g, d); err != nil {
			return nil, err
		}
	}
	text, err := d.Marshal()
	if err != nil {
		return nil, err
	}
	conn, err := w.Libvirt(g.Host)
	if err != nil {
		return nil, err
	}
	_, err = conn.DomainDefineXMLFlags(text, libvirt.DomainDefineValidate)
	return d, errors.Join(err, conn.Disconnect())
}

// shareDisk puts the guest's disk where both hosts see it, as storage over a
// network would be: raw, and marked as shareable, which is how libvirt and
// Drover know.
func (w *wanLab) shareDisk(ctx context.Context, g *labfile.Guest, d *libvirtxml.Domain) error {
	for i := range d.Devices.Disks {
		disk := &d.Devices.Disks[i]
		if disk.Source == nil || disk.Source.File == nil {
			continue
		}
		raw := sharedInNode(fmt.Sprintf("%s-disk%d.raw", g.Name, i))
		if _, err := w.exec(ctx, g.Host, "qemu-img", "convert", "-O", "raw", "--", disk.Source.File.File, raw); err != nil {
			return err
		}
		disk.Source.File.File, disk.Driver.Type, disk.Shareable = raw, "raw", &libvirtxml.DomainDiskShareable{}
	}
	return nil
}

// libvirtAnswers bounds the restart of a libvirtd.
const libvirtAnswers = 15 * time.Second

// declareShared tells the hosts' libvirtds that the folder which they all see
// is shared storage: they cannot know, and refuse to move a guest whose disk
// lies on what looks like a file system of the host's own.
func (w *wanLab) declareShared(ctx context.Context) error {
	for _, n := range w.Nodes {
		if n.Role != topology.Host {
			continue
		}
		conf, err := os.OpenFile(filepath.Join(n.Dir, "etc-libvirt/qemu.conf"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(conf, "shared_filesystems = [ %q ]\n", node.LabDir)
		if err = errors.Join(err, conf.Close()); err != nil {
			return err
		}
		if _, err := w.Service(ctx, n.Name, node.Restart, "libvirtd"); err != nil {
			return err
		}
		until, cancel := context.WithTimeout(ctx, libvirtAnswers)
		defer cancel()
		for {
			_, err := w.virsh(until, n.Name, "version")
			if err == nil {
				break
			}
			if sleep(until, 250*time.Millisecond) != nil {
				return fmt.Errorf("libvirtd of %s: %w", n.Name, err)
			}
		}
	}
	return nil
}
