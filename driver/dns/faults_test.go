package dns

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const testOwner = driver.Owner("vm/6d0d1f1e-0000-4000-8000-00000000000a")

var (
	oldRecords = driver.NameRecords{
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}, TTL4: time.Hour, TTL6: time.Hour,
	}
	newAddresses = []netip.Addr{netip.MustParseAddr("198.51.100.7")}
)

// relay passes messages by TCP to the primary. Before is called before an
// update is passed on; with lose, its reply is not.
type relay struct {
	address string
	before  func()
	lose    atomic.Bool
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{address: l.Addr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.serve(conn)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return r
}

// serve passes on one request and its reply.
func (r *relay) serve(conn net.Conn) {
	defer conn.Close()
	request, err := readMessage(conn)
	if err != nil {
		return
	}
	var m dns.Msg
	update := m.Unpack(request) == nil && m.Opcode == dns.OpcodeUpdate
	if update && r.before != nil {
		r.before()
	}
	up, err := net.Dial("tcp", primaryIP+":53")
	if err != nil {
		return
	}
	defer up.Close()
	if writeMessage(up, request) != nil {
		return
	}
	reply, err := readMessage(up)
	if err != nil || update && r.lose.Load() {
		return
	}
	_ = writeMessage(conn, reply)
}

func readMessage(r io.Reader) ([]byte, error) {
	var length uint16
	if err := binary.Read(r, binary.BigEndian, &length); err != nil {
		return nil, err
	}
	raw := make([]byte, length)
	_, err := io.ReadFull(r, raw)
	return raw, err
}

func writeMessage(w io.Writer, raw []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...))
	return err
}

