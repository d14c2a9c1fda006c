package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/server"
)

func TestRulesFile(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"good", "rule_sets:\n  - {name: ours, source: us, methods: [route], max_rtt: 20ms, min_rate: 1Gbit, max_distance_km: 500, max_loss: 0.1%, refuse: true}\n", ""},
		{"unknown key", "rule_sets:\n  - {name: ours, max_ttl: 20ms}\n", `rules.yaml:2:18: unknown field "max_ttl"`},
		{"no time", "rule_sets:\n  - name: ours\n    max_rtt: soon\n", `rules.yaml:3:14: "soon": want a time`},
		{"no percent", "rule_sets:\n  - name: ours\n    max_loss: 1\n", `rules.yaml:3:15: "1": want percent`},
		{"no limit", "rule_sets:\n  - name: ours\n", "it has no limit: want at least one of max_rtt"},
		{"two of a name", "rule_sets:\n  - {name: a, max_rtt: 1ms}\n  - {name: a, max_rtt: 2ms}\n", "another rule set has the name"},
		{"no method", "rule_sets:\n  - {name: a, max_rtt: 1ms, methods: [teleport]}\n", `"teleport" is no method`},
		{"empty", "rule_sets: []\n", "rule_sets: 0 of them"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			c := server.AdviceConfig{RulesFile: "rules.yaml"}
			err := readRules(filepath.Join(dir, "server.yaml"), &c)
			switch {
			case tt.want == "" && (err != nil || len(c.Own) != 1 || c.Own[0].MaxLoss != 0.001 || !c.Own[0].Refuse):
				t.Errorf("%+v, error %v", c.Own, err)
			case tt.want != "" && (err == nil || drover.KindOf(err) != drover.Invalid || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// The server's file names orders, rules and defaults; what is wrong with them is
// said.
func TestAdviceConfig(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"good", "advice:\n  order: [stay, cold, live]\n  rules: [later]\n  refuse: [later]\n  defaults:\n    - {label: tier=web, requirements: {keep-sessions: yes}}\n", ""},
		{"order", "advice: {order: [cold, cold]}\n", "cold is there twice"},
		{"rule", "advice: {rules: [latest]}\n", `advice.rules: "latest": want the name of a rule set: classic, later`},
		{"requirement", "advice: {defaults: [{requirements: {max-pause: long}}]}\n", `max-pause: "long": want a time`},
		{"nothing", "advice: {defaults: [{label: a}]}\n", "advice.defaults[0].requirements: missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "server.yaml")
			text := "name: s\nlisten: 127.0.0.1:1\nstate: /s\ntls: {ca: c, cert: c, key: k}\nsites: [{name: a}]\nagents: [{name: h, site: a, address: '127.0.0.1:2'}]\n" + tt.text
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := readServerConfig(path)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("error %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
