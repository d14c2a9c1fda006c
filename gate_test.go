package drover_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
)

func TestParseHealth(t *testing.T) {
	address := netip.MustParseAddr("2001:db8::7")
	for in, want := range map[string]string{
		"tcp:443":                        "tcp:[2001:db8::7]:443",
		"tcp:192.0.2.7:22":               "tcp:192.0.2.7:22",
		"tcp:[2001:db8::1]:22":           "tcp:[2001:db8::1]:22",
		"http://192.0.2.7/health":        "http://192.0.2.7/health",
		"https://web1.example/?a=b":      "https://web1.example/?a=b",
		"http:http://192.0.2.7/":         "http://192.0.2.7/",
		"command:pg-check --port 5432":   "command:pg-check --port 5432",
		"command:login-as-customer.sh a": "command:login-as-customer.sh a",
	} {
		h, err := drover.ParseHealth(in)
		if err == nil {
			h, err = h.Complete(address)
		}
		if err != nil || h.String() != want {
			t.Errorf("%s: %v, %v; want %s", in, h, err, want)
			continue
		}
		again, err := drover.ParseHealth(h.String())
		if err != nil || again != h {
			t.Errorf("%s read again: %v, %v", h, again, err)
		}
	}
	for _, in := range []string{
		"", "tcp", "tcp:", "tcp:0", "tcp:65536", "tcp:http", "tcp:web1:80", "tcp:192.0.2.7:", "http:", "http:/x", "http:ftp://a/",
		"http://user:pw@a/", "command:", "command:../x", "command:/bin/sh -c id", "icmp:1", "http://a/\n", "http://" + strings.Repeat("a", 3000),
	} {
		h, err := drover.ParseHealth(in)
		if drover.KindOf(err) != drover.Invalid {
			t.Errorf("%q is read as %v, %v", in, h, err)
		}
	}
	h, _ := drover.ParseHealth("tcp:80")
	if _, err := h.Complete(netip.Addr{}); drover.KindOf(err) != drover.Invalid {
		t.Errorf("a port without an address: %v", err)
	}
}
