package lab_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/guest"
	"github.com/drover-vm/drover/lab/labfile"
)

// write writes a lab file beside its images and loads it.
func write(t *testing.T, dir, text string) *labfile.File {
	t.Helper()
	path := filepath.Join(dir, "lab.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := labfile.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestOwnImage runs guests of an image that a lab file brings: a kernel, and a
// disk with a backing file that is placed at both sites. One guest has an
// overlay, one a copy; both ask for their address.
func TestOwnImage(t *testing.T) {
	o := options(t)
	o.WaitGuests = true
	sheep, err := guest.BuildSheep(t.Context(), o.Log, guest.DefaultCacheDir)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for from, to := range map[string]string{sheep.Kernel: "vmlinuz", sheep.Initrd: "initrd"} {
		tool(t, "cp", from, filepath.Join(dir, to))
	}
	tool(t, "qemu-img", "create", "-q", "-f", "raw", filepath.Join(dir, "base.raw"), "32M")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", filepath.Join(dir, "top.qcow2"))
	f := write(t, dir, `
name: own
server: a
sites:
  - {name: a, transport: 10.1.0.0/24, hosts: [{name: a1}]}
  - {name: b, transport: 10.2.0.0/24, hosts: [{name: b1}]}
links:
  - {a: a, b: b, rate: 1Gbit, delay: 1ms}
segments:
  - {name: blue, subnet: 10.50.0.0/24, sites: [a, b]}
images:
  mine: {kernel: vmlinuz, initrd: initrd, disk: top.qcow2, cmdline: "console=ttyS0 drover.ip=dhcp"}
guests:
  - {name: over, host: a1, image: mine, memory: 128MiB, segment: blue, address: 10.50.0.11, dhcp: true,
     cmdline: drover.name=over, probe: {http: "http://10.50.0.11:8080/healthz"}, labels: {tier: web}}
  - {name: copy, host: b1, image: mine, memory: 128MiB, segment: blue, address: 10.50.0.12, dhcp: true, machine: pc,
     cmdline: drover.name=copy, probe: {tcp: ":7000", kind: sheep}, disk: {copy: true, size: 48MiB}}
  - {name: later, host: b1, image: sheep, memory: 128MiB, segment: blue, address: 10.50.0.13, autostart: false}
`)
	l := up(t, o, f)
	chain := must(t, l, "a1", "qemu-img info -U --backing-chain /var/lib/libvirt/images/over.qcow2")
	for _, want := range []string{"golden/mine/disk.qcow2", "golden/mine/backing1.raw"} {
		if !strings.Contains(chain, "image: /var/lib/libvirt/images/"+want) {
			t.Errorf("the overlay's chain lacks %s:\n%s", want, chain)
		}
	}
	if info := must(t, l, "b1", "qemu-img info -U /var/lib/libvirt/images/copy.qcow2"); strings.Contains(info, "backing file") ||
		!strings.Contains(info, fmt.Sprint(48<<20)) {
		t.Errorf("want a full copy of 48 MiB:\n%s", info)
	}
	// The golden image is one file, not a copy in each host.
	inode := "stat -c %i /var/lib/libvirt/images/golden/mine/backing1.raw"
	if a, b := must(t, l, "a1", inode), must(t, l, "b1", inode); a != b {
		t.Errorf("the golden images are files %s and %s, want one", a, b)
	}
	if got := must(t, l, "b1", "virsh domstate later"); got != "shut off" {
		t.Errorf("a guest without autostart is %s", got)
	}
	if def := must(t, l, "a1", "virsh dumpxml over"); !strings.Contains(def, `<drover:label name="tier" value="web"`) {
		t.Errorf("the definition lacks the label:\n%s", def)
	}
}

// TestCheck expects what is wrong with files and machine before anything starts.
func TestCheck(t *testing.T) {
	o := options(t)
	dir := t.TempDir()
	for name, content := range map[string]string{"text": "just text", "empty": "", "odd.raw": strings.Repeat("x", 700)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(dir, "good.qcow2"), "4M")
	tool(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "gone.raw", "-F", "raw", filepath.Join(dir, "orphan.qcow2"), "4M")
	f := write(t, dir, `name: wrong
server: a
sites:
  - {name: a, transport: 10.1.0.0/24, hosts: [{name: a1}]}
  - {name: b, transport: 10.2.0.0/24}
links:
  - {a: a, b: b, rate: 1Gbit, delay: 1ms, mtu: 1500}
segments:
  - {name: blue, subnet: 10.50.0.0/24, sites: [a, b]}
images:
  i1: {kernel: nowhere}
  i2: {kernel: text, initrd: empty}
  i3: {disk: text}
  i4: {disk: odd.raw, format: raw}
  i5: {disk: orphan.qcow2}
  i6: {disk: /}
guests:
  - {name: big, host: a1, image: sheep, memory: 900TiB, segment: blue, address: 10.50.0.11, disk: {size: 900TiB}}
`)
	_, err := lab.Up(t.Context(), o, f)
	var ps labfile.Problems
	if !errors.As(err, &ps) || drover.KindOf(err).ExitStatus() != 2 {
		t.Fatalf("%v: want problems of the file", err)
	}
	got := ps.Error()
	for _, want := range []string{
		`lab.yaml:7: links[0].mtu: "1500": segment blue crosses this link, want at least 1550`,
		`lab.yaml:11: images.i1.kernel: "nowhere": no such file`,
		`lab.yaml:12: images.i2.kernel: "text": not a Linux kernel image`,
		`lab.yaml:12: images.i2.initrd: "empty": want a regular file that is not empty`,
		`lab.yaml:13: images.i3.disk: "text"`,
		`lab.yaml:14: images.i4.disk: "odd.raw"`,
		`lab.yaml:15: images.i5.disk: "orphan.qcow2"`,
		`lab.yaml:16: images.i6.disk: "/"`,
		`lab.yaml:17: guests: "900 TiB": the guests and nodes need that much memory`,
		`lab.yaml:17: guests: "900 TiB": the guests' disks can grow to that`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no line %s in:\n%s", want, got)
		}
	}
	if n := strings.Count(got, "\n") + 1; n != 10 {
		t.Errorf("%d lines, want 10:\n%s", n, got)
	}

	long := o
	long.Dir = filepath.Join(o.Dir, strings.Repeat("x", 90))
	tiny, err := labfile.Load("tiny")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Up(t.Context(), long, tiny); drover.KindOf(err) != drover.Invalid || !strings.Contains(err.Error(), "too long a path") {
		t.Errorf("%v: want the folder refused", err)
	}
}
