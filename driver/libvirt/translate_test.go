package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// liveXML is what libvirt 11.3 reports of a running VM, shortened.
const liveXML = `<domain type='kvm' id='7'>
  <name>db1</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <metadata>
    <other:thing xmlns:other="https://example.org/x"><other:vm/></other:thing>
    <drover:vm xmlns:drover="https://drover-vm.org/libvirt/1">
      <drover:probe tcp="192.0.2.7:6379" kind="redis"/>
      <drover:label name="role" value="cache"/>
      <drover:label value="nameless"/>
      <drover:requirement name="max-pause" value="500ms"/>
      <drover:requirement name="speed" value="&lt;high&gt;"/>
      <drover:future/>
    </drover:vm>
  </metadata>
  <memory unit='KiB'>524288</memory>
  <currentMemory unit='KiB'>262144</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/db1.fd</nvram>
    <kernel>/boot/vmlinuz</kernel>
    <initrd>/boot/initrd</initrd>
  </os>
  <cpu mode='custom' match='exact' check='full'>
    <model fallback='forbid'>Skylake-Server-IBRS</model>
    <feature policy='require' name='ss'/>
  </cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/srv/db1.qcow2' index='3'/>
      <backingStore type='file' index='4'>
        <format type='qcow2'/>
        <source file='/srv/mid.qcow2'/>
        <backingStore type='file' index='5'>
          <format type='raw'/>
          <source file='/srv/base.img'/>
          <backingStore/>
        </backingStore>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/shared'/>
      <target dev='vdc' bus='virtio'/>
      <readonly/>
      <shareable/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/>
      <source network='default' portid='x' bridge='virbr0'/>
      <model type='virtio'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:02'/>
      <source bridge='br7'/>
      <model type='e1000'/>
    </interface>
    <interface type='user'>
      <mac address='52:54:00:00:00:03'/>
    </interface>
  </devices>
</domain>`

