package driver_test

import (
	"net/netip"
	"testing"

	"github.com/drover-vm/drover/driver"
)

func TestCommandLine(t *testing.T) {
	both := driver.GuestNetwork{
		Hostname:  "web2",
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.60.0.21/24"), netip.MustParsePrefix("fd00:60::21/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.60.0.1"), netip.MustParseAddr("fd00:60::1")},
	}
	four := driver.GuestNetwork{Addresses: both.Addresses[:1]}
	for _, c := range []struct {
		name     string
		n        driver.GuestNetwork
		in, want string
	}{
		{"none", both, "", ""},
		{"nothing of it", both, "console=ttyS0 root=/dev/vda1 quiet", "console=ttyS0 root=/dev/vda1 quiet"},
		{
			"both families", both,
			"console=ttyS0 drover.name=web1 drover.ip=10.50.0.11/24 drover.gw=10.50.0.1 drover.ip=fd00:50::11/64 drover.gw=fd00:50::1 quiet",
			"console=ttyS0 drover.name=web2 drover.ip=10.60.0.21/24 drover.gw=10.60.0.1 drover.ip=fd00:60::21/64 drover.gw=fd00:60::1 quiet",
		},
		{"a family less", four, "drover.name=web1 drover.ip=fd00:50::11/64 drover.ip=10.50.0.11/16 drover.gw=10.50.0.1", "drover.name=web1 drover.ip=10.60.0.21/24"},
		{"asks", both, "drover.ip=dhcp drover.ip=dhcp6 drover.gw=fd00:50::1", "drover.ip=dhcp drover.ip=dhcp6 drover.gw=fd00:60::1"},
		{"linux", both, "ip=10.50.0.11::10.50.0.1:255.255.255.0:web1:eth0:off", "ip=10.60.0.21::10.60.0.1:255.255.255.0:web2:eth0:off"},
		{"linux asks", both, "ip=dhcp ip=:::::eth0:dhcp", "ip=dhcp ip=:::::eth0:dhcp"},
		{"linux, no gateway", four, "ip=10.50.0.11::10.50.0.1:255.255.0.0", "ip=10.60.0.21:::255.255.255.0"},
	} {
		if got := c.n.CommandLine(c.in); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}
