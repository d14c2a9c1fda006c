package libvirt_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/lab/guest"
)

var debian = flag.Bool("debian", false, "run the guests' suite on a Debian guest, which takes a minute")

// TestGuestsDebian runs the suite on an installed system with QEMU's own agent,
// iproute2 and file systems.
func TestGuestsDebian(t *testing.T) {
	if !*debian {
		t.Skip("takes a minute: go test -run Debian -args -debian")
	}
	image, err := guest.BuildDebian(t.Context(), slog.New(slog.DiscardHandler), guest.DefaultCacheDir)
	if err != nil {
		t.Fatal(err)
	}
	h := newGuestHost(t, "debian", "d2000000-0000-4000-8000-00000000000f", t.TempDir(), "br-other")
	hv := h.open(t)
	t.Cleanup(func() { _ = hv.Close() })
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", image.Disk, "-F", "raw", h.image("full.qcow2"))
	had := []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("2001:db8:2::10/64")}
	static := fmt.Sprintf("root=/dev/vda drover.ip=%s,%s drover.gw=192.0.2.1,2001:db8:2::1", had[0], had[1])
	def := string(h.guestXML(fullVM.Name, "d8000000-0000-4000-8000-000000000001", fullVM.MAC, "br-test", static, true))
	def = strings.Replace(def, "<memory unit='MiB'>128<", "<memory unit='MiB'>512<", 1)
	def = strings.Replace(def, "<serial ", "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='"+
		diskFolder+"/full.qcow2'/><target dev='vda' bus='virtio'/></disk><serial ", 1)
	h.boot(t, hv, driver.Definition(def))
	h.boot(t, hv, h.guestXML(muteVM.Name, "d8000000-0000-4000-8000-000000000002", muteVM.MAC, "br-test", "drover.agent=off", true))
	if _, err := hv.Define(t.Context(), h.guestXML(offVM.Name, "d8000000-0000-4000-8000-000000000003", offVM.MAC, "br-test", "", false)); err != nil {
		t.Fatal(err)
	}
	g := h.guests(t)
	t.Cleanup(func() { _ = g.Close() })
	full := h.control(t, "br-test", fullVM.MAC)
	until(t, "the guest answers", func() error { return full.Health(t.Context()) })
	until(t, "the agent answers", func() error {
		a, err := g.Agent(t.Context(), fullVM.Name)
		if err == nil && !a.Answers {
			err = errors.New(a.Fault)
		}
		return err
	})
	drivertest.Guests(t, drivertest.GuestsSetup{
		New:       func(t *testing.T) driver.Guests { return h.guests(t) },
		WithAgent: fullVM, WithoutAgent: muteVM, Off: offVM,
		Had: had, Gateways: addrs("192.0.2.1", "2001:db8:2::1"),
		Sources:    func(t *testing.T, _ drivertest.GuestVM) []netip.Addr { return sources(t, full) },
		Link:       func(t *testing.T, vm drivertest.GuestVM) bool { return linkState(t, h, vm) },
		Hostname:   func(t *testing.T, vm drivertest.GuestVM) string { return hostname(t, h, vm) },
		Hypervisor: hv, Networks: [2]string{"br-test", "br-other"},
		VM: smallVM(t), Define: define, DiskFolder: diskFolder,
	})
	t.Run("Download", func(t *testing.T) {
		h.run(t, "ip", "address", "replace", "192.0.2.1/24", "dev", "br-test")
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return h.dial(ctx, network, had[0].Addr().String()+":80")
		}}}
		var resp *http.Response
		until(t, "nginx answers", func() (err error) {
			resp, err = client.Get("http://guest/1g")
			return err
		})
		defer resp.Body.Close()
		n, err := io.CopyN(io.Discard, resp.Body, 16<<20)
		if resp.StatusCode != http.StatusOK || resp.ContentLength != 1<<30 || err != nil {
			t.Errorf("%s, %d bytes, %d read: %v", resp.Status, resp.ContentLength, n, err)
		}
	})
}
