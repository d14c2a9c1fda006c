package trial_test

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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/trial"
)

// renumberTrial is the lab, whose segments blue, at home at north, and green, at
// south, have nothing in common.
type renumberTrial struct {
	*routedTrial
	dns []netip.AddrPort
	// now are sheep1's addresses at south.
	now []netip.Addr
}

// testRenumber moves guests into another segment of another site, and back: one
// with an agent, and one that has none and asks DHCP.
func testRenumber(r *routedTrial) {
	m := &renumberTrial{dns: r.services("west").Zones[0].Servers}
	for _, sub := range []struct {
		name string
		run  func()
	}{
		{"preflight", m.preflight},
		{"sessions end", m.sessionsEnd},
		{"back, to the limit", m.limit},
		{"no agent", m.noAgent},
		{"no agent, no DHCP", m.nobody},
	} {
		r.t.Run(sub.name, func(t *testing.T) {
			here := *r
			here.t = t
			m.routedTrial = &here
			sub.run()
		})
	}
}

// oldSession is a client's session with a guest.
type oldSession struct {
	conn net.Conn
	stop func() error

	mu    sync.Mutex
	beats int
	last  time.Time
	// silences are those of a tenth of a second and longer.
	silences []silence
}

type silence struct {
	began  time.Time
	lasted time.Duration
}

// open begins a session from the client outside; it is used all the time.
func (m *renumberTrial) open(address netip.Addr) *oldSession {
	m.t.Helper()
	conn, err := m.lab.Dial(timeout(m.t, 10*time.Second), "c1", "tcp", netip.AddrPortFrom(address, control.SessionPort).String())
	if err != nil {
		m.t.Fatal(err)
	}
	s := &oldSession{conn: conn, last: time.Now()}
	ended, quit := make(chan error, 1), make(chan struct{})
	go func() { ended <- s.use(quit) }()
	s.stop = sync.OnceValue(func() error {
		close(quit)
		err := <-ended
		return errors.Join(err, conn.Close())
	})
	m.t.Cleanup(func() { _ = s.stop() })
	return s
}

// patience is how long a session may be silent before it is lost.
const patience = 20 * time.Second

func (s *oldSession) use(quit <-chan struct{}) error {
	r := bufio.NewReader(s.conn)
	for n := 1; ; n++ {
		select {
		case <-quit:
			return nil
		case <-time.After(10 * time.Millisecond):
		}
		if err := s.conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(s.conn, "ECHO %d\n", n); err != nil {
			return err
		}
		line, err := r.ReadString('\n')
		// The count proves that the guest has the session's state.
		if words := strings.Fields(line); err != nil || len(words) < 4 || words[0] != "OK" || words[2] != fmt.Sprint(n) {
			return fmt.Errorf("beat %d is answered %q: %w", n, line, err)
		}
		s.mu.Lock()
		if gap := time.Since(s.last); gap > 100*time.Millisecond {
			s.silences = append(s.silences, silence{s.last, gap})
		}
		s.beats, s.last = n, time.Now()
		s.mu.Unlock()
	}
}

// pause is the longest silence that began before then.
func (s *oldSession) pause(then time.Time) silence {
	s.mu.Lock()
	defer s.mu.Unlock()
	var worst silence
	for _, x := range s.silences {
		if x.lasted > worst.lasted && x.began.Before(then) {
			worst = x
		}
	}
	return worst
}

// byName keeps beginning sessions by a DNS name, past all caches, and notes when
// the first reaches one of the segment's addresses.
func (m *renumberTrial) byName(ctx context.Context, network, name string, segment netip.Prefix) <-chan time.Time {
	reached := make(chan time.Time, 1)
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, proto, _ string) (net.Conn, error) {
		return m.lab.Dial(ctx, "c1", proto, m.dns[0].String())
	}}
	var once sync.Once
	var tries sync.WaitGroup
	go func() {
		defer tries.Wait()
		for ctx.Err() == nil {
			tries.Go(func() {
				try, cancel := context.WithTimeout(ctx, 2*time.Second)
				defer cancel()
				found, err := r.LookupNetIP(try, network, name+".")
				if err != nil || len(found) == 0 || !segment.Contains(found[0].Unmap()) {
					return
				}
				c, err := m.lab.Dial(try, "c1", "tcp", netip.AddrPortFrom(found[0].Unmap(), control.SessionPort).String())
				if err == nil {
					at := time.Now()
					_ = c.Close()
					once.Do(func() { reached <- at })
				}
			})
			time.Sleep(50 * time.Millisecond)
		}
	}()
	return reached
}

