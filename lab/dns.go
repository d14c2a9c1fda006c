package lab

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
)

// DNS in a lab: servers on edges, which share one key for updates and transfers.
const (
	dnsPort         = 53
	dnsRun          = "/run/dns"
	dnsKeyName      = "drover"
	dnsKeyAlgorithm = "hmac-sha256"
	dnsKeyFile      = confDir + "/dns.key"
	dnsKeyBytes     = 32 // what the algorithm's hash has
)

// dnsPrograms are the name servers' programs, which their services are named
// after, by software.
var dnsPrograms = map[string]string{labfile.DNSBind: "named", labfile.DNSKnot: "knotd"}

// SOA timers in seconds: a secondary that missed a notification, as in a cut of
// the WAN, asks soon after; it goes on serving what it has for a day.
const (
	soaRefresh, soaRetry, soaExpire, soaNegative = 30, 2, 86400, 5
)

// dnsAnswerLimit is how long one answer may take: the question does not leave
// the edge.
const dnsAnswerLimit = time.Second

// newDNSKey makes a secret for the lab's updates, in base64.
func newDNSKey() string {
	secret := make([]byte, dnsKeyBytes)
	_, _ = rand.Read(secret) // it never fails, see its documentation
	return base64.StdEncoding.EncodeToString(secret)
}

// dnsServer writes the files of a site's name server and returns its service;
// none where no zone is served. The key is left at every edge.
func dnsServer(f *labfile.File, plan *topology.Plan, n *topology.Node, dir, secret string) ([]node.Service, error) {
	if len(f.DNS) == 0 {
		return nil, nil
	}
	key := fmt.Sprintf("key %q {\n\talgorithm %s;\n\tsecret %q;\n};\n", dnsKeyName, dnsKeyAlgorithm, secret)
	if err := os.WriteFile(filepath.Join(dir, dnsKeyFile), []byte(key), 0o600); err != nil {
		return nil, err
	}
	zones := zonesAt(f, n.Site)
	if len(zones) == 0 {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Join(dir, dnsRun), 0o755); err != nil {
		return nil, err
	}
	for _, z := range zones {
		if z.Primary != n.Site {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, dnsRun, z.Zone+".zone"), []byte(zoneFile(f, plan, z)), 0o644); err != nil {
			return nil, err
		}
	}
	program := dnsPrograms[zones[0].Software]
	conf := filepath.Join(dnsRun, program+".conf")
	text, args := bindConf(plan, n, zones), []string{program, "-g", "-n", "1", "-c", conf}
	if zones[0].Software == labfile.DNSKnot {
		text, args = knotConf(plan, n, zones, secret), []string{program, "-c", conf}
	}
	if err := os.WriteFile(filepath.Join(dir, conf), []byte(text), 0o600); err != nil {
		return nil, err
	}
	return []node.Service{{Name: program, Args: args}}, nil
}

// zonesAt are the zones that a site's name server serves.
func zonesAt(f *labfile.File, site string) []*labfile.DNS {
	var list []*labfile.DNS
	for i := range f.DNS {
		if slices.Contains(f.DNS[i].Sites(), site) {
			list = append(list, &f.DNS[i])
		}
	}
	return list
}

// zoneFile is a zone at its beginning: its name servers, the guests, the
// services.
func zoneFile(f *labfile.File, plan *topology.Plan, d *labfile.DNS) string {
	var b strings.Builder
	fmt.Fprintf(&b, "$ORIGIN %s.\n$TTL %d\n", d.Zone, d.TTL)
	fmt.Fprintf(&b, "@ SOA %s hostmaster 1 %d %d %d %d\n", labfile.NameServer(d.Primary), soaRefresh, soaRetry, soaExpire, soaNegative)
	for _, s := range d.Sites() {
		fmt.Fprintf(&b, "@ NS %s\n", labfile.NameServer(s))
	}
	record := func(name string, addresses ...netip.Addr) {
		for _, a := range addresses {
			switch {
			case !a.IsValid():
			case a.Is4():
				fmt.Fprintf(&b, "%s A %s\n", name, a)
			default:
				fmt.Fprintf(&b, "%s AAAA %s\n", name, a)
			}
		}
	}
	for _, s := range d.Sites() {
		record(labfile.NameServer(s), plan.Node(labfile.EdgeName(s)).Address)
	}
	for _, g := range f.Guests {
		record(g.Name, g.Address.Addr, g.Address6.Addr)
	}
	for _, s := range f.Balancers {
		record(s.Name, s.Address.Addr, s.Address6.Addr)
	}
	return b.String()
}

// secondaries are the addresses of a zone's secondaries.
func secondaries(plan *topology.Plan, d *labfile.DNS) []string {
	var list []string
	for _, s := range d.Secondaries {
		list = append(list, plan.Node(labfile.EdgeName(s)).Address.String())
	}
	return list
}

