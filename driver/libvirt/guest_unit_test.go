package libvirt

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

func TestAddPlan(t *testing.T) {
	gw := []netip.Addr{netip.MustParseAddr("10.60.0.1"), netip.MustParseAddr("fd00:60::1")}
	for _, c := range []struct {
		name   string
		have   []netip.Prefix
		change driver.GuestAddresses
		want   []string
	}{
		{
			"standby", prefixes("10.50.0.10/24"),
			driver.GuestAddresses{Prefixes: prefixes("10.60.0.20/24", "fd00:60::20/64", "10.50.0.10/24")},
			[]string{
				"address replace 10.60.0.20/32 dev eth0",
				"address replace fd00:60::20/64 dev eth0 nodad noprefixroute valid_lft forever preferred_lft 0",
			},
		},
		{
			"renumber", prefixes("10.50.0.10/24", "10.50.0.11/24", "fd00:50::10/64"),
			driver.GuestAddresses{Prefixes: prefixes("10.60.0.20/24", "fd00:60::20/64"), Gateways: gw, Primary: true},
			[]string{
				"address replace 10.60.0.20/24 dev eth0",
				"address replace 10.50.0.10/32 dev eth0",
				"address replace 10.50.0.11/32 dev eth0",
				"address del 10.50.0.11/24 dev eth0",
				"address del 10.50.0.10/24 dev eth0",
				"route replace 0.0.0.0/0 via 10.60.0.1 dev eth0 src 10.60.0.20 onlink proto 215",
				"address replace fd00:60::20/64 dev eth0 nodad valid_lft forever preferred_lft forever",
				"address replace fd00:50::10/64 dev eth0 nodad noprefixroute valid_lft forever preferred_lft 0",
				"route replace ::/0 via fd00:60::1 dev eth0 src fd00:60::20 onlink proto 215 metric 1",
			},
		},
		{
			"begun before", prefixes("10.60.0.20/32", "10.60.0.20/24", "10.50.0.10/32", "fd00:60::20/128"),
			driver.GuestAddresses{Prefixes: prefixes("10.60.0.20/24", "fd00:60::20/64"), Primary: true},
			[]string{
				"address replace 10.60.0.20/24 dev eth0",
				"address del 10.60.0.20/32 dev eth0",
				"address del fd00:60::20/128 dev eth0",
				"address replace fd00:60::20/64 dev eth0 nodad valid_lft forever preferred_lft forever",
			},
		},
		{
			"same subnet", prefixes("10.50.0.10/24"),
			driver.GuestAddresses{Prefixes: prefixes("10.50.0.20/24"), Primary: true},
			[]string{
				"address replace 10.50.0.20/24 dev eth0",
				"address replace 10.50.0.10/32 dev eth0",
				"address del 10.50.0.10/24 dev eth0",
				"address replace 10.50.0.20/24 dev eth0",
			},
		},
	} {
		if d := cmp.Diff(c.want, addPlan("eth0", c.have, c.change)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestDropPlan(t *testing.T) {
	have := prefixes("10.50.0.10/24", "10.50.0.11/24", "10.50.0.10/32", "fd00::1/64")
	want := []string{"address del 10.50.0.10/24 dev eth0", "address del 10.50.0.10/32 dev eth0", "address replace 10.50.0.11/24 dev eth0"}
	if d := cmp.Diff(want, dropPlan("eth0", have, netip.MustParseAddr("10.50.0.10"))); d != "" {
		t.Error(d)
	}
	if got := dropPlan("eth0", have, netip.MustParseAddr("10.50.0.12")); len(got) != 0 {
		t.Errorf("an address that is not there: %v", got)
	}
}

// TestInterfacesOf: what a guest says is bounded and cannot become a command.
func TestInterfacesOf(t *testing.T) {
	read := func(text string) ([]driver.GuestInterface, error) {
		var list []agentInterface
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatal(err)
		}
		return interfacesOf(list)
	}
	got, err := read(`[{"name":"lo","hardware-address":"00:00:00:00:00:00","ip-addresses":[{"ip-address":"127.0.0.1","prefix":8}]},
		{"name":"tun0"},{"name":"eth0","hardware-address":"52:54:00:AA:00:01","ip-addresses":[
		{"ip-address":"10.0.0.1","prefix":8},{"ip-address":"fe80::1","prefix":64},{"ip-address":"fd00::1","prefix":64}]}]`)
	want := []driver.GuestInterface{{Name: "eth0", MAC: "52:54:00:aa:00:01", Addresses: prefixes("10.0.0.1/8", "fd00::1/64")}}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" || err != nil {
		t.Error(d, err)
	}
	for what, text := range map[string]string{
		"a command":     `[{"name":"eth0\naddress","hardware-address":"52:54:00:00:00:01"}]`,
		"an option":     `[{"name":"-force","hardware-address":"52:54:00:00:00:01"}]`,
		"two words":     `[{"name":"eth0 up","hardware-address":"52:54:00:00:00:01"}]`,
		"a long name":   `[{"name":"eth0123456789abc","hardware-address":"52:54:00:00:00:01"}]`,
		"no name":       `[{"name":"","hardware-address":"52:54:00:00:00:01"}]`,
		"no address":    `[{"name":"eth0","hardware-address":"52:54:00:00:00:01","ip-addresses":[{"ip-address":"x","prefix":8}]}]`,
		"no length":     `[{"name":"eth0","hardware-address":"52:54:00:00:00:01","ip-addresses":[{"ip-address":"10.0.0.1","prefix":33}]}]`,
		"too many":      `[{"name":"eth0","hardware-address":"52:54:00:00:00:01","ip-addresses":[` + strings.Repeat(`{"ip-address":"10.0.0.1","prefix":8},`, maxAddresses) + `{"ip-address":"10.0.0.1","prefix":8}]}]`,
		"too many NICs": "[" + strings.Repeat(`{"name":"e"},`, maxInterfaces) + `{"name":"e"}]`,
	} {
		if list, err := read(text); err == nil {
			t.Errorf("%s: %+v", what, list)
		}
	}
}

func TestExecStatus(t *testing.T) {
	if err := (execStatus{Exited: true}).err(); err != nil {
		t.Error(err)
	}
	err := (execStatus{Code: 2, Err: []byte("RTNETLINK answers:\n File exists\xff" + strings.Repeat("x", 9999))}).err()
	if err == nil || !strings.Contains(err.Error(), `exit status 2: "RTNETLINK answers: File exists`) || len(err.Error()) > 2*maxExecText {
		t.Errorf("%v", err)
	}
	if err := (execStatus{Signal: 9}).err(); err == nil || !strings.Contains(err.Error(), "signal 9") {
		t.Errorf("%v", err)
	}
}

// machineXML has what a definition may have beside what Drover knows of.
const machineXML = `<?xml version='1.0'?>
<!-- a comment with <interface> in it -->
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>d9000000-0000-4000-8000-000000000001</uuid>
  <genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>
  <metadata><other:x xmlns:other="urn:x" a="1 &amp; 2"/><d:vm xmlns:d="https://drover-vm.org/libvirt/1"><d:label name="a" value="b"/><d:probe tcp="192.0.2.7:7"/></d:vm></metadata>
  <sysinfo type='smbios'><system><entry name='uuid'>d9000000-0000-4000-8000-000000000001</entry><entry name='serial'>7</entry></system></sysinfo>
  <os><type>hvm</type><nvram template='/usr/share/t.fd'>/var/lib/libvirt/qemu/nvram/web.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><source file='/images/web.qcow2' index='1'/><backingStore type='file'><source file='/images/web.qcow2'/></backingStore><target dev='vda'/></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/data'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><source file='/images/cd.iso'/><target dev='sda'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan' portid='x' bridge='virbr0'/><target dev='tap-web'/><model type='virtio'/></interface>
    <interface type='direct'><mac address='52:54:00:00:00:02'/><source dev='eth1' mode='bridge'/><link state='down'/></interface>
    <interface type='user'><mac address='52:54:00:00:00:03'/></interface>
    <serial type='file'><source path='/var/log/web.log'/><log file='/var/log/web2.log'/></serial>
    <channel type='unix'><source mode='bind' path='/run/web.agent'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
  <qemu:commandline><qemu:arg value='-a'/></qemu:commandline>
</domain>
`

func retargeted(t *testing.T, to driver.Retarget) string {
	t.Helper()
	def, err := (&Guests{}).Retarget(driver.Definition(machineXML), to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseXML(def); err != nil {
		t.Fatalf("%v\n%s", err, def)
	}
	return string(def)
}

// replaced is machineXML with pairs of old and new text.
func replaced(t *testing.T, pairs ...string) string {
	t.Helper()
	text := machineXML
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%q is not in the definition", pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

// TestRetargetTouchesNothingElse: but for what changes, the text is the same byte
// for byte.
func TestRetargetTouchesNothingElse(t *testing.T) {
	if d := cmp.Diff(machineXML, retargeted(t, driver.Retarget{})); d != "" {
		t.Error(d)
	}
	got := retargeted(t, driver.Retarget{
		NICs: []driver.RetargetNIC{
			{MAC: "52:54:00:00:00:01", Network: "wan"},
			{MAC: "52:54:00:00:00:02", Network: "eth7", NewMAC: "52:54:00:00:00:12"},
		},
		Paths: map[string]string{"/images/web.qcow2": "/images/new.qcow2", "/var/log/web2.log": "/var/log/a&b.log"},
		Probe: &drover.ProbeTarget{TCP: "[fd00::1]:7", HTTP: "http://a/?x=1&y='2'"},
	})
	want := replaced(t,
		"<source network='lan' portid='x' bridge='virbr0'/>", "<source network='wan'/>",
		"<mac address='52:54:00:00:00:02'/><source dev='eth1' mode", "<mac address='52:54:00:00:00:12'/><source dev='eth7' mode",
		"<source file='/images/web.qcow2' index='1'/><backingStore type='file'><source file='/images/web.qcow2'/></backingStore>", "<source file='/images/new.qcow2' index='1'/>",
		"/var/log/web2.log", "/var/log/a&amp;b.log",
		`<d:probe tcp="192.0.2.7:7"/>`, `<d:probe tcp='[fd00::1]:7' http='http://a/?x=1&amp;y=&#39;2&#39;'/>`,
	)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestRetargetClone(t *testing.T) {
	to := driver.Retarget{
		NICs: []driver.RetargetNIC{
			{MAC: "52:54:00:00:00:01", NewMAC: "52:54:00:00:01:01"},
			{MAC: "52:54:00:00:00:02", NewMAC: "52:54:00:00:01:02"},
			{MAC: "52:54:00:00:00:03", NewMAC: "52:54:00:00:01:03"},
		},
		Paths: map[string]string{
			"/images/web.qcow2": "/images/b.qcow2", "/dev/vg/data": "/dev/vg/b",
			"/var/lib/libvirt/qemu/nvram/web.fd": "/var/lib/libvirt/qemu/nvram/b.fd",
		},
		Clone: &driver.RetargetClone{Name: "b", UUID: "d9000000-0000-4000-8000-000000000002"},
	}
	const other = "d9000000-0000-4000-8000-000000000002"
	want := replaced(t,
		"<name>web<", "<name>b<",
		"<uuid>d9000000-0000-4000-8000-000000000001", "<uuid>"+other,
		"<genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>", "<genid></genid>",
		`<d:probe tcp="192.0.2.7:7"/>`, "",
		"<entry name='uuid'>d9000000-0000-4000-8000-000000000001", "<entry name='uuid'>"+other,
		"/nvram/web.fd", "/nvram/b.fd",
		"<source file='/images/web.qcow2' index='1'/><backingStore type='file'><source file='/images/web.qcow2'/></backingStore>", "<source file='/images/b.qcow2' index='1'/>",
		"/dev/vg/data", "/dev/vg/b",
		"52:54:00:00:00:01", "52:54:00:00:01:01", "<target dev='tap-web'/>", "",
		"52:54:00:00:00:02", "52:54:00:00:01:02",
		"52:54:00:00:00:03", "52:54:00:00:01:03",
		"<source mode='bind' path='/run/web.agent'/>", "",
	)
	if d := cmp.Diff(want, retargeted(t, to)); d != "" {
		t.Error(d)
	}
	for _, path := range []string{"/images/web.qcow2", "/dev/vg/data", "/var/lib/libvirt/qemu/nvram/web.fd"} {
		kept := to.Paths[path]
		delete(to.Paths, path)
		if _, err := (&Guests{}).Retarget(driver.Definition(machineXML), to); drover.KindOf(err) != drover.Invalid || !strings.Contains(fmt.Sprint(err), path) {
			t.Errorf("a clone that shares %s: %v", path, err)
		}
		to.Paths[path] = kept
	}
}

func TestRetargetRefuses(t *testing.T) {
	for what, to := range map[string]driver.Retarget{
		"a user network":  {NICs: []driver.RetargetNIC{{MAC: "52:54:00:00:00:03", Network: "br0"}}},
		"a backing image": {Paths: map[string]string{"/images/base.qcow2": "/x"}},
	} {
		if def, err := (&Guests{}).Retarget(driver.Definition(machineXML), to); drover.KindOf(err) != drover.Invalid || def != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestRetargetProbe: a definition gets a place for it where it has none.
func TestRetargetProbe(t *testing.T) {
	own := "<drover:vm xmlns:drover='" + Namespace + "'><drover:probe tcp='a:1'/></drover:vm>"
	for def, want := range map[string]string{
		"<domain/>":                                   "<domain><metadata>" + own + "</metadata></domain>",
		"<domain><metadata/></domain>":                "<domain><metadata>" + own + "</metadata></domain>",
		"<domain><metadata>x</metadata></domain>":     "<domain><metadata>x" + own + "</metadata></domain>",
		"<domain><metadata><vm/></metadata></domain>": "<domain><metadata><vm/>" + own + "</metadata></domain>",
		"<domain><metadata><vm xmlns='" + Namespace + "'/></metadata></domain>": "<domain><metadata><vm xmlns='" + Namespace + "'><probe tcp='a:1'/></vm></metadata></domain>",
	} {
		got, err := (&Guests{}).Retarget(driver.Definition(def), driver.Retarget{Probe: &drover.ProbeTarget{TCP: "a:1"}})
		if err != nil || string(got) != want {
			t.Errorf("%s:\n got %s, %v\nwant %s", def, got, err, want)
		}
	}
}

func TestLinkXML(t *testing.T) {
	for _, c := range []struct {
		mac  string
		up   bool
		want string
	}{
		{"52:54:00:00:00:01", true, ""},
		{"52:54:00:00:00:02", false, ""},
		{"52:54:00:00:00:02", true, "<interface type='direct'><mac address='52:54:00:00:00:02'/><source dev='eth1' mode='bridge'/><link state='up'/></interface>"},
		{"52:54:00:00:00:03", false, "<interface type='user'><mac address='52:54:00:00:00:03'/><link state='down'/></interface>"},
	} {
		if got, err := linkXML(machineXML, c.mac, c.up); err != nil || got != c.want {
			t.Errorf("%s up %v: %s, %v, want %s", c.mac, c.up, got, err, c.want)
		}
	}
}

// FuzzRetarget: whatever a definition is, nothing is changed in it when nothing is
// asked for.
func FuzzRetarget(f *testing.F) {
	f.Add([]byte(machineXML))
	f.Add([]byte("<domain a='1'><b/>&lt;<![CDATA[<c>]]></domain>"))
	f.Fuzz(fuzzOne)
}

func fuzzOne(t *testing.T, def []byte) {
	got, err := (&Guests{}).Retarget(def, driver.Retarget{})
	if err == nil && string(got) != string(def) {
		t.Errorf("%q became %q", def, got)
	}
	if got, err = (&Guests{}).Retarget(def, driver.Retarget{
		NICs:  []driver.RetargetNIC{{MAC: "52:54:00:00:00:01", Network: "x", NewMAC: "52:54:00:00:00:02"}},
		Probe: &drover.ProbeTarget{TCP: "a:1"},
	}); err != nil {
		return
	}
	if _, err := parseXML(got); err != nil {
		t.Errorf("%q became %q: %v", def, got, err)
	}
}
