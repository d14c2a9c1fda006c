package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
)

// goodServer is a server's file with everything in it.
const goodServer = `name: s
listen: 192.0.2.1:7444
socket: /run/drover/server.sock
state: /var/lib/drover
tls: {ca: ca.crt, cert: s.crt, key: s.key}
sites:
  - {name: north, latitude: 59.3, longitude: 18.1}
  - {name: south}
agents:
  - {name: n1, site: north, address: "192.0.2.11:7443"}
  - {name: s1, site: south, address: "192.0.2.12:7443"}
links:
  - {name: wan, a: north, b: south, rate: 200Mbit, rtt: 50ms}
`

func TestServerConfig(t *testing.T) {
	for _, tt := range []struct {
		name     string
		old, new string // what is changed in the good file
		want     []string
	}{
		{"good", "", "", nil},
		{"rate as a number", "rate: 200Mbit", "rate: 200000000", nil},
		{"rate not known", "rate: 200Mbit", "rate: 0", nil},
		{"socket alone", "listen: 192.0.2.1:7444\n", "", nil},
		{"unknown key", "state:", "stat: x\nstate:", []string{`server.yaml:4: unknown field "stat"`}},
		{"unknown key below", "{name: south}", "{name: south, lat: 5}", []string{`server.yaml:8: unknown field "lat"`}},
		{"key twice", "state:", "name: t\nstate:", []string{`server.yaml:4: `}},
		{"no YAML", "name: s", "name: [s", []string{"server.yaml:"}},
		{"wrong type", "sites:\n", "sites: 5\nx:\n", []string{"server.yaml:"}},
		{"text for a number", "latitude: 59.3", "latitude: high", []string{"server.yaml:7: "}},
		{"missing name", "name: s\n", "", []string{`name: "" is not a name`}},
		{"nothing to listen on", "listen: 192.0.2.1:7444\nsocket: /run/drover/server.sock\n", "", []string{"listen: missing, and so is socket"}},
		{"listen without a port", "192.0.2.1:7444", "192.0.2.1", []string{`listen: "192.0.2.1": want HOST:PORT`}},
		{"listen with a port too high", "192.0.2.1:7444", "192.0.2.1:77777", []string{"listen: "}},
		{"socket too long", "/run/drover/server.sock", "/" + strings.Repeat("x", 110), []string{"socket: "}},
		{"state not absolute", "/var/lib/drover", "drover", []string{`state: "drover": want the absolute path`}},
		{"no certificate", "cert: s.crt, ", "", []string{"tls.cert: missing"}},
		{"no sites", "sites:\n  - {name: north, latitude: 59.3, longitude: 18.1}\n  - {name: south}\n", "", []string{"sites: 0 of them"}},
		{"site twice", "{name: south}", "{name: north}", []string{`sites[1].name: "north": another site has the name`}},
		{"latitude beyond the pole", "latitude: 59.3", "latitude: 95", []string{"sites[0].latitude: 95: want degrees from -90 to 90"}},
		{"agent at no site", "{name: s1, site: south", "{name: s1, site: east", []string{`agents[1].site: "east": want the name of a site`}},
		{"agent twice", "{name: s1,", "{name: n1,", []string{`agents[1].name: "n1": another agent has the name`}},
		{"agent without address", `, address: "192.0.2.12:7443"`, "", []string{`agents[1].address: "": want HOST:PORT`}},
		{"link to nowhere", "b: south, rate", "b: east, rate", []string{`links[0].b: "east"`}},
		{"link to itself", "b: south, rate", "b: north, rate", []string{`links[0].b: "north": want another site than a`}},
		{"negative rate", "rate: 200Mbit", "rate: -5Mbit", []string{"links[0].rate: -5000000: want bits per second"}},
		{"no rate", "rate: 200Mbit", "rate: fast", []string{"server.yaml:13: "}},
		{"no round trip", "rtt: 50ms", "rtt: soon", []string{`server.yaml:13: "soon": want a time`}},
		{"a list for a rate", "rate: 200Mbit", "rate: [1]", []string{"server.yaml:13: "}},
		{"negative price", "rtt: 50ms", "rtt: 50ms, price_per_gb: -1", []string{"links[0].price_per_gb: -1: want a price from 0 to"}},
		{"price that is none", "rtt: 50ms", "rtt: 50ms, price_per_gb: nan", []string{"links[0].price_per_gb: NaN: want a price"}},
		{"price in words", "rtt: 50ms", "rtt: 50ms, price_per_gb: cheap", []string{`server.yaml:13: "cheap": want a price, such as 0.02`}},
		{"negative round trip", "rtt: 50ms", "rtt: -1ms", []string{"links[0].rtt: -1ms"}},
		{"two faults, two lines", "state: /var/lib/drover", "state: x", []string{`state: "x"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := goodServer
			if tt.old != "" {
				if text = strings.Replace(goodServer, tt.old, tt.new, 1); text == goodServer {
					t.Fatalf("%q is not in the good file", tt.old)
				}
			}
			path := filepath.Join(t.TempDir(), "server.yaml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := readServerConfig(path)
			if tt.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if want := filepath.Join(filepath.Dir(path), "s.key"); cfg.TLS.Key != want {
					t.Errorf("tls.key: %s, want %s: relative paths begin at the file's folder", cfg.TLS.Key, want)
				}
				return
			}
			if drover.KindOf(err) != drover.Invalid {
				t.Fatalf("got %v, want invalid", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %q, want %q in it", err, w)
				}
			}
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, path+":") {
					t.Errorf("line %q does not begin with the file's name", line)
				}
			}
		})
	}
}

func TestServerConfigTellsEveryFault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server.yaml")
	text := strings.NewReplacer("state: /var/lib/drover", "state: x", "site: south", "site: west", "rate: 200Mbit", "rate: -1").Replace(goodServer)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := readServerConfig(path)
	if err == nil || len(strings.Split(err.Error(), "\n")) != 3 {
		t.Errorf("got %v, want three lines", err)
	}
}