func wantKind(t *testing.T, err error, want drover.Kind) {
	t.Helper()
	if err == nil || drover.KindOf(err) != want {
		t.Fatalf("got %v of kind %v, want kind %v", err, drover.KindOf(err), want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// primaryHas fails unless the primary answers exactly the records.
func primaryHas(t *testing.T, s *Server, name string, want driver.NameRecords) {
	t.Helper()
	got, err := s.read(t.Context(), name)
	must(t, err)
	if !want.Answer(got.records) || !got.records.Answer(want) {
		t.Fatalf("%s is %+v, want %+v", name, got.records, want)
	}
}

// TestRace: somebody changes the name, or its mark, between the driver's
// reading and its update.
func TestRace(t *testing.T) {
	bind(t, primaryIP, testZone, bindPrimary, zoneFile(1)).start(t)
	r, name := newRelay(t), "web1."+testZone
	s := open(t, Config{Primary: r.address, Servers: []string{primaryIP}})
	defer s.Close()
	theirs := driver.NameRecords{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.9")}, TTL4: time.Minute}
	put(t, testZone, name, oldRecords)
	r.before = func() { put(t, testZone, name, theirs) }
	for _, change := range []func() error{
		func() error { _, err := s.Lower(t.Context(), testOwner, name, time.Second); return err },
		func() error { _, err := s.Set(t.Context(), testOwner, name, newAddresses, 0); return err },
	} {
		put(t, testZone, name, oldRecords)
		wantKind(t, change(), drover.Refused)
		primaryHas(t, s, name, theirs)
	}
	put(t, testZone, name, oldRecords)
	r.before = nil
	_, err := s.Set(t.Context(), testOwner, name, newAddresses, 0)
	must(t, err)
	r.before = func() { put(t, testZone, name, theirs) }
	wantKind(t, s.Restore(t.Context(), testOwner, name), drover.Refused)
	primaryHas(t, s, name, theirs)
	r.before = nil
	must(t, s.Settle(t.Context(), testOwner, name))
	// Another owner that lowers the TTL changes no address, only the mark.
	put(t, testZone, name, oldRecords)
	direct := open(t, Config{})
	defer direct.Close()
	r.before = func() {
		if _, err := direct.Lower(t.Context(), "move/m-2", name, 2*time.Second); err != nil {
			t.Error(err)
		}
	}
	_, err = s.Lower(t.Context(), testOwner, name, time.Second)
	wantKind(t, err, drover.Refused)
	r.before = nil
	if mark, err := s.Owned(t.Context(), name); err != nil || mark.Owner != "move/m-2" {
		t.Errorf("the other owner's mark is %+v, %v", mark, err)
	}
	must(t, direct.Restore(t.Context(), "move/m-2", name))
	// An alias that appears is not made unreachable either.
	put(t, testZone, name, driver.NameRecords{})
	r.before = func() {
		admin(t, testZone, func(m *dns.Msg) {
			m.Insert([]dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: name + ".", Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 60}, Target: "ns1." + testZone + "."}})
		})
	}
	_, err = s.Set(t.Context(), testOwner, name, newAddresses, 0)
	wantKind(t, err, drover.Refused)
	if list := texts(t, "_drover."+name); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

// TestLostReply: a change whose reply is lost is told as such, and repeating
// it finds that it was made.
func TestLostReply(t *testing.T) {
	knot(t, primaryIP, zoneFile(1)).start(t)
	r, name := newRelay(t), "web1."+testZone
	s := open(t, Config{Primary: r.address, Servers: []string{primaryIP}})
	defer s.Close()
	put(t, testZone, name, oldRecords)
	set := func() error { _, err := s.Set(t.Context(), testOwner, name, newAddresses, time.Minute); return err }
	for _, change := range []func() error{
		set,
		func() error { return s.Restore(t.Context(), testOwner, name) },
		set,
		func() error { return s.Settle(t.Context(), testOwner, name) },
	} {
		r.lose.Store(true)
		wantKind(t, change(), drover.Unknown)
		before, _ := serial(primaryIP, testZone)
		r.lose.Store(false)
		must(t, change())
		if after, _ := serial(primaryIP, testZone); after != before {
			t.Errorf("repeating changed the zone: %d, %d", before, after)
		}
	}
	primaryHas(t, s, name, driver.NameRecords{Addresses: newAddresses, TTL4: time.Hour})
}

// TestPolicy: where the server allows single names, Check tells which.
func TestPolicy(t *testing.T) {
	const policy = `type primary; update-policy {
		grant drover. name web1.lab.test A AAAA;
		grant drover. name _drover.web1.lab.test TXT;
		grant drover. name half.lab.test A AAAA;
		grant admin. zonesub ANY;
	}; allow-transfer { none; };`
	bind(t, primaryIP, testZone, policy, zoneFile(1)).start(t)
	s := open(t, Config{})
	defer s.Close()
	before, _ := serial(primaryIP, testZone)
	must(t, s.Check(t.Context(), "web1."+testZone))
	for _, name := range []string{"web2", "half"} { // the latter has no right to a mark
		wantKind(t, s.Check(t.Context(), name+"."+testZone), drover.Denied)
		_, err := s.Set(t.Context(), testOwner, name+"."+testZone, newAddresses, 0)
		wantKind(t, err, drover.Denied)
	}
	wantKind(t, s.Check(t.Context(), "web1."+testZone, "web2."+testZone), drover.Denied)
	if after, _ := serial(primaryIP, testZone); after != before {
		t.Errorf("Check changed the zone: %d, %d", before, after)
	}
	_, err := s.List(t.Context())
	wantKind(t, err, drover.Denied)
	mark, err := s.Set(t.Context(), testOwner, "web1."+testZone, newAddresses, 0)
	must(t, err)
	if got, err := s.Owned(t.Context(), mark.Name); err != nil || got.Owner != testOwner {
		t.Errorf("without the right to transfer: %+v, %v", got, err)
	}
}

// TestWrongServer: a server that does not have the zone, a wrong secret, and a
// silent one.
func TestWrongServer(t *testing.T) {
	bind(t, primaryIP, testZone, bindPrimary, zoneFile(1)).start(t)
	s := open(t, Config{Zone: "other.test"})
	defer s.Close()
	err := s.Check(t.Context())
	if drover.KindOf(err) != drover.NotFound {
		t.Errorf("a zone that is not there: %v of kind %v", err, drover.KindOf(err))
	}
	bad := open(t, Config{Key: Key{Name: "drover", Secret: adminSecret}})
	defer bad.Close()
	wantKind(t, bad.Check(t.Context()), drover.Denied)
	_, err = bad.List(t.Context())
	wantKind(t, err, drover.Denied)
	other := open(t, Config{Key: Key{Name: "drover", Algorithm: "hmac-sha512", Secret: secret}})
	defer other.Close()
	wantKind(t, other.Check(t.Context()), drover.Denied)

	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts and stays silent
	must(t, err)
	defer l.Close()
	silent := open(t, Config{Primary: l.Addr().String()})
	done := make(chan error, 1)
	go func() { done <- silent.Check(t.Context()) }()
	conn, err := l.Accept()
	must(t, err)
	defer conn.Close()
	_, err = readMessage(conn)
	must(t, err)
	must(t, silent.Close())
	wantKind(t, <-done, drover.Canceled)
}

// TestWildcard: what a wildcard answers is not at the name; nothing is done.
func TestWildcard(t *testing.T) {
	bind(t, primaryIP, testZone, bindPrimary, zoneFile(1)+"* A 192.0.2.77\n").start(t)
	s := open(t, Config{})
	defer s.Close()
	_, err := s.Lower(t.Context(), testOwner, "any."+testZone, time.Second)
	wantKind(t, err, drover.Refused)
	if list := texts(t, "_drover.any."+testZone); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

// TestConfig: what New refuses, and that a secret is not in the error.
func TestConfig(t *testing.T) {
	good := Config{Zone: testZone, Primary: "127.0.0.1:5353", Key: Key{Name: "k.", Secret: secret}}
	for name, edit := range map[string]func(*Config){
		"zone":      func(c *Config) { c.Zone = "" },
		"primary":   func(c *Config) { c.Primary = "ns1.lab.test" },
		"port":      func(c *Config) { c.Primary = "127.0.0.1:0" },
		"servers":   func(c *Config) { c.Servers = []string{"::1", "nowhere"} },
		"many":      func(c *Config) { c.Servers = make([]string, 20) },
		"algorithm": func(c *Config) { c.Key.Algorithm = "hmac-md5" },
		"key":       func(c *Config) { c.Key.Name = "" },
		"secret":    func(c *Config) { c.Key.Secret = "not base64!" },
		"none":      func(c *Config) { c.Key.Secret = "" },
	} {
		cfg := good
		edit(&cfg)
		_, err := New(testLogger(t), cfg)
		if drover.KindOf(err) != drover.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
		var d *drover.Error
		if errors.As(err, &d) && cfg.Key.Secret != "" && cfg.Key.Secret != secret && strings.Contains(err.Error(), cfg.Key.Secret) {
			t.Errorf("%s: the secret is in %v", name, err)
		}
	}
	s, err := New(testLogger(t), good)
	must(t, err)
	must(t, s.Close())
}