// begin begins a move by renumber.
func (m *renumberTrial) begin(vm, to, segment string, flags ...string) string {
	m.t.Helper()
	var mv drover.Move
	args := append([]string{"move", vm, "--to", to, "--method", "renumber", "--segment", segment, "--name", vm + ".routed.example", "--detach"}, flags...)
	if err := m.Drover(timeout(m.t, time.Minute), &mv, args...); err != nil {
		m.t.Fatal(err)
	}
	return mv.Name
}

// longest is what conntrack keeps a session for whose end it has not seen.
const longest = 6 * time.Minute

// until waits for the move to show something.
func (m *renumberTrial) until(name, what string, ok func(drover.Move) bool) drover.Move {
	m.t.Helper()
	var mv drover.Move
	for end := time.Now().Add(longest); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err := m.Drover(timeout(m.t, 30*time.Second), &mv, "moves", "get", name); err == nil && (ok(mv) || mv.State.Final()) {
			break
		}
	}
	if !ok(mv) {
		m.t.Fatalf("%s: never; the move is %s (%s), %+v", what, mv.State, mv.Fault, mv.Renumber)
	}
	return mv
}

func counted(mv drover.Move) bool { return mv.Renumber != nil && mv.Renumber.OldSessions != nil }

func done(mv drover.Move) bool { return mv.State == drover.MoveDone }

// refused expects that no new session with an old address begins.
func (m *renumberTrial) refused(addresses []netip.Addr) {
	m.t.Helper()
	for _, a := range addresses {
		c, err := m.lab.Dial(timeout(m.t, 10*time.Second), "c1", "tcp", netip.AddrPortFrom(a, control.SessionPort).String())
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			m.t.Errorf("a new session with %s: %v, want it refused", a, err)
		}
	}
}

// clean looks at the components themselves: of a move that is over nothing
// stands but the lease and what the name answers.
func (m *renumberTrial) clean(vm string, want []netip.Addr) {
	m.t.Helper()
	m.tidy()
	for _, edge := range []string{"edge-north", "edge-south", "edge-west"} {
		out, err := m.shell(edge, `nft list tables | grep drover; ip rule show pref 21500; ip -6 rule show pref 21500; ip route show table all proto 215
			ip -6 route show table all proto 215; ip neigh show proxy; ip -6 neigh show proxy; ip -o link show | grep -w dvold; true`)
		if err != nil || out != "" {
			m.t.Errorf("%s still has, error %v:\n%s", edge, err, out)
		}
	}
	for _, server := range m.dns {
		out, err := m.shell("c1", fmt.Sprintf("dig +noall +answer @%s %s.routed.example A %[2]s.routed.example AAAA", server.Addr(), vm))
		for _, a := range want {
			if !strings.Contains(out, a.String()) {
				err = errors.Join(err, fmt.Errorf("no %s", a))
			}
		}
		if err != nil || strings.Count(out, "\t300\t") != 2 || strings.Count(out, "\n") != 1 {
			m.t.Errorf("%s answers, error %v:\n%s", server, err, out)
		}
	}
}

// has expects the guest to have just these addresses, by its own word.
func (m *renumberTrial) has(want []netip.Addr) {
	m.t.Helper()
	g := m.at(want[0])
	var got []netip.Addr
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		list, err := g.Addresses(timeout(m.t, 10*time.Second))
		if err != nil {
			m.t.Fatal(err)
		}
		got = nil
		for _, a := range list {
			if !a.Prefix.Addr().IsLinkLocalUnicast() {
				got = append(got, a.Prefix.Addr())
			}
		}
		slices.SortFunc(got, netip.Addr.Compare)
		if slices.Equal(got, want) {
			return
		}
	}
	m.t.Errorf("the guest has %v, want %v", got, want)
}

