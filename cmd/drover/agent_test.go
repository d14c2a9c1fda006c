package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goodAgentFile = `name: n1
site: north
listen: 127.0.0.1:0
run: /run/drover
state: /var/lib/drover
tls: {ca: ca.crt, cert: n1.crt, key: n1.key}
libvirt: /run/libvirt/libvirt-sock
volumes: [/var/lib/libvirt/images]
edge:
  links:
    - {name: north-south, a: north, b: south, counters: "unix:///run/wan.sock"}
probe: true
`

// TestAgentFile: a file that is wrong ends the agent with exit status 2 and
// one line for each fault, before anything is opened.
func TestAgentFile(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		change func(string) string
		want   []string
	}{
		"unknown key": {func(s string) string { return s + "volume: /x\n" }, []string{`agent.yaml:13: unknown field "volume"`}},
		"wrong type":  {func(s string) string { return strings.Replace(s, "probe: true", "probe: maybe", 1) }, []string{"agent.yaml:12: "}},
		"not YAML":    {func(string) string { return "name: [\n" }, []string{"agent.yaml:"}},
		"two faults": {func(s string) string {
			return strings.NewReplacer("listen: 127.0.0.1:0", "listen: 7443", "site: north", "site: a/b").Replace(s)
		}, []string{`agent.yaml: site: "a/b" is not a name`, `agent.yaml: listen: "7443" is not an address`}},
		"no such cert":  {func(s string) string { return s }, []string{"agent.yaml: tls.ca: "}},
		"missing paths": {func(s string) string { return strings.Replace(s, "volumes: [/var/lib/libvirt/images]", "", 1) }, []string{"agent.yaml: volumes: missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "agent.yaml")
			if err := os.WriteFile(path, []byte(c.change(goodAgentFile)), 0o600); err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			status := run(t.Context(), stdio{in: strings.NewReader(""), out: &out, err: &errs}, []string{"agent", "--config", path})
			if status != 2 {
				t.Errorf("exit status %d, want 2", status)
			}
			lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
			if len(lines) != len(c.want) {
				t.Fatalf("want %d lines, got:\n%s", len(c.want), errs.String())
			}
			for i, want := range c.want {
				if !strings.HasPrefix(lines[i], "drover: "+dir+"/"+want) {
					t.Errorf("line %q, want it to begin with %q", lines[i], want)
				}
			}
		})
	}
}
