package labfile_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/files"
	"github.com/drover-vm/drover/lab/labfile"
)

// good is a lab file with a bit of everything; the tests change lines of it.
const good = `name: lab1
server: a
sites:
  - name: a
    transport: 10.1.0.0/24
    access: 10.1.9.0/24
    hosts:
      - {name: a1, memory: 4GiB}
  - name: b
    location: {lat: 50, lon: 8}
    transport: 10.2.0.0/24
    hosts:
      - {name: b1, address: 10.2.0.9}
links:
  - {a: a, b: b, rate: 100Mbit, rtt: 50ms, jitter: 1ms, loss: 0.1%, queue: 1MiB}
segments:
  - {name: blue, subnet: 10.50.0.0/24, sites: [a, b]}
clients:
  - {name: c1, site: a, address: 10.1.9.10}
images:
  tool: {kernel: vmlinuz, disk: disk.qcow2}
  debian: {sites: [a]}
guests:
  - {name: g1, host: a1, image: sheep, memory: 256MiB, segment: blue, address: 10.50.0.11}
  - {name: g2, host: b1, image: tool, memory: 512MiB, segment: blue, address: 10.50.0.12, disk: {copy: true}}
`

func TestDefaults(t *testing.T) {
	f, err := labfile.Parse("lab.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	g := f.Guests[0]
	for _, c := range []struct{ what, got, want string }{
		{"host address", f.Sites[0].Hosts[0].Address.String(), "10.1.0.2"},
		{"given host address", f.Sites[1].Hosts[0].Address.String(), "10.2.0.9"},
		{"server address", f.ServerAddress.String(), "10.1.0.3"},
		{"gateway", f.Segments[0].Gateway.String(), "10.50.0.1"},
		{"link name", f.Links[0].Name, "a-b"},
		{"one-way delay", f.Links[0].OneWay().String(), "25ms"},
		{"mtu", fmt.Sprint(f.Links[0].MTU), "1600"},
		{"accel", f.Accel, "auto"},
		{"machine", g.Machine, "q35"},
		{"vcpus", fmt.Sprint(g.VCPUs), "1"},
		{"starts", fmt.Sprint(g.Starts()), "true"},
		{"sheep's probe", fmt.Sprint(*g.Probe), "{10.50.0.11:7000 sheep http://10.50.0.11:8080/healthz}"},
		{"image format", f.Images["tool"].Format, "qcow2"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
	if !strings.HasPrefix(string(g.MAC), "52:54:00:") || g.MAC == f.Guests[1].MAC {
		t.Errorf("addresses %s and %s: want two of QEMU's range", g.MAC, f.Guests[1].MAC)
	}
}

// TestBad changes one line of the good file and expects one line about it.
func TestBad(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"name: lab1", "name: Lab_1", `lab.yaml:1: name: "Lab_1": want a name of up to 20`},
		{"name: lab1\n", "", `lab.yaml:1: name: the key is missing, want a name`},
		{"name: lab1", "name: [lab1]", `lab.yaml:1: name: "a list": want a name`},
		{"name: lab1", "nmae: lab1\nname: lab1", "lab.yaml:1: nmae: unknown key, want one of name, accel, routing, sites"},
		{"name: lab1", "name: lab1\naccel: fast", `lab.yaml:2: accel: "fast": want one of auto, kvm, tcg`},
		{"server: a\n", "", "lab.yaml:1: server: the key is missing, want the name of the site"},
		{"server: a", "server: x", `lab.yaml:2: server: "x": unknown site, want one of a, b`},
		{"transport: 10.1.0.0/24", "transport: 10.1.0.1/24", `lab.yaml:5: sites[0].transport: "10.1.0.1/24": want a subnet`},
		{"transport: 10.1.0.0/24", "transport: 10.1.0.0/31", `lab.yaml:5: sites[0].transport: "10.1.0.0/31": want a subnet`},
		{"transport: 10.1.0.0/24", "transport: fd00::/64", `lab.yaml:5: sites[0].transport: "fd00::/64": want a subnet`},
		{"transport: 10.2.0.0/24", "transport: 10.0.0.0/9", `lab.yaml:11: sites[1].transport: "10.0.0.0/9": overlaps 10.1.0.0/24 (sites[0].transport)`},
		{"subnet: 10.50.0.0/24", "subnet: 100.127.8.0/24", `overlaps 100.127.0.0/16 (the addresses of the WAN links)`},
		{"name: b\n", "name: a\n", `lab.yaml:9: sites[1].name: "a": two sites have this name`},
		{"lat: 50,", "lat: 95,", `lab.yaml:10: sites[1].location.lat: "95": want degrees from -90 to 90`},
		{"lat: 50,", "lat: north,", `lab.yaml:10: sites[1].location.lat: "north": want a latitude`},
		{"name: a1", "name: edge-a", `lab.yaml:8: sites[0].hosts[0].name: "edge-a": the name is taken by sites[0].name`},
		{"name: a1", "name: server", `lab.yaml:8: sites[0].hosts[0].name: "server": the name is taken by the server`},
		{"name: a1", "name: averylonghostname", `want a name of up to 11`},
		{"{name: a1, memory: 4GiB}", "a1", `lab.yaml:8: sites[0].hosts[0]: "a1": want keys and values`},
		{"memory: 4GiB", "memory: 128MiB", `lab.yaml:8: sites[0].hosts[0].memory: "128 MiB": the guests on a1 take 256 MiB`},
		{"10.2.0.9", "10.3.0.9", `lab.yaml:13: sites[1].hosts[0].address: "10.3.0.9": not in the transport subnet 10.2.0.0/24`},
		{"10.2.0.9", "10.2.0.255", `lab.yaml:13: sites[1].hosts[0].address: "10.2.0.255": the network's own or broadcast`},
		{"10.2.0.9", "10.2.0.1", `lab.yaml:13: sites[1].hosts[0].address: "10.2.0.1": the address is taken by the edge of site b`},
		{"rate: 100Mbit", "rate: 0", `lab.yaml:15: links[0].rate: "0": want a rate of at least 1kbit`},
		{"rate: 100Mbit", "rate: -5Mbit", `lab.yaml:15: links[0].rate: "-5Mbit": want a rate`},
		{"rate: 100Mbit", "rate: fast", `lab.yaml:15: links[0].rate: "fast": want a rate`},
		{"rate: 100Mbit, ", "", `lab.yaml:15: links[0].rate: the key is missing, want a rate`},
		{"rtt: 50ms", "delay: -25ms", `lab.yaml:15: links[0].delay: "-25ms": want a time from 0s to 10s`},
		{"rtt: 50ms", "rtt: 50ms, delay: 25ms", `lab.yaml:15: links[0].rtt: "50ms": delay is given too`},
		{", rtt: 50ms", "", `lab.yaml:15: links[0].delay: the key is missing, want delay (one way), rtt, or a location at both sites`},
		{"loss: 0.1%", "loss: 100%", `lab.yaml:15: links[0].loss: "100%": want a share`},
		{"queue: 1MiB", "queue: 1GiB", `lab.yaml:15: links[0].queue: "1073741824": want at most 64 MiB`},
		{"queue: 1MiB", "mtu: 500", `lab.yaml:15: links[0].mtu: "500": want a whole number from 1280 to 9000`},
		{"queue: 1MiB", "mtu: 0", `lab.yaml:15: links[0].mtu: "0": want a whole number`},
		{"queue: 1MiB", "mtu: 1.5k", `lab.yaml:15: links[0].mtu: "1.5k": want a whole number`},
		{"{a: a, b: b,", "{a: a, b: z,", `lab.yaml:15: links[0].b: "z": unknown site, want one of a, b`},
		{"{a: a, b: b,", "{a: a, b: a,", `lab.yaml:15: links[0].b: "a": both ends are the same site`},
		{"segments:", "  - {a: b, b: a, rate: 1Mbit, delay: 0}\nsegments:", `lab.yaml:16: links[1]: b and a are joined already`},
		{"sites: [a, b]", "sites: [a, q]", `lab.yaml:17: segments[0].sites[1]: "q": unknown site`},
		{"sites: [a, b]", "sites: [a, b, a]", `lab.yaml:17: segments[0].sites[2]: "a": the site is there twice`},
		{"sites: [a, b]", "sites: [a]", `lab.yaml:25: guests[1].segment: "blue": the segment does not exist at site b`},
		{"sites: [a, b]", "sites: a", `lab.yaml:17: segments[0].sites: "a": want a list of site names`},
		{"name: blue, ", "name: net, ", `lab.yaml:17: segments[0].name: "net": the name is taken`},
		{"subnet: 10.50.0.0/24", "subnet: 10.50.0.0/24, gateway: 10.51.0.1", `lab.yaml:17: segments[0].gateway: "10.51.0.1": not in the segment's subnet`},
		{"site: a, address: 10.1.9.10", "site: b, address: 10.1.9.10", `lab.yaml:19: clients[0].site: "b": the site has no access subnet`},
		{"address: 10.1.9.10", "address: 10.1.8.10", `lab.yaml:19: clients[0].address: "10.1.8.10": not in the access subnet 10.1.9.0/24`},
		{"address: 10.1.9.10", "address: nowhere", `lab.yaml:19: clients[0].address: "nowhere": want an IPv4 address`},
		{"kernel: vmlinuz, disk: disk.qcow2", "sites: [a]", `lab.yaml:21: images.tool: want a kernel, a disk or both`},
		{"disk: disk.qcow2", "disk: disk.qcow2, format: vmdk", `lab.yaml:21: images.tool.format: "vmdk": want one of raw, qcow2`},
		{"debian: {sites: [a]}", "debian: {sites: [a], kernel: x}", `lab.yaml:22: images.debian.kernel: "x": this image is built in`},
		{"host: a1", "host: a9", `lab.yaml:24: guests[0].host: "a9": unknown host, want one of a1, b1`},
		{"image: sheep", "image: shep", `lab.yaml:24: guests[0].image: "shep": unknown image, want sheep, debian or one of debian, tool`},
		{
			"host: b1, image: tool, memory: 512MiB, segment: blue, address: 10.50.0.12, disk: {copy: true}", "host: b1, image: debian, memory: 512MiB, segment: blue, address: 10.50.0.12",
			`lab.yaml:25: guests[1].image: "debian": the image is not placed at site b`,
		},
		{"memory: 256MiB", "memory: 64MiB", `lab.yaml:24: guests[0].memory: "64 MiB": want at least 96 MiB`},
		{"memory: 256MiB", "memory: lots", `lab.yaml:24: guests[0].memory: "lots": want a size such as 256MiB`},
		{"memory: 256MiB", "memory: 256MiB, vcpus: 0", `lab.yaml:24: guests[0].vcpus: "0": want a whole number from 1 to 64`},
		{"memory: 256MiB", "memory: 256MiB, autostart: maybe", `lab.yaml:24: guests[0].autostart: "maybe": want true or false`},
		{"memory: 256MiB", "memory: 256MiB, mac: 01:00:00:00:00:01", `lab.yaml:24: guests[0].mac: "01:00:00:00:00:01": want a unicast address`},
		{"memory: 256MiB", "memory: 256MiB, probe: {kind: sheep}", `lab.yaml:24: guests[0].probe: want tcp, http or both`},
		{"memory: 256MiB", "memory: 256MiB, probe: {tcp: 'x:y'}", `lab.yaml:24: guests[0].probe.tcp: "x:y": want an address and port`},
		{"memory: 256MiB", "memory: 256MiB, disk: {copy: true}", `lab.yaml:24: guests[0].disk.copy: "true": the image has no disk to copy`},
		{"segment: blue, address: 10.50.0.11", "segment: red, address: 10.50.0.11", `lab.yaml:24: guests[0].segment: "red": unknown segment, want one of blue`},
		{"10.50.0.11", "10.50.0.1", `lab.yaml:24: guests[0].address: "10.50.0.1": the address is taken by segments[0].gateway`},
		{"10.50.0.12", "10.50.0.11", `lab.yaml:25: guests[1].address: "10.50.0.11": the address is taken by guests[0].address`},
		{"name: g2", "name: g1", `lab.yaml:25: guests[1].name: "g1": two guests have this name`},
		{"name: g2", "name: g2, name: g3", `lab.yaml:25`},
		{"links:", "links: &l", ""},
		{"name: g2", "name: *nope", `lab.yaml:25: guests[1].name: "*nope": want an anchor that is defined above`},
	} {
		if strings.Count(good, c.old) < 1 {
			t.Fatalf("the good file has no %q", c.old)
		}
		_, err := labfile.Parse("lab.yaml", []byte(strings.Replace(good, c.old, c.new, 1)))
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v, want no error", c.new, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("%q instead of %q: no error, want %s", c.new, c.old, c.want)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q instead of %q:\n got %v\nwant %s", c.new, c.old, err, c.want)
		}
		if k := drover.KindOf(err); k != drover.Invalid {
			t.Errorf("%q: kind %s, want invalid", c.new, k)
		}
		for line := range strings.Lines(err.Error()) {
			if !strings.HasPrefix(line, "lab.yaml:") {
				t.Errorf("%q: a line without file and line: %s", c.new, line)
			}
		}
	}
}

