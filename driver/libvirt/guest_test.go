package libvirt_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/lab/guest/control"
)

var (
	fullVM = drivertest.GuestVM{Name: "full", MAC: "52:54:00:d6:00:01"}
	muteVM = drivertest.GuestVM{Name: "mute", MAC: "52:54:00:d6:00:02"}
	offVM  = drivertest.GuestVM{Name: "off", MAC: "52:54:00:d6:00:03"}
	bareVM = drivertest.GuestVM{Name: "bare", MAC: "52:54:00:d6:00:04"}
)

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, s := range texts {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

// TestGuests runs the suite on real guests, which answer as QEMU's agent does and
// have a kernel that does with addresses what Linux does.
func TestGuests(t *testing.T) {
	h := newGuestHost(t, "guests", "d2000000-0000-4000-8000-00000000000c", t.TempDir(), "br-other")
	hv := h.open(t)
	t.Cleanup(func() { _ = hv.Close() })
	for _, a := range []string{"192.0.2.1/24", "198.51.100.1/24", "2001:db8:2::1/64", "2001:db8:51::1/64"} {
		args := []string{"ip", "address", "add", a, "dev", "br-test"}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		h.run(t, args...)
	}
	had := []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("2001:db8:2::10/64")}
	gateways := addrs("192.0.2.1", "2001:db8:2::1")
	static := fmt.Sprintf("drover.ip=%s,%s drover.gw=%s,%s", had[0], had[1], gateways[0], gateways[1])
	stop := h.leases(t, "br-test", muteVM.MAC, gateways[0], netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8:2::77"))
	h.boot(t, hv, h.guestXML(fullVM.Name, "d6000000-0000-4000-8000-000000000001", fullVM.MAC, "br-test", static, true))
	h.boot(t, hv, h.guestXML(muteVM.Name, "d6000000-0000-4000-8000-000000000002", muteVM.MAC, "br-test",
		"drover.ip=dhcp,dhcp6 drover.gw=2001:db8:2::1 drover.agent=off", true))
	h.boot(t, hv, h.guestXML("hangs", "d6000000-0000-4000-8000-000000000009", "52:54:00:d6:00:09", "br-test", "drover.agent=hang", true))
	for _, vm := range []drivertest.GuestVM{offVM, bareVM} {
		def := h.guestXML(vm.Name, "d6000000-0000-4000-8000-00000000000"+vm.MAC[len(vm.MAC)-1:], vm.MAC, "br-test", "drover.ip=dhcp", false)
		if _, err := hv.Define(t.Context(), def); err != nil {
			t.Fatal(err)
		}
	}
	g := h.guests(t)
	t.Cleanup(func() { _ = g.Close() })
	full, mute := h.control(t, "br-test", fullVM.MAC), h.control(t, "br-test", muteVM.MAC)
	until(t, "guests answer", func() error { return errors.Join(full.Health(t.Context()), mute.Health(t.Context())) })
	until(t, "agent answers", func() error {
		a, err := g.Agent(t.Context(), fullVM.Name)
		if err == nil && !a.Answers {
			err = errors.New(a.Fault)
		}
		return err
	})

	drivertest.Guests(t, drivertest.GuestsSetup{
		New:       func(t *testing.T) driver.Guests { return h.guests(t) },
		WithAgent: fullVM, WithoutAgent: muteVM, Off: offVM,
		Had: had, Gateways: gateways,
		Sources:    func(t *testing.T, _ drivertest.GuestVM) []netip.Addr { return sources(t, full) },
		Link:       func(t *testing.T, vm drivertest.GuestVM) bool { return linkState(t, h, vm) },
		Hostname:   func(t *testing.T, vm drivertest.GuestVM) string { return hostname(t, h, vm) },
		Hypervisor: hv, Networks: [2]string{"br-test", "br-other"},
		VM: smallVM(t), Define: define, DiskFolder: diskFolder,
	})
	t.Run("OldSessions", func(t *testing.T) { testOldSessions(t, h, g, full, had) })
	t.Run("AskAgain", func(t *testing.T) { testAskAgain(t, h, g, mute, stop) })
	t.Run("NoChannel", func(t *testing.T) {
		if err := hv.Start(t.Context(), bareVM.Name); err != nil {
			t.Fatal(err)
		}
		a, err := g.Agent(t.Context(), bareVM.Name)
		if err != nil || a.Answers || a.Fault == "" {
			t.Errorf("agent of a vm without a port for one: %+v, %v", a, err)
		}
		if _, err := g.Interfaces(t.Context(), bareVM.Name); drover.KindOf(err) != drover.Refused {
			t.Errorf("interfaces: %v", err)
		}
	})
	t.Run("Hangs", func(t *testing.T) { testHangs(t, h, g, hv) })
	t.Run("Signals", func(t *testing.T) { testSignals(t, h, hv, fullVM.Name, full) })
}

// session is a connection to a guest's session server that proves at each step
// that it is still the same one.
type session struct {
	conn net.Conn
	r    *bufio.Reader
	n    uint64
}

func openSession(t *testing.T, h *guestHost, to netip.Addr) *session {
	t.Helper()
	var conn net.Conn
	until(t, "a session with "+to.String(), func() (err error) {
		conn, err = h.dial(t.Context(), "tcp", netip.AddrPortFrom(to, control.SessionPort).String())
		return err
	})
	t.Cleanup(func() { _ = conn.Close() })
	s := &session{conn: conn, r: bufio.NewReader(conn)}
	s.echo(t)
	return s
}

func (s *session) echo(t *testing.T) {
	t.Helper()
	s.n++
	if err := s.conn.SetDeadline(time.Now().Add(guestWait)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(s.conn, "ECHO %d\n", s.n); err != nil {
		t.Fatalf("session: %v", err)
	}
	line, err := s.r.ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) < 4 || fields[0] != "OK" || fields[2] != fmt.Sprint(s.n) {
		t.Fatalf("session answers %q, %v; want OK and count %d", line, err, s.n)
	}
}

// testOldSessions: sessions to the old address go on under another primary one.
func testOldSessions(t *testing.T, h *guestHost, g driver.Guests, c *control.Client, had []netip.Prefix) {
	four, six := openSession(t, h, had[0].Addr()), openSession(t, h, had[1].Addr())
	to := driver.GuestAddresses{
		Prefixes: []netip.Prefix{netip.MustParsePrefix("198.51.100.20/24"), netip.MustParsePrefix("2001:db8:51::20/64")},
		Gateways: addrs("198.51.100.1", "2001:db8:51::1"), Primary: true,
	}
	began := time.Now()
	until(t, "the guest takes the new addresses", func() error {
		err := g.AddAddress(t.Context(), fullVM.Name, fullVM.MAC, to)
		if err != nil && drover.KindOf(err) != drover.Unavailable {
			t.Fatal(err)
		}
		return err
	})
	t.Logf("new primary addresses in %v", time.Since(began))
	four.echo(t)
	six.echo(t)
	list := guestAddresses(t, c)
	for _, p := range had {
		if !slices.ContainsFunc(list, func(a control.Address) bool {
			return a.Prefix.Addr() == p.Addr() && a.Sessions == 1 && !a.Primary
		}) {
			t.Errorf("%s is not an old address with one session: %+v", p, list)
		}
	}
	for _, p := range to.Prefixes {
		openSession(t, h, p.Addr()).echo(t)
	}
}

// testAskAgain: a guest without an agent whose cable was out asks DHCP, and keeps
// the old address for its session, until that has ended.
func testAskAgain(t *testing.T, h *guestHost, g driver.Guests, c *control.Client, stop func()) {
	has := func(want ...string) func() error {
		return func() error {
			list, err := c.Addresses(t.Context())
			if err != nil {
				return err
			}
			var got []string
			for _, a := range list {
				text := a.Prefix.String()
				if a.Primary {
					text = "*" + text
				}
				got = append(got, text)
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				return fmt.Errorf("addresses %v, want %v", got, want)
			}
			return nil
		}
	}
	until(t, "first leases", has("*192.0.2.77/24", "*2001:db8:2::77/128"))
	old4, old6 := openSession(t, h, netip.MustParseAddr("192.0.2.77")), openSession(t, h, netip.MustParseAddr("2001:db8:2::77"))
	stop()
	h.leases(t, "br-test", muteVM.MAC, netip.MustParseAddr("198.51.100.1"),
		netip.MustParseAddr("198.51.100.77"), netip.MustParseAddr("2001:db8:51::77"))
	// A guest that does not get to run while the cable is out does not notice, so
	// this is done until it has.
	bounced := time.Time{}
	renewed := has("*198.51.100.77/24", "192.0.2.77/32", "*2001:db8:51::77/128", "2001:db8:2::77/128")
	until(t, "new leases beside the old", func() error {
		if time.Since(bounced) > 10*time.Second {
			if err := g.SetLink(t.Context(), muteVM.Name, muteVM.MAC, false); err != nil {
				t.Fatal(err)
			}
			time.Sleep(driver.LinkDownTime)
			if err := g.SetLink(t.Context(), muteVM.Name, muteVM.MAC, true); err != nil {
				t.Fatal(err)
			}
			bounced = time.Now()
		}
		return renewed()
	})
	old4.echo(t)
	old6.echo(t)
	_ = old4.conn.Close()
	until(t, "the old address without a session is dropped", has("*198.51.100.77/24", "*2001:db8:51::77/128", "2001:db8:2::77/128"))
	until(t, "the guest takes an address away", func() error {
		return c.DropAddress(t.Context(), netip.MustParseAddr("2001:db8:2::77"))
	})
	until(t, "dropped when told", has("*198.51.100.77/24", "*2001:db8:51::77/128"))
	until(t, "to drop the last address is refused", func() error {
		err := c.DropAddress(t.Context(), netip.MustParseAddr("198.51.100.77"))
		var refused *control.StatusError
		if err == nil {
			t.Fatal("the last address is dropped")
		}
		if !errors.As(err, &refused) || refused.Code != http.StatusConflict {
			return err
		}
		return nil
	})
}

// testHangs: an agent that does not answer is noticed within seconds, and holds
// up nobody else.
func testHangs(t *testing.T, h *guestHost, g driver.Guests, hv driver.Hypervisor) {
	// Libvirt says that the port is open as soon as the guest has opened it.
	until(t, "the agent has opened its port", func() error {
		if !strings.Contains(h.virsh(t, "dumpxml", "hangs"), "state='connected'") {
			return errors.New("the port is closed")
		}
		return nil
	})
	a, err := g.Agent(t.Context(), "hangs")
	if err != nil || a.Answers || a.Fault == "" {
		t.Errorf("agent that hangs: %+v, %v", a, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), guestWait)
	defer cancel()
	asked := make(chan error)
	go func() {
		_, err := g.Interfaces(ctx, "hangs")
		asked <- err
	}()
	until(t, "another guest's agent answers", func() error {
		a, err := g.Agent(ctx, fullVM.Name)
		if err == nil && !a.Answers {
			err = errors.New(a.Fault)
		}
		return err
	})
	if _, err := hv.VM(ctx, "hangs"); err != nil {
		t.Errorf("the hypervisor: %v", err)
	}
	if err := <-asked; drover.KindOf(err) != drover.Unavailable || ctx.Err() != nil {
		t.Errorf("interfaces: %v", err)
	}
}
