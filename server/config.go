package server

import (
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
)

// Config is a server's file.
type Config struct {
	// Name is the server's own, as its certificate has it.
	Name string `yaml:"name"`
	// Listen is the "ip:port" of the API; Socket the path of a unix socket for
	// operators on this machine. At least one of them.
	Listen string `yaml:"listen"`
	Socket string `yaml:"socket"`
	// State is the folder of the server's database.
	State string    `yaml:"state"`
	TLS   pki.Files `yaml:"tls"`
	// CutLimit is how long a cut of the WAN may last before a move is given up
	// that has not passed the point of no return; zero takes DefaultCutLimit. It
	// should be the agents'.
	CutLimit Duration `yaml:"cut_limit,omitempty"`
	// Metrics is "ip:port", where Prometheus reads this server's metrics over
	// plain HTTP; empty: nowhere.
	Metrics string `yaml:"metrics,omitempty"`

	Sites  []SiteConfig  `yaml:"sites"`
	Agents []AgentConfig `yaml:"agents"`
	Links  []LinkConfig  `yaml:"links"`
	// Advice is what the adviser goes by; empty: what it goes by itself.
	Advice AdviceConfig `yaml:"advice,omitempty"`
}

// SiteConfig is a data center.
type SiteConfig struct {
	Name string `yaml:"name"`
	// Latitude and Longitude in degrees; both zero when not known.
	Latitude  float64 `yaml:"latitude"`
	Longitude float64 `yaml:"longitude"`
	// Country is its two letters (ISO 3166-1); empty when not known.
	Country string `yaml:"country,omitempty"`
}

// AgentConfig is where an agent is to be found. What its host is, it says
// itself.
type AgentConfig struct {
	Name    string `yaml:"name"`
	Site    string `yaml:"site"`
	Address string `yaml:"address"` // "ip:port"
}

// LinkConfig is a WAN link between two sites.
type LinkConfig struct {
	Name string `yaml:"name"`
	A    string `yaml:"a"`
	B    string `yaml:"b"`
	// Rate is the rate bought, RTT the round trip; zero when not known.
	Rate Rate     `yaml:"rate"`
	RTT  Duration `yaml:"rtt"`
	// Price is what 10^9 bytes over it cost, in either direction and in a currency
	// that is the same for all links; absent: not known.
	Price *Price `yaml:"price_per_gb,omitempty"`
}

// DefaultCutLimit is how long a cut of the WAN may last where the file does not
// say: the agents' default.
const DefaultCutLimit = 5 * time.Minute

// Bounds of a cut limit: beyond them a digit is wrong.
const (
	leastCutLimit = time.Second
	mostCutLimit  = 24 * time.Hour
)

func (c Config) cutLimit() time.Duration {
	if c.CutLimit == 0 {
		return DefaultCutLimit
	}
	return time.Duration(c.CutLimit)
}

// Limits of a configuration: a file beyond them was not meant.
const (
	maxSites  = 1000
	maxAgents = 10_000
	maxLinks  = 10_000
	// maxPrice of a GB: beyond it a digit is wrong in any currency.
	maxPrice = 1e6
	// maxSocketPath is what Linux's sockaddr_un holds, without the final zero.
	maxSocketPath = 107
)

// Validate reports everything that is wrong, one line for each fault, as
// drover.Invalid.
func (c Config) Validate() error {
	v := &faults{}
	v.check(drover.CheckName("name", c.Name))
	if c.Listen == "" && c.Socket == "" {
		v.add("listen", "missing, and so is socket: want at least one, such as 192.0.2.1:7444")
	}
	if c.Listen != "" {
		v.address("listen", c.Listen)
	}
	if c.Socket != "" && (!filepath.IsAbs(c.Socket) || len(c.Socket) > maxSocketPath) {
		v.add("socket", "%q: want an absolute path of at most %d bytes", c.Socket, maxSocketPath)
	}
	if !filepath.IsAbs(c.State) {
		v.add("state", "%q: want the absolute path of a folder", c.State)
	}
	v.check(c.TLS.Validate())
	if d := c.cutLimit(); d < leastCutLimit || d > mostCutLimit {
		v.add("cut_limit", "%s: want %s to %s", d, leastCutLimit, mostCutLimit)
	}
	if c.Metrics != "" {
		v.address("metrics", c.Metrics)
	}
	v.count("sites", len(c.Sites), 1, maxSites)
	v.count("agents", len(c.Agents), 1, maxAgents)
	v.count("links", len(c.Links), 0, maxLinks)

	sites, names := map[string]bool{}, map[string]bool{}
	for i, s := range c.Sites {
		at := fmt.Sprintf("sites[%d].", i)
		v.unique(at+"name", "site", s.Name, sites)
		v.within(at+"latitude", s.Latitude, 90)
		v.within(at+"longitude", s.Longitude, 180)
		if s.Country != "" {
			v.check(drover.CheckCountry(at+"country", s.Country))
		}
	}
	for i, a := range c.Agents {
		at := fmt.Sprintf("agents[%d].", i)
		v.unique(at+"name", "agent", a.Name, names)
		v.site(at+"site", a.Site, sites)
		v.address(at+"address", a.Address)
	}
	links := map[string]bool{}
	for i, l := range c.Links {
		at := fmt.Sprintf("links[%d].", i)
		v.unique(at+"name", "link", l.Name, links)
		v.site(at+"a", l.A, sites)
		v.site(at+"b", l.B, sites)
		if l.A == l.B && sites[l.A] {
			v.add(at+"b", "%q: want another site than a", l.B)
		}
		if l.Rate < 0 {
			v.add(at+"rate", "%d: want bits per second above zero, such as 200Mbit, or 0 when not known", int64(l.Rate))
		}
		if l.RTT < 0 {
			v.add(at+"rtt", "%s: want a time of at least zero, such as 50ms", time.Duration(l.RTT))
		}
		if p := l.Price; p != nil && !(*p >= 0 && *p <= maxPrice) { // also refuses what is no number
			v.add(at+"price_per_gb", "%v: want a price from 0 to %v, such as 0.02", float64(*p), float64(maxPrice))
		}
	}
	c.Advice.validate(v)
	return v.err()
}