func (m *renumberTrial) preflight() {
	// The guest is asked for its addresses beside everything else.
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		err := m.Drover(timeout(m.t, time.Minute), nil, "preflight", "sheep1", "--to", "south", "--method", "renumber")
		if err == nil {
			break
		}
		if time.Now().After(end) {
			m.t.Fatal(err)
		}
	}
	for _, c := range []struct {
		fault string
		flags []string
	}{
		{"segments", []string{"--segment", "nosuch"}},
		{"segments", []string{"--segment", "blue"}},
		{"segments", []string{"--new-address", "10.50.0.99"}},
		{"address-unused", []string{"--new-address", "10.60.0.77"}},
		{"dns-name", []string{"--name", "sheep2.routed.example"}},
		{"dns-name", []string{"--name", "sheep1.elsewhere.example"}},
	} {
		if c.fault == "address-unused" {
			if out, err := m.shell("s1", "ip addr add 10.60.0.77/24 dev br-green"); err != nil {
				m.t.Fatalf("%v: %s", err, out)
			}
		}
		var p drover.Preflight
		err := m.Drover(timeout(m.t, time.Minute), &p, append([]string{"preflight", "sheep1", "--to", "south", "--method", "renumber"}, c.flags...)...)
		bad := slices.IndexFunc(p.Checks, func(c drover.Check) bool { return !c.OK && !c.Warning })
		if err == nil || p.OK || bad < 0 || p.Checks[bad].Name != c.fault || p.Checks[bad].Fix == "" {
			m.t.Errorf("%v: %v, %+v: want the finding %s with a fix", c.flags, err, p.Checks, c.fault)
		}
	}
	if out, err := m.shell("s1", "ip addr del 10.60.0.77/24 dev br-green"); err != nil {
		m.t.Fatalf("%v: %s", err, out)
	}
}

var (
	green4, green6 = netip.MustParsePrefix("10.60.0.0/24"), netip.MustParsePrefix("fd00:60::/64")
	sheep1Home     = []netip.Addr{netip.MustParseAddr("10.50.0.11"), netip.MustParseAddr("fd00:50::11")}
)

// sessionsEnd moves sheep1 to south; the move is over when its old sessions are.
func (m *renumberTrial) sessionsEnd() {
	before := m.boot(sheep1Home[0])
	old4, old6 := m.open(sheep1Home[0]), m.open(sheep1Home[1])
	watch, cancel := context.WithCancel(m.t.Context())
	defer cancel()
	new4, new6 := m.byName(watch, "ip4", "sheep1.routed.example", green4), m.byName(watch, "ip6", "sheep1.routed.example", green6)
	name := m.begin("sheep1", "south", "green")
	mv := m.until(name, "its old sessions are counted", counted)
	first := map[string]<-chan time.Time{"IPv4": new4, "IPv6": new6}
	pause := time.Duration(*mv.Measured.PauseMillis * float64(time.Millisecond))
	for family, c := range first {
		select {
		case at := <-c:
			seen := old4.pause(at)
			m.t.Logf("the first new session by its name, %s: %d ms after the resume; pause %v, an old session was silent for %v",
				family, at.Sub(seen.began.Add(pause)).Milliseconds(), pause, seen.lasted)
		case <-time.After(30 * time.Second):
			m.t.Errorf("no new session by its name reaches it in %s", family)
		}
	}
	m.t.Logf("outage %.0f ms by the probe", *mv.Measured.OutageMillis)
	cancel()
	m.refused(sheep1Home)
	if mv.State != drover.MoveRunning || *mv.Measured.SessionsLost != 0 {
		m.t.Errorf("the move is %s, %d sessions lost", mv.State, *mv.Measured.SessionsLost)
	}
	mv = m.until(name, "two sessions are left", func(mv drover.Move) bool { return counted(mv) && *mv.Renumber.OldSessions == 2 })
	if err := errors.Join(old4.stop(), old6.stop()); err != nil {
		m.t.Errorf("an old session is lost: %v", err)
	}
	mv = m.until(name, "the move ends with its old sessions", done)
	if f := mv.Measured; f.SessionsLost == nil || *f.SessionsLost != 0 || f.Sessions == nil || *f.Sessions == 0 {
		m.t.Errorf("sessions lost %v of %v, want 0 of some", f.SessionsLost, f.Sessions)
	}
	m.now = mv.Renumber.New
	m.has(m.now)
	m.clean("sheep1", m.now)
	if after := m.boot(mv.Renumber.New[0]); after != before {
		m.t.Errorf("it was booted anew: %s, was %s", after, before)
	}
	if err := m.OnlyAt(timeout(m.t, time.Minute), "sheep1", "s1", "running"); err != nil {
		m.t.Error(err)
	}
}

