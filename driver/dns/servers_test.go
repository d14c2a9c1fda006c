package dns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover/driver"
)

const (
	testZone  = "lab.test"
	primaryIP = "127.0.0.1"
	// secret and adminSecret are keys of these tests only.
	secret      = "ZHJvdmVyIHRlc3Qga2V5IG9mIDMyIGJ5dGVzIGxlbmd0aCE="
	adminSecret = "YWRtaW4gb2YgdGhlIHRlc3RzJyBuYW1lIHNlcnZlcnMhISE="
)

// process is a name server that a test has started.
type process struct {
	cmd      *exec.Cmd
	address  string
	log      string
	program  string
	args     []string
	zone     string
	finished chan struct{}
}

// start starts the server and returns when it answers for the zone.
func (p *process) start(t *testing.T) {
	t.Helper()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p.cmd = exec.Command(p.program, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, finished := p.cmd, make(chan struct{})
	p.finished = finished
	go func() { _ = cmd.Wait(); close(finished) }()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, ok := serial(p.address, p.zone); ok {
			return
		}
		select {
		case <-finished:
			t.Fatalf("%s has ended:\n%s", p.program, p.tail())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s at %s does not answer:\n%s", p.program, p.address, p.tail())
		}
	}
}

// kill ends the server without a chance to save anything.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.finished
}

func (p *process) tail() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-2500):])
}

// serial asks a server for the zone's serial.
func serial(address, zone string) (uint32, bool) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(zone), dns.TypeSOA)
	reply, err := dns.Exchange(m, address+":53")
	if err != nil || !reply.Authoritative {
		return 0, false
	}
	for _, rr := range reply.Answer {
		if soa, ok := rr.(*dns.SOA); ok {
			return soa.Serial, true
		}
	}
	return 0, false
}

// folder makes a folder for a server, whose log is shown when the test fails.
func folder(t *testing.T, p *process) string {
	t.Helper()
	dir := t.TempDir()
	p.log = filepath.Join(dir, "log")
	t.Cleanup(func() {
		if p.cmd != nil {
			p.kill()
		}
		if t.Failed() {
			t.Logf("%s at %s:\n%s", p.program, p.address, p.tail())
		}
	})
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// zoneFile is a zone served at the addresses 127.0.0.1 to n.
func zoneFile(n int) string {
	text := "$TTL 60\n@ SOA ns1 admin 1 3600 600 86400 60\n"
	for i := range n {
		text += fmt.Sprintf("@ NS ns%d\nns%d A 127.0.0.%d\n", i+1, i+1, i+1)
	}
	return text
}

// bind prepares a BIND server at the address with the zone's clauses.
func bind(t *testing.T, address, zone, clauses, text string) *process {
	t.Helper()
	p := &process{address: address, program: "named", zone: zone}
	dir := folder(t, p)
	if text != "" {
		write(t, filepath.Join(dir, "zone"), text)
	}
	conf := filepath.Join(dir, "named.conf")
	write(t, conf, fmt.Sprintf(`
options {
	directory %q;
	pid-file none;
	session-keyfile %q;
	listen-on port 53 { %s; };
	listen-on-v6 { none; };
	recursion no;
	dnssec-validation no;
	notify no;
	min-refresh-time 3600;
};
controls { };
key drover. { algorithm hmac-sha256; secret %q; };
key admin. { algorithm hmac-sha256; secret %q; };
zone %q { file "zone"; %s };
`, dir, filepath.Join(dir, "session.key"), address, secret, adminSecret, zone, clauses))
	p.args = []string{"-g", "-n", "1", "-X", "none", "-c", conf}
	return p
}

const (
	bindPrimary   = `type primary; allow-update { key drover.; key admin.; }; allow-transfer { key drover.; 127.0.0.0/8; };`
	bindSecondary = `type secondary; primaries { 127.0.0.1; }; allow-notify { 127.0.0.0/8; }; masterfile-format text;`
)

// knot prepares a Knot server at the address; the first one is the primary.
func knot(t *testing.T, address, text string) *process {
	t.Helper()
	p := &process{address: address, program: "knotd", zone: testZone}
	dir := folder(t, p)
	zone := "    acl: [change, admin, read]\n"
	if address != primaryIP {
		zone = "    master: primary\n    acl: [notify]\n"
	}
	if text != "" {
		write(t, filepath.Join(dir, "zone"), text)
		zone += "    file: zone\n"
	}
	conf := filepath.Join(dir, "knot.conf")
	write(t, conf, fmt.Sprintf(`
server:
    rundir: %[1]q
    listen: %[2]s@53
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: %[1]q
log:
  - target: stderr
    any: info
key:
  - id: drover.
    algorithm: hmac-sha256
    secret: %[3]s
  - id: admin.
    algorithm: hmac-sha256
    secret: %[4]s
remote:
  - id: primary
    address: 127.0.0.1@53
acl:
  - id: change
    key: drover.
    action: [update, transfer]
  - id: admin
    key: admin.
    action: update
  - id: read
    address: 127.0.0.0/8
    action: transfer
  - id: notify
    address: 127.0.0.0/8
    action: notify
zone:
  - domain: %[5]s
    storage: %[1]q
%[6]s`, dir, address, secret, adminSecret, testZone, zone))
	p.args = []string{"-c", conf}
	return p
}

// admin makes an update that is not the driver's.
func admin(t *testing.T, zone string, fill func(m *dns.Msg)) {
	t.Helper()
	m := new(dns.Msg)
	m.SetUpdate(dns.Fqdn(zone))
	fill(m)
	m.SetTsig("admin.", dns.HmacSHA256, fudge, time.Now().Unix())
	client := &dns.Client{Net: "tcp", TsigSecret: map[string]string{"admin.": adminSecret}}
	reply, _, err := client.Exchange(m, primaryIP+":53")
	if err != nil || reply.Rcode != dns.RcodeSuccess {
		t.Fatalf("update by an administrator: %v, %v", reply, err)
	}
}

// put replaces a name's addresses by an administrator's update.
func put(t *testing.T, zone, name string, r driver.NameRecords) {
	t.Helper()
	name = dns.Fqdn(name)
	admin(t, zone, func(m *dns.Msg) {
		m.RemoveRRset([]dns.RR{header(name, dns.TypeA)})
		m.RemoveRRset([]dns.RR{header(name, dns.TypeAAAA)})
		m.Insert(records(name, r))
	})
}

// texts returns the strings of the TXT records at a name.
func texts(t *testing.T, name string) []string {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeTXT)
	reply, err := dns.Exchange(m, primaryIP+":53")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, rr := range reply.Answer {
		list = append(list, strings.Join(rr.(*dns.TXT).Txt, ""))
	}
	return list
}