// bindConf is named's configuration. Notifications go out at once, and a
// secondary asks again as soon as the zone says, not after BIND's own minutes.
func bindConf(plan *topology.Plan, n *topology.Node, zones []*labfile.DNS) string {
	var b strings.Builder
	fmt.Fprintf(&b, `include %q;
controls { };
options {
	directory %q;
	pid-file none;
	session-keyfile none;
	listen-on { 127.0.0.1; %s; };
	listen-on-v6 { none; };
	recursion no;
	dnssec-validation no;
	max-cache-size 8M;
	allow-transfer { key %[4]q; };
	notify explicit;
	notify-delay 0;
	min-refresh-time 1;
	min-retry-time 1;
	check-names primary ignore;
};
`, dnsKeyFile, dnsRun, n.Address, dnsKeyName)
	for _, z := range zones {
		fmt.Fprintf(&b, "zone %q {\n\tfile %q;\n", z.Zone, z.Zone+".zone")
		if z.Primary == n.Site {
			fmt.Fprintf(&b, "\ttype primary;\n\tallow-update { key %q; };\n", dnsKeyName)
			if list := secondaries(plan, z); len(list) > 0 {
				fmt.Fprintf(&b, "\talso-notify { %s; };\n", strings.Join(list, "; "))
			}
		} else {
			fmt.Fprintf(&b, "\ttype secondary;\n\tprimaries { %s key %q; };\n", plan.Node(labfile.EdgeName(z.Primary)).Address, dnsKeyName)
		}
		b.WriteString("};\n")
	}
	return b.String()
}

// knotConf is knotd's configuration.
func knotConf(plan *topology.Plan, n *topology.Node, zones []*labfile.DNS, secret string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `server:
    rundir: %[1]q
    listen: [ 127.0.0.1@%[2]d, %[3]s@%[2]d ]
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stdout
    any: info
database:
    storage: %[1]q
key:
  - id: %[4]q
    algorithm: %[5]s
    secret: %[6]q
acl:
  - id: lab
    key: %[4]q
    action: [ update, transfer, notify ]
`, dnsRun, dnsPort, n.Address, dnsKeyName, dnsKeyAlgorithm, secret)
	b.WriteString("remote:\n")
	remotes := map[string]bool{}
	for _, z := range zones {
		for _, s := range z.Sites() {
			if !remotes[s] {
				fmt.Fprintf(&b, "  - id: %q\n    address: %s\n    key: %q\n", s, plan.Node(labfile.EdgeName(s)).Address, dnsKeyName)
			}
			remotes[s] = true
		}
	}
	b.WriteString("zone:\n")
	for _, z := range zones {
		fmt.Fprintf(&b, "  - domain: %q\n    storage: %q\n    file: %q\n    acl: lab\n", z.Zone, dnsRun, z.Zone+".zone")
		switch {
		case z.Primary != n.Site:
			fmt.Fprintf(&b, "    master: %q\n", z.Primary)
		case len(z.Secondaries) > 0:
			fmt.Fprintf(&b, "    notify: [ %s ]\n", strings.Join(z.Secondaries, ", "))
		}
	}
	return b.String()
}

// startDNS starts the name servers and returns when each has its zones. They are
// started one after the other: a primary that comes before its secondary is
// asked by it, one that comes after tells it.
func (l *Lab) startDNS(ctx context.Context, f *labfile.File, plan *topology.Plan) error {
	for _, s := range f.Sites {
		zones := zonesAt(f, s.Name)
		if len(zones) == 0 {
			continue
		}
		n := plan.Node(labfile.EdgeName(s.Name))
		service := dnsPrograms[zones[0].Software]
		if err := l.startService(ctx, n.Name, service); err != nil {
			return err
		}
		err := l.awaitService(ctx, n.Name, service, func(ctx context.Context) error {
			_, err := l.soa(ctx, n, zones[0].Zone)
			return err
		})
		if err != nil {
			return err
		}
	}
	for i := range f.DNS {
		for _, s := range f.DNS[i].Sites() {
			n := plan.Node(labfile.EdgeName(s))
			err := l.awaitService(ctx, n.Name, dnsPrograms[f.DNS[i].Software], func(ctx context.Context) error {
				r, err := l.soa(ctx, n, f.DNS[i].Zone)
				if err == nil && (r.Rcode != dns.RcodeSuccess || !r.Authoritative) {
					err = fmt.Errorf("zone %s: %s", f.DNS[i].Zone, dns.RcodeToString[r.Rcode])
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// soa asks a site's name server for a zone's head, from its own edge.
func (l *Lab) soa(ctx context.Context, n *topology.Node, zone string) (*dns.Msg, error) {
	conn, err := l.Dial(ctx, n.Name, "udp", netip.AddrPortFrom(n.Address, dnsPort).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(zone), dns.TypeSOA)
	c := dns.Client{Timeout: dnsAnswerLimit}
	r, _, err := c.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn})
	return r, err
}
