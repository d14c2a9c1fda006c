package bgp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

func TestConfig(t *testing.T) {
	good := Config{
		Dir: "/var/lib/drover/bgp", AS: 65001, NextHop4: netip.MustParseAddr("10.0.0.2"), NextHop6: netip.MustParseAddr("fd00::2"),
		Neighbors: []Neighbor{{Address: netip.MustParseAddr("10.0.0.1"), AS: 65000}},
	}
	must(t, good.Validate())
	d := good.withDefaults()
	if d.Hold != 3*time.Second || d.Keepalive != time.Second || d.RouterID != good.NextHop4 || d.Community.String() != "65001:215" {
		t.Errorf("defaults %+v", d)
	}
	for text, change := range map[string]func(*Config){
		"dir":                          func(c *Config) { c.Dir = "bgp" },
		"as 0":                         func(c *Config) { c.AS = 0 },
		"next hop":                     func(c *Config) { c.NextHop4, c.NextHop6 = netip.Addr{}, netip.Addr{} },
		"next hop fd00::2":             func(c *Config) { c.NextHop4 = c.NextHop6 },
		"next hop fe80::1":             func(c *Config) { c.NextHop6 = netip.MustParseAddr("fe80::1") },
		"router id":                    func(c *Config) { c.RouterID = c.NextHop6 },
		"hold 2s":                      func(c *Config) { c.Hold = 2 * time.Second },
		"hold 3.5s":                    func(c *Config) { c.Hold = 3500 * time.Millisecond },
		"keepalive 2s":                 func(c *Config) { c.Keepalive = 2 * time.Second },
		"restart 2h":                   func(c *Config) { c.Restart = 2 * time.Hour },
		"bfd interval 1ms":             func(c *Config) { c.BFD.Interval = time.Millisecond },
		"0 neighbours":                 func(c *Config) { c.Neighbors = nil },
		"neighbour 10.0.0.1 is there":  func(c *Config) { c.Neighbors = append(c.Neighbors, c.Neighbors[0]) },
		"neighbour 10.0.0.2 is the":    func(c *Config) { c.Neighbors = []Neighbor{{Address: c.NextHop4, AS: 1}} },
		"neighbour 10.0.0.1: as 0":     func(c *Config) { c.Neighbors = []Neighbor{{Address: c.Neighbors[0].Address}} },
		"neighbour 10.0.0.1: the edge": func(c *Config) { c.RouterID, c.NextHop4 = c.NextHop4, netip.Addr{} },
		"neighbour fe80::1%eth0":       func(c *Config) { c.Neighbors = []Neighbor{{Address: netip.MustParseAddr("fe80::1%eth0"), AS: 1}} },
		"a password of 81 bytes": func(c *Config) {
			c.Neighbors = []Neighbor{{Address: c.Neighbors[0].Address, AS: 1, Password: strings.Repeat("x", 81)}}
		},
	} {
		c := good
		change(&c)
		err := c.Validate()
		if drover.KindOf(err) != drover.Invalid || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestCommunity(t *testing.T) {
	for _, s := range []string{"65001:215", "1:0", "4200000002:215:0", "65001:1:2"} {
		c, err := ParseCommunity(s)
		if err != nil || c.String() != s {
			t.Errorf("%s: read as %v, %v", s, c, err)
		}
	}
	for _, s := range []string{"", "215", "70000:1", "1:70000", "0:215", "1:2:3:4", "1:2:-3", "a:b", "4294967296:1:1"} {
		if c, err := ParseCommunity(s); drover.KindOf(err) != drover.Invalid || err == nil {
			t.Errorf("%q: read as %v, %v", s, c, err)
		}
	}
	if c := communityOf(4200000002); c.String() != "4200000002:215:0" {
		t.Errorf("mark of a large AS: %v", c)
	}
}