// faults collects what is wrong, one line each.
type faults []error

func (v *faults) add(field, format string, args ...any) {
	*v = append(*v, drover.Errorf(drover.Invalid, field, format, args...))
}

func (v *faults) check(err error) {
	if err != nil {
		*v = append(*v, err)
	}
}

func (v *faults) count(field string, n, least, most int) {
	if n < least || n > most {
		v.add(field, "%d of them: want %d to %d", n, least, most)
	}
}

func (v *faults) unique(field, what, name string, seen map[string]bool) {
	err := drover.CheckName(field, name)
	if err == nil && seen[name] {
		err = drover.Errorf(drover.Invalid, field, "%q: another %s has the name already", name, what)
	}
	v.check(err)
	seen[name] = true
}

func (v *faults) site(field, name string, sites map[string]bool) {
	if !sites[name] {
		v.add(field, "%q: want the name of a site in sites", name)
	}
}

func (v *faults) within(field string, deg, most float64) {
	if math.IsNaN(deg) || math.Abs(deg) > most {
		v.add(field, "%v: want degrees from %v to %v", deg, -most, most)
	}
}

func (v *faults) address(field, addr string) {
	host, port, err := net.SplitHostPort(addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" && field != "listen" {
		v.add(field, "%q: want HOST:PORT, such as 192.0.2.1:7443", addr)
	}
}

func (v *faults) err() error {
	if len(*v) == 0 {
		return nil
	}
	return &drover.Error{Kind: drover.Invalid, Err: errors.Join(*v...)}
}

// Rate is a bit rate as files and flags write it: "200Mbit" or bits per
// second as a number.
type Rate drover.BitRate

// MarshalYAML writes bits per second.
func (r Rate) MarshalYAML() (any, error) { return int64(r), nil }

// UnmarshalYAML reads a rate; see drover.ParseBitRate.
func (r *Rate) UnmarshalYAML(n ast.Node) error {
	v, err := drover.ParseBitRate(n.GetToken().Value)
	*r = Rate(v)
	return placed(n, err)
}

// placed gives an error the place of its value in the file.
func placed(n ast.Node, err error) error {
	if err == nil {
		return nil
	}
	return &yaml.SyntaxError{Message: err.Error(), Token: n.GetToken()}
}

// Duration is a time as files write it: "50ms".
type Duration time.Duration

// MarshalYAML writes the duration as Go does: "50ms".
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// UnmarshalYAML reads a duration.
func (d *Duration) UnmarshalYAML(n ast.Node) error {
	text := n.GetToken().Value
	v, err := time.ParseDuration(text)
	if err != nil {
		return placed(n, fmt.Errorf("%q: want a time, such as 50ms", text))
	}
	*d = Duration(v)
	return nil
}

func (d Duration) millis() float64 { return float64(d) / float64(time.Millisecond) }

// parsePercent reads "0.1%" as a share between 0 and 1.
func parsePercent(text string) (float64, error) {
	number, ok := strings.CutSuffix(strings.TrimSpace(text), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if !ok || err != nil || math.IsNaN(v) || v < 0 || v > 100 {
		return 0, fmt.Errorf("%q: want percent from 0%% to 100%%, such as 0.1%%", text)
	}
	return v / 100, nil
}
