package trial_test

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/drover-vm/drover/lab/trial"
)

// component is something that moves change, as its own tools show it: a line of
// shell that writes one line for each thing that stands, without counters, times
// or numbers that are drawn anew.
type component struct {
	node, name, line string
}

// Of a router: what it announces and hears, and what its kernel does.
const (
	bgpTable    = `vtysh -c 'show ip bgp' | grep '^\*' | tr -s ' '`
	kernelRoute = `ip route show table all | grep -v '^broadcast\|^local' | sed -E 's/ nhid [0-9]+//; s/ +$//'`
)

// Of an edge. The kernel's numbers of interfaces are drawn anew.
const (
	links     = `ip -br link | awk '{print $1}' | sed 's/@.*//' | grep -v '^vnet'`
	addresses = `ip -br addr | awk '{$2=""; sub(/@[^ ]*/, "", $1); print}' | grep -v '^vnet'`
	rules     = `ip rule; ip neigh show proxy; ip neigh show nud permanent; bridge fdb show | grep -v vnet | grep 'permanent\|static'; true`
	ruleset   = `nft list ruleset | sed -E 's/counter packets [0-9]+ bytes [0-9]+/counter/; s/ expires [0-9a-z]+//; s/# handle [0-9]+//'`
	proxies   = `grep -H . /proc/sys/net/ipv4/conf/*/proxy_arp /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv6/conf/*/proxy_ndp | grep -v vnet`
)

// Of a host: nothing of a VM that is not there, and no record of changes.
const (
	images   = `ls -A /var/lib/libvirt/images | grep -v '^\.drover-aside\|^\.drover-id'; find /run/drover -mindepth 2 -type s; true`
	machines = `for v in $(virsh list --all --name); do echo "$v $(virsh domstate $v) $(virsh checkpoint-list $v --name)"; done`
)

// components are all of the lab world.
func components(s *trial.Scene) []component {
	var all []component
	add := func(node, name, line string) { all = append(all, component{node, name, line}) }
	for _, site := range []string{"frankfurt", "virginia", "singapore"} {
		router, edge := site+"-router", trial.EdgeOf(site)
		add(router, "BGP", bgpTable)
		add(router, "routes", kernelRoute)
		add(edge, "routes", kernelRoute)
		add(edge, "interfaces", links)
		add(edge, "addresses", addresses)
		add(edge, "rules and neighbours", rules)
		add(edge, "nftables", ruleset)
		add(edge, "settings", proxies)
		add(edge, "Kea's leases", `echo '{"command": "lease4-get-all"}' | socat -t 5 - UNIX-CONNECT:/run/kea/dhcp4.sock | jq -r '.arguments.leases[]? | [."ip-address", ."hw-address", .hostname] | join(" ")'`)
		add(edge, "Kea's reservations", `echo '{"command": "config-get"}' | socat -t 5 - UNIX-CONNECT:/run/kea/dhcp4.sock | jq -c '.arguments.Dhcp4 | [.reservations, (.subnet4[] | [.subnet, .pools, .reservations])]'`)
	}
	add(trial.EdgeOf("frankfurt"), "DNS", `dig +noall +answer @127.0.0.1 -k /run/drover/conf/dns.key `+s.Zone+` AXFR | grep -v SOA | tr -s '\t ' ' '`)
	add(trial.EdgeOf("virginia"), "DNS", `dig +noall +answer @10.1.0.1 -k /run/drover/conf/dns.key `+s.Zone+` AXFR | grep -v SOA | tr -s '\t ' ' '`)
	// be_name srv_name srv_addr srv_admin_state srv_uweight
	add(s.BalancerEdge(), "HAProxy", `echo "show servers state" | socat - /run/haproxy/admin.sock | awk '$2 == "`+s.Backend+`" {print $2, $4, $5, $7, $8}'`)
	for _, host := range []string{"fra1", "fra2", "iad1", "sin1"} {
		add(host, "interfaces", links)
		add(host, "routes", kernelRoute)
		add(host, "rules and neighbours", rules)
		add(host, "nftables", ruleset)
		add(host, "images and sockets", images)
		add(host, "machines", machines)
	}
	return all
}

// look asks all components and returns their lines, each once and in order.
func look(ctx context.Context, s *trial.Scene) (map[string][]string, error) {
	seen := map[string][]string{}
	for _, c := range components(s) {
		out, err := s.Exec(ctx, c.node, "sh", "-c", c.line)
		if err != nil && len(out) > 0 {
			return nil, fmt.Errorf("%s, %s: %w", c.node, c.name, err)
		}
		lines := strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
		slices.Sort(lines)
		seen[c.node+", "+c.name] = lines
	}
	return seen, nil
}

// differences are the lines that came, with a plus, and those that went, with a
// minus.
func differences(before, after map[string][]string) []string {
	var all []string
	for name, was := range before {
		is := after[name]
		for _, l := range was {
			if !slices.Contains(is, l) {
				all = append(all, name+": - "+l)
			}
		}
		for _, l := range is {
			if !slices.Contains(was, l) {
				all = append(all, name+": + "+l)
			}
		}
	}
	slices.Sort(all)
	return all
}