// TestAllAtOnce expects every problem of a file in one error, in the file's order.
func TestAllAtOnce(t *testing.T) {
	text := strings.NewReplacer("rate: 100Mbit", "rate: 0", "server: a", "server: x",
		"memory: 256MiB", "memory: 1", "lat: 50", "lat: 500").Replace(good)
	_, err := labfile.Parse("lab.yaml", []byte(text))
	var ps labfile.Problems
	if !errors.As(err, &ps) {
		t.Fatalf("%v: want problems", err)
	}
	var got []string
	for _, p := range ps {
		got = append(got, fmt.Sprintf("%d %s", p.Line, p.Field))
	}
	want := "2 server, 10 sites[1].location.lat, 15 links[0].rate, 24 guests[0].memory"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, ", "), want)
	}
}

func TestNotYAML(t *testing.T) {
	for text, want := range map[string]string{
		"":                    "lab.yaml: the file is empty, want a lab",
		"# nothing\n":         "lab.yaml: the file is empty, want a lab",
		"name: [a\n":          "lab.yaml:1: not YAML",
		"just text\n":         `lab.yaml:1: "just text": want keys and values`,
		good + "---\nname: b": "a second document, want one",
		"\x00\x01\x02":        "lab.yaml",
	} {
		_, err := labfile.Parse("lab.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.20q: %v, want one line with %s", text, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none.yaml"): "no such file and not a ready lab, want a path or one of debian, methods, pair, routed, sessions, tiny, ",
		dir:                             "want a regular file",
		big:                             "want at most 1 MiB",
	} {
		_, err := labfile.Load(path)
		if err == nil || !strings.Contains(err.Error(), want) || drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
}

// TestReadyFiles loads every ready file; each is named after its lab.
func TestReadyFiles(t *testing.T) {
	for _, name := range files.Names() {
		f, err := labfile.Load(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if f.Name != name {
			t.Errorf("%s: its lab is called %s", name, f.Name)
		}
	}
}

func TestDistanceDelay(t *testing.T) {
	frankfurt, virginia := labfile.Location{Lat: 50.11, Lon: 8.68}, labfile.Location{Lat: 39.04, Lon: -77.49}
	// The great circle is 6,550 km long, by an independent calculator.
	got := labfile.DistanceDelay(frankfurt, virginia)
	if want := 42575 * time.Microsecond; (got - want).Abs() > 300*time.Microsecond {
		t.Errorf("%s, want about %s", got, want)
	}
	if back := labfile.DistanceDelay(virginia, frankfurt); back != got {
		t.Errorf("%s there, %s back", got, back)
	}
}

// TestNoPanic feeds damaged files: each is refused with a line or read, never worse.
func TestNoPanic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := []byte(rapid.SampledFrom([]string{good, routed}).Draw(t, "file"))
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			at := rapid.IntRange(0, len(b)-2).Draw(t, "at")
			end := min(len(b), at+rapid.IntRange(0, 12).Draw(t, "length"))
			insert := rapid.SampledFrom([]string{"", "\n", ":", "- ", "[", "}", "*x", "&x ", "!!int ", "<<: ", "null", "1e9", "|\n"}).Draw(t, "insert")
			b = append(append(append([]byte{}, b[:at]...), insert...), b[end:]...)
		}
		if _, err := labfile.Parse("lab.yaml", b); err != nil && drover.KindOf(err) != drover.Invalid {
			t.Fatalf("kind of %v", err)
		}
	})
}