// at is the control client of a guest that has the address.
func (m *renumberTrial) at(a netip.Addr) *control.Client {
	m.t.Helper()
	g, err := m.Guest("c1", "sheep1")
	if err != nil {
		m.t.Fatal(err)
	}
	g.Base = "http://" + netip.AddrPortFrom(a, control.HTTPPort).String()
	// A connection that is kept open is an old session, too.
	g.HTTP.Transport.(*http.Transport).DisableKeepAlives = true
	return g
}

func (m *renumberTrial) boot(a netip.Addr) string {
	m.t.Helper()
	stats, err := m.at(a).Stats(timeout(m.t, 20*time.Second))
	if err != nil {
		m.t.Fatal(err)
	}
	return fmt.Sprint(stats.BootID)
}

// limit moves sheep1 into blue again, with a session that does not end by
// itself.
func (m *renumberTrial) limit() {
	if len(m.now) == 0 {
		m.t.Fatal("it has not moved")
	}
	old := m.open(m.now[0])
	name := m.begin("sheep1", "north", "blue", "--old-limit", "10s", "--new-address", "10.50.0.130")
	mv := m.until(name, "the limit ends it", done)
	if f := mv.Measured; f.SessionsLost == nil || *f.SessionsLost < 1 {
		m.t.Errorf("measured %+v, want a session lost at least", f)
	}
	if err := old.stop(); err == nil {
		m.t.Error("the session goes on after the limit")
	}
	if now := mv.Renumber.New; len(now) != 2 || now[0] != netip.MustParseAddr("10.50.0.130") {
		m.t.Errorf("it has %v, want 10.50.0.130 and one of IPv6", now)
	}
	m.has(mv.Renumber.New)
	m.clean("sheep1", mv.Renumber.New)
}

// noAgent moves sheep2, which has its addresses by DHCP and no agent.
func (m *renumberTrial) noAgent() {
	m.reboot("drover.agent=off")
	old := m.open(netip.MustParseAddr("10.50.0.12"))
	name := m.begin("sheep2", "south", "green", "--address", "10.50.0.12", "--address", "fd00:50::12")
	mv := m.until(name, "its old session is counted", counted)
	if err := old.stop(); err != nil {
		m.t.Errorf("the old session is lost: %v", err)
	}
	mv = m.until(name, "the move ends with its old session", done)
	m.t.Logf("pause %.0f ms, outage %.0f ms", *mv.Measured.PauseMillis, *mv.Measured.OutageMillis)
	m.has(mv.Renumber.New)
	m.clean("sheep2", mv.Renumber.New)
}

// reboot starts sheep2 at n1 with another setting.
func (m *renumberTrial) reboot(setting string) {
	m.t.Helper()
	line := `virsh dumpxml --inactive sheep2 | sed "s# drover.agent=off##; s#</cmdline># ` + setting + `</cmdline>#" >/tmp/sheep2.xml && virsh define /tmp/sheep2.xml && virsh destroy sheep2 && virsh start sheep2`
	if out, err := m.shell("n1", line); err != nil {
		m.t.Fatalf("%v: %s", err, out)
	}
	if err := trial.WaitHealthy(timeout(m.t, time.Minute), m.at(netip.MustParseAddr("10.50.0.12"))); err != nil {
		m.t.Fatal(err)
	}
}

// nobody: a guest without an agent, and with addresses that are not from DHCP,
// stays where it is.
func (m *renumberTrial) nobody() {
	line := `virsh dumpxml --inactive sheep1 | sed "s#</cmdline># drover.agent=off</cmdline>#" >/tmp/sheep1.xml && virsh define /tmp/sheep1.xml && virsh destroy sheep1 && virsh start sheep1`
	if out, err := m.shell("n1", line); err != nil {
		m.t.Fatalf("%v: %s", err, out)
	}
	if err := trial.WaitHealthy(timeout(m.t, time.Minute), m.at(sheep1Home[0])); err != nil {
		m.t.Fatal(err)
	}
	var p drover.Preflight
	err := m.Drover(timeout(m.t, time.Minute), &p, "preflight", "sheep1", "--to", "south", "--method", "renumber", "--address", "10.50.0.11")
	bad := slices.IndexFunc(p.Checks, func(c drover.Check) bool { return !c.OK && !c.Warning })
	if err == nil || bad < 0 || p.Checks[bad].Name != "guest" || p.Checks[bad].Fix == "" {
		m.t.Errorf("%v, %+v: want the finding guest with a fix", err, p.Checks)
	}
}
