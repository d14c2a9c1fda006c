package agent

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
)

func goodConfig() Config {
	return Config{
		Name: "n1", Site: "north", Listen: "10.1.0.11:7443", Run: "/run/drover", State: "/var/lib/drover",
		TLS:     pki.Files{CA: "/tls/ca.crt", Cert: "/tls/n1.crt", Key: "/tls/n1.key"},
		Libvirt: "/run/libvirt/libvirt-sock", Volumes: []string{"/var/lib/libvirt/images"},
		Edge: &Edge{Links: []EdgeLink{
			{Name: "north-south", A: "north", B: "south", Counters: "unix:///run/wan.sock"},
			{Name: "north-west", A: "north", B: "west", Counters: "interface:wan0"},
		}},
	}
}

func TestConfigValidate(t *testing.T) {
	if err := goodConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		`name: "n 1" is not a name`:                                      func(c *Config) { c.Name = "n 1" },
		`site: "" is not a name`:                                         func(c *Config) { c.Site = "" },
		`listen: "10.1.0.11" is not`:                                     func(c *Config) { c.Listen = "10.1.0.11" },
		`listen: "host:7443" is not`:                                     func(c *Config) { c.Listen = "host:7443" },
		`run: "run" is not an absolute path`:                             func(c *Config) { c.Run = "run" },
		`run: "/` + strings.Repeat("r", 40) + `" is too long by 2 bytes`: func(c *Config) { c.Run = "/" + strings.Repeat("r", 40) },
		`state: "" is not an absolute path`:                              func(c *Config) { c.State = "" },
		`tls.key: "" is not an absolute path`:                            func(c *Config) { c.TLS.Key = "" },
		`volumes: missing`:                                               func(c *Config) { c.Volumes = nil },
		`volumes[0]: "images" is not an absolute path`:                   func(c *Config) { c.Volumes = []string{"images"} },
		`libvirt: missing`:                                               func(c *Config) { c.Libvirt, c.Edge = "", nil },
		`metrics: "9443" is not an address`:                              func(c *Config) { c.Metrics = "9443" },
		`cut_limit: 500ms: want`:                                         func(c *Config) { c.CutLimit = Duration(500 * time.Millisecond) },
		`cut_limit: -1s: want`:                                           func(c *Config) { c.CutLimit = Duration(-time.Second) },
		`signals.survey: 500ms: want 1s to`:                              func(c *Config) { c.Signals.Survey = Duration(500 * time.Millisecond) },
		`signals.share: 1.5: want`:                                       func(c *Config) { c.Signals.Share = 1.5 },
		`signals.share: NaN: want`:                                       func(c *Config) { c.Signals.Share = math.NaN() },
		`remains.limit: -1: want`:                                        func(c *Config) { c.Remains.Limit = new(Size(-1)) },
		`remains.keep: -1h0m0s: want`:                                    func(c *Config) { c.Remains.Keep = Duration(-time.Hour) },
		`tenant_label: "a b": want`:                                      func(c *Config) { c.TenantLabel = "a b" },
		`edge.links[1].name: "north-south" is there twice`:               func(c *Config) { c.Edge.Links[1].Name = "north-south" },
		`edge.links[0]: a and b are both "north"`:                        func(c *Config) { c.Edge.Links[0].B = "north" },
		`edge.links[0].counters: "wan0": want`:                           func(c *Config) { c.Edge.Links[0].Counters = "wan0" },
		`edge.links[0].counters: "interface:../x": want`:                 func(c *Config) { c.Edge.Links[0].Counters = "interface:../x" },
		`edge.links[0].counters: "unix://wan.sock": want`:                func(c *Config) { c.Edge.Links[0].Counters = "unix://wan.sock" },
	} {
		c := goodConfig()
		change(&c)
		err := c.Validate()
		if err == nil || drover.KindOf(err) != drover.Invalid || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want one line %q, got:\n%v", want, err)
		}
	}
	c := Config{}
	if lines := strings.Count(c.Validate().Error(), "\n") + 1; lines < 8 {
		t.Errorf("an empty file has %d faults:\n%v", lines, c.Validate())
	}
}

// TestConfigFile reads the settings of the data path as an operator writes them,
// and what is written back.
func TestConfigFile(t *testing.T) {
	var c Config
	const file = "cut_limit: 2m\nremains: {limit: 1.5GiB, keep: 48h}\ntenant_label: owner\nmetrics: 10.1.0.11:9443\nsignals: {survey: 5m}\n"
	for text := file; ; {
		if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()); err != nil {
			t.Fatal(err)
		}
		if c.cutLimit() != 2*time.Minute || c.Remains.limit() != 1536*drover.MiB || c.Remains.keep() != 48*time.Hour || c.tenantLabel() != "owner" || c.Metrics != "10.1.0.11:9443" ||
			c.Signals.pace().Survey != 5*time.Minute || c.Signals.pace().Share != 0.01 {
			t.Errorf("read %+v", c)
		}
		if text != file {
			break
		}
		raw, err := yaml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		text, c = string(raw), Config{}
	}
	c = Config{Remains: RemainsConfig{Limit: new(Size(0))}}
	if c.Remains.limit() != 0 || c.cutLimit() != 5*time.Minute || c.tenantLabel() != "tenant" {
		t.Errorf("limit %s, cut limit %s, label %q", c.Remains.limit(), c.cutLimit(), c.tenantLabel())
	}
	if c = (Config{}); c.Remains.limit() != 20*drover.GiB || c.Remains.keep() != 168*time.Hour {
		t.Errorf("defaults: %s for %s", c.Remains.limit(), c.Remains.keep())
	}
	for text, want := range map[string]string{"remains: {limit: lots}": "size", "cut_limit: soon": "want a time, such as 5m"} {
		if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