func TestVMOf(t *testing.T) {
	def, err := parseDomain(liveXML)
	if err != nil {
		t.Fatal(err)
	}
	want := drover.VM{
		Name: "db1", UUID: "4dea22b3-1d52-d8f3-2516-782e98ab3fa0", VCPUs: 4, MemoryBytes: 512 * drover.MiB,
		Machine: "pc-q35-10.0", Accelerator: "kvm", CPU: "Skylake-Server-IBRS",
		Disks: []drover.Disk{
			{Target: "vda", Path: "/srv/db1.qcow2", Format: "qcow2", Backing: []drover.Backing{
				{Path: "/srv/mid.qcow2", Format: "qcow2"}, {Path: "/srv/base.img", Format: "raw"},
			}},
			{Target: "vdb", Path: "rbd:pool/image", Format: "raw", Shared: true},
			{Target: "vdc", Path: "/dev/vg/shared", Format: "raw", Shared: true, ReadOnly: true},
		},
		NICs: []drover.NIC{
			{MAC: "52:54:00:00:00:01", Network: "default", Model: "virtio"},
			{MAC: "52:54:00:00:00:02", Network: "br7", Model: "e1000"},
			{MAC: "52:54:00:00:00:03"},
		},
		Labels: map[string]string{"role": "cache"},
		Probe:  &drover.ProbeTarget{TCP: "192.0.2.7:6379", Kind: "redis"},
		// What is wrong in it is shown later, and hides nothing.
		Requirements: map[string]string{"max-pause": "500ms", "speed": "<high>"},
		Files:        []string{"/boot/vmlinuz", "/boot/initrd", "/usr/share/OVMF/OVMF_CODE.fd", "/var/lib/libvirt/qemu/nvram/db1.fd"},
	}
	if diff := cmp.Diff(want, vmOf(def)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseDomainRefuses(t *testing.T) {
	for _, text := range []string{"", "x", "<domain/>", "<network><name>n</name></network>", "<domain><name>n"} {
		if def, err := parseDomain(text); err == nil {
			t.Errorf("%q: read as %+v", text, def)
		}
	}
}

func TestKinds(t *testing.T) {
	fault := func(code golibvirt.ErrorNumber) error { return golibvirt.Error{Code: uint32(code), Message: "m"} }
	tests := []struct {
		err  error
		want drover.Kind
	}{
		{fault(golibvirt.ErrNoDomain), drover.NotFound},
		{fmt.Errorf("x: %w", fault(golibvirt.ErrOperationTimeout)), drover.Unavailable},
		{fault(golibvirt.ErrInternalError), drover.Internal},
		{golibvirt.ErrInterrupted, drover.Unavailable},
		{io.EOF, drover.Unavailable},
		{&net.OpError{Op: "write", Err: errors.New("broken")}, drover.Unavailable},
		{context.Canceled, drover.Canceled},
		{context.DeadlineExceeded, drover.Unavailable},
		{&unreachableError{context.Canceled}, drover.Canceled},
		{&unreachableError{errors.New("refused")}, drover.Unavailable},
		{drover.Errorf(drover.Exists, "", "taken"), drover.Exists},
		{errors.New("else"), drover.Internal},
	}
	for _, test := range tests {
		if got := drover.KindOf(wrap("op", test.err)); got != test.want {
			t.Errorf("%v is %q, want %q", test.err, got, test.want)
		}
	}
	if wrap("op", nil) != nil {
		t.Error("no error was wrapped into one")
	}
}

func TestBandwidth(t *testing.T) {
	for rate, want := range map[drover.BitRate]uint64{
		0: unlimitedMiB, -1: unlimitedMiB, 1: 1, 8 << 20: 1, 200 * drover.Mbps: 23, 10 * drover.Gbps: 1192,
	} {
		if got := bandwidthMiB(rate); got != want {
			t.Errorf("%s is %d MiB/s, want %d", rate, got, want)
		}
	}
}

func TestTerms(t *testing.T) {
	spec := driver.MigrationSpec{Name: "v", MemorySocket: "/run/m", DiskSocket: "/run/d"}
	if got := termsOf(spec); got.flags&(golibvirt.MigrateNonSharedDisk|golibvirt.MigrateNonSharedInc) != 0 || len(got.params) != 2 {
		t.Errorf("without disks: flags %x, params %v", got.flags, got.params)
	}
	spec.CopyDisks = []string{"vda", "vdb"}
	if got := termsOf(spec); got.flags&golibvirt.MigrateNonSharedDisk == 0 || len(got.params) != 5 {
		t.Errorf("with disks: flags %x, params %v", got.flags, got.params)
	}
	spec.TopOnly = true
	if got := termsOf(spec); got.flags&golibvirt.MigrateNonSharedInc == 0 || got.flags&golibvirt.MigrateNonSharedDisk != 0 {
		t.Errorf("with tops: flags %x", got.flags)
	}
	if got := termsOf(spec); got.flags&golibvirt.MigrateAutoConverge != 0 {
		t.Errorf("without throttling: flags %x", got.flags)
	}
	spec.AutoConverge = true
	got := termsOf(spec)
	values := map[string]any{}
	for _, p := range got.params {
		values[p.Field] = p.Value.I
	}
	if got.flags&golibvirt.MigrateAutoConverge == 0 || values["auto_converge.initial"] != int32(10) || values["auto_converge.increment"] != int32(10) {
		t.Errorf("with throttling: flags %x, params %v", got.flags, values)
	}
}

func TestStats(t *testing.T) {
	param := func(name string, v uint64) golibvirt.TypedParam {
		return golibvirt.TypedParam{Field: name, Value: *golibvirt.NewTypedParamValueUllong(v)}
	}
	got := statsOf([]golibvirt.TypedParam{
		{Field: "operation", Value: *golibvirt.NewTypedParamValueInt(5)},
		param("time_elapsed", 797), param("downtime", 44), param("memory_total", 100), param("memory_processed", 60),
		param("memory_remaining", 40), param("memory_bps", 1000), param("disk_bps", 250), param("disk_total", 7),
		param("disk_processed", 3), param("disk_remaining", 4), param("memory_dirty_rate", 9), param("memory_page_size", 4096),
		param("memory_iteration", 2),
		{Field: "auto_converge_throttle", Value: *golibvirt.NewTypedParamValueInt(30)},
		{Field: "unknown", Value: *golibvirt.NewTypedParamValueString("text")},
	})
	want := driver.MigrationStats{
		MemoryTotalBytes: 100, MemoryDoneBytes: 60, MemoryRemainingBytes: 40, DiskTotalBytes: 7, DiskDoneBytes: 3, DiskRemainingBytes: 4,
		Rate: 10_000, DirtyPagesPerSecond: 9, PageBytes: 4096, Rounds: 2, ThrottlePercent: 30, Pause: 44 * time.Millisecond, Elapsed: 797 * time.Millisecond,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLatestKeepsTheLastEventOfAName(t *testing.T) {
	l := newLatest()
	for _, e := range []driver.VMEvent{{Name: "a", What: "started"}, {Name: "b", What: "defined"}, {Name: "a", What: "stopped"}} {
		l.put(e)
	}
	var got []string
	for e, ok := l.take(); ok; e, ok = l.take() {
		got = append(got, e.Name+" "+e.What)
	}
	if diff := cmp.Diff([]string{"a stopped", "b defined"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestVersions(t *testing.T) {
	for text, want := range map[string]string{"10.0.2": "10.0.2", "7.2": "7.2.0"} {
		v, err := parseVersion(text)
		if err != nil || v.String() != want {
			t.Errorf("%s: %s, %v", text, v, err)
		}
	}
	for _, text := range []string{"", "x.1", "1.y"} {
		if v, err := parseVersion(text); err == nil {
			t.Errorf("%q: read as %s", text, v)
		}
	}
	for machine, want := range map[string]string{"pc-q35-9.2": "9.2.0", "pc-i440fx-10.0": "10.0.0"} {
		if v, ok := machineVersion(machine); !ok || v.String() != want {
			t.Errorf("%s needs %s, %v", machine, v, ok)
		}
	}
	for _, machine := range []string{"q35", "microvm", "pc-q35", "s390-ccw-virtio"} {
		if v, ok := machineVersion(machine); ok {
			t.Errorf("%s needs %s", machine, v)
		}
	}
	if versionText(10_000_002) != "10.0.2" || versionText(11_003_000) != "11.3.0" {
		t.Error("libvirt's packed versions are misread")
	}
}

// TestChecks changes one thing at a time of a VM that this host can run.
func TestChecks(t *testing.T) {
	arch := &libvirtxml.CapsGuestArch{
		Name:     "x86_64",
		Machines: []libvirtxml.CapsGuestMachine{{Name: "pc-q35-10.0"}, {Name: "q35", Canonical: "pc-q35-10.0"}, {Name: "pc-q35-9.2"}},
	}
	type check func(*needs) drover.Check
	tests := []struct {
		name   string
		change func(n *needs)
		check  check
		ok     bool
		warn   bool
	}{
		{"same", func(*needs) {}, (*needs).checkVersion, true, false},
		{"tcg old here", func(n *needs) { n.here.HypervisorVersion = "7.2.0" }, (*needs).checkVersion, false, false},
		{"tcg old source", func(n *needs) { n.source.HypervisorVersion = "7.2.15" }, (*needs).checkVersion, false, false},
		{"kvm old source", func(n *needs) { n.source.HypervisorVersion, n.vm.Accelerator = "7.2.15", "kvm" }, (*needs).checkVersion, true, false},
		{
			"machine too new", func(n *needs) {
				n.vm.Machine, n.vm.Accelerator, n.here.HypervisorVersion = "pc-q35-9.2", "kvm", "8.2.0"
			},
			(*needs).checkVersion, false, false,
		},
		{"downgrade", func(n *needs) { n.source.HypervisorVersion = "10.1.0" }, (*needs).checkVersion, false, true},
		{"machine", func(*needs) {}, (*needs).checkMachine, true, false},
		{"alias means another", func(n *needs) { n.vm.Machine, n.source.Machines = "q35", []string{"pc-q35-9.2"} }, (*needs).checkMachine, false, false},
		{"alias", func(n *needs) { n.vm.Machine, n.source.Machines = "q35", []string{"pc-q35-10.0"} }, (*needs).checkMachine, true, false},
		{"no such machine", func(n *needs) { n.vm.Machine = "pc-q35-11.0" }, (*needs).checkMachine, false, false},
		{"other architecture", func(n *needs) { n.arch, n.archName = nil, "aarch64" }, (*needs).checkCPU, false, false},
		{"default cpu", func(*needs) {}, (*needs).checkCPU, true, false},
		{"passthrough same", func(n *needs) { n.def.CPU = &libvirtxml.DomainCPU{Mode: "host-passthrough"} }, (*needs).checkCPU, true, false},
		{"passthrough other", func(n *needs) {
			n.def.CPU, n.source.CPUModel = &libvirtxml.DomainCPU{Mode: "host-passthrough"}, "EPYC"
		}, (*needs).checkCPU, false, false},
		{"host-model other", func(n *needs) {
			n.def.CPU, n.source.CPUModel = &libvirtxml.DomainCPU{Mode: "host-model"}, "EPYC"
		}, (*needs).checkCPU, false, true},
		{"tcg maximum", func(n *needs) {
			n.def.CPU, n.source.CPUModel = &libvirtxml.DomainCPU{Mode: "maximum"}, "EPYC"
		}, (*needs).checkCPU, true, false},
		{"tcg maximum other qemu", func(n *needs) {
			n.def.CPU, n.source.HypervisorVersion = &libvirtxml.DomainCPU{Mode: "maximum"}, "10.1.0"
		}, (*needs).checkCPU, false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			host := drover.Host{HypervisorVersion: "10.0.2", CPUModel: "Skylake", Machines: []string{"pc-q35-10.0", "pc-q35-9.2"}}
			n := &needs{
				def: &libvirtxml.Domain{}, vm: drover.VM{Machine: "pc-q35-10.0", Accelerator: "tcg"},
				source: host, here: host, arch: arch, archName: "x86_64",
			}
			test.change(n)
			got := test.check(n)
			if got.OK != test.ok || got.Warning != test.warn || got.OK != (got.Fix == "") || got.Detail == "" {
				t.Errorf("%+v, want ok %v, warning %v, and a fix unless ok", got, test.ok, test.warn)
			}
		})
	}
}
