package dhcp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
)

const testOwner = driver.Owner("vm/6d0d1f1e-0000-4000-8000-00000000000a")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, want drover.Kind) {
	t.Helper()
	if err == nil || drover.KindOf(err) != want {
		t.Fatalf("got %v of kind %v, want kind %v", err, drover.KindOf(err), want)
	}
}

// TestKeaEnded: addresses whose leases have ended are free again, and one that
// is reserved outlives its own end.
func TestKeaEnded(t *testing.T) {
	c := newClients(t)
	k := newKeaServers(t, c, 2)
	d := k.open(t)
	defer d.Close()
	ctx := t.Context()
	for i := range drivertest.LeasesPool {
		c.ask(t, "blue", fmt.Sprintf("52:54:00:5a:00:%02x", i))
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		free, err := d.Free(ctx, "blue")
		must(t, err)
		if free == (driver.FreeAddresses{V4: drivertest.LeasesPool, V6: drivertest.LeasesPool}) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("free: %+v", free)
		}
	}
	for i := range drivertest.LeasesPool {
		mac := fmt.Sprintf("52:54:00:d0:00:%02x", i)
		got, err := d.Reserve(ctx, testOwner, driver.LeaseRequest{Segment: "blue", MAC: mac})
		must(t, err)
		if asked := c.ask(t, "blue", mac); len(asked) != 2 || asked[0] != got.Addresses[0] || asked[1] != got.Addresses[1] {
			t.Fatalf("the client got %v, reserved %v", asked, got.Addresses)
		}
	}
	list, err := d.List(ctx)
	must(t, err)
	if len(list) != drivertest.LeasesPool {
		t.Fatalf("reserved: %+v", list)
	}
}

// TestKeaContext: what others have in a lease's user context stays, and a
// client's own lease ends as it would have.
func TestKeaContext(t *testing.T) {
	c := newClients(t)
	k := newKeaServers(t, c, 3600)
	d := k.open(t)
	defer d.Close()
	ctx, mac := t.Context(), "52:54:00:d0:00:01"
	own := c.ask(t, "blue", mac)
	family := keaFamily{true, k.socket("kea-dhcp4")}
	before := k.lease(t, own[0])
	before.Context = map[string]json.RawMessage{"site": json.RawMessage(`"their own"`)}
	must(t, family.update(ctx, before))
	before = k.lease(t, own[0])
	_, err := d.Reserve(ctx, testOwner, driver.LeaseRequest{Segment: "blue", MAC: mac})
	must(t, err)
	held := k.lease(t, own[0])
	if _, marked := held.mark(); !marked || held.ValidSeconds != endless || string(held.Context["site"]) != `"their own"` {
		t.Errorf("reserved: %+v", held)
	}
	if held.ClientID != before.ClientID || held.ClientID == "" {
		t.Errorf("the client's identity was %q, is %q", before.ClientID, held.ClientID)
	}
	must(t, d.Release(ctx, testOwner, "blue", mac))
	after := k.lease(t, own[0])
	if _, marked := after.mark(); marked || after.ValidSeconds != before.ValidSeconds || string(after.Context["site"]) != `"their own"` || after.ClientID != before.ClientID {
		t.Errorf("released: %+v, was %+v", after, before)
	}
}

// lease reads Kea's own word on an IPv4 address.
func (k *keaServers) lease(t *testing.T, a netip.Addr) keaLease {
	t.Helper()
	var l keaLease
	found, err := command(t.Context(), k.socket("kea-dhcp4"), "lease4-get", map[string]any{"ip-address": a.String()}, &l)
	if err != nil || !found {
		t.Fatalf("lease of %v: %v, %v", a, found, err)
	}
	return l
}

// TestKeaConfig: what NewKea refuses, and segments that Kea does not have as
// they are named.
func TestKeaConfig(t *testing.T) {
	four, six := netip.MustParsePrefix("10.77.1.0/24"), netip.MustParsePrefix("fd77:1::/64")
	for name, cfg := range map[string]KeaConfig{
		"no subnet": {Socket4: "/s", Segments: map[string]KeaSegment{"blue": {}}},
		"no socket": {Socket4: "/s", Segments: map[string]KeaSegment{"blue": {Subnet4: four, Subnet6: six}}},
		"swapped":   {Socket4: "/s", Socket6: "/t", Segments: map[string]KeaSegment{"blue": {Subnet4: six, Subnet6: four}}},
		"host bits": {Socket4: "/s", Segments: map[string]KeaSegment{"blue": {Subnet4: netip.MustParsePrefix("10.77.1.5/24")}}},
		"name":      {Socket4: "/s", Segments: map[string]KeaSegment{"a/b": {Subnet4: four}}},
	} {
		if _, err := NewKea(logTo(t), cfg); drover.KindOf(err) != drover.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := newClients(t)
	k := newKeaServers(t, c, 3600)
	d, err := NewKea(logTo(t), KeaConfig{Socket4: k.socket("kea-dhcp4"), Segments: map[string]KeaSegment{
		"blue": {Subnet4: four}, "red": {Subnet4: netip.MustParsePrefix("10.99.0.0/24")},
	}})
	must(t, err)
	defer d.Close()
	_, err = d.Free(t.Context(), "red")
	wantKind(t, err, drover.NotFound)
	got, err := d.Reserve(t.Context(), testOwner, driver.LeaseRequest{Segment: "blue", MAC: "52:54:00:d0:00:01"})
	if err != nil || len(got.Addresses) != 1 || len(got.DUID) != 0 {
		t.Errorf("a segment with IPv4 only: %+v, %v", got, err)
	}
	_, err = d.Reserve(t.Context(), testOwner, driver.LeaseRequest{Segment: "blue", MAC: "52:54:00:d0:00:02", Addresses: []netip.Addr{six.Addr().Next()}})
	wantKind(t, err, drover.Invalid)
}
