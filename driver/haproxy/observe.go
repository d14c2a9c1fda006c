package haproxy

import (
	"context"
	"encoding/csv"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Bits of srv_admin_state in "show servers state".
const (
	adminMaint = 0x01 | 0x02 | 0x04 | 0x20 | 0x40 // forced, inherited, configured, unresolved, by host name
	adminDrain = 0x08 | 0x10                      // forced, inherited
)

// view is everything HAProxy says of its servers at one moment.
type view struct {
	backends []driver.Backend
}

func (v *view) backend(name string) *driver.Backend {
	for i := range v.backends {
		if v.backends[i].Name == name {
			return &v.backends[i]
		}
	}
	return nil
}

func (v *view) server(backend, name string) *driver.Server {
	b := v.backend(backend)
	if b == nil {
		return nil
	}
	for i := range b.Servers {
		if b.Servers[i].Name == name {
			return &b.Servers[i]
		}
	}
	return nil
}

// observe reads all backends and servers.
func (b *Balancer) observe(ctx context.Context) (*view, error) {
	// Backends (2) and servers (4) only: frontends can be many.
	stat, err := b.socket.run(ctx, "show stat -1 6 -1")
	if err != nil {
		return nil, err
	}
	state, err := b.socket.run(ctx, "show servers state")
	if err != nil {
		return nil, err
	}
	v, err := parseView(stat, state)
	if err != nil {
		return nil, drover.E(drover.Internal, "haproxy: read its statistics", err)
	}
	unseen := b.formerRuns()
	for i := range v.backends {
		for j := range v.backends[i].Servers {
			v.backends[i].Servers[j].Unseen = unseen
		}
	}
	return v, nil
}

// parseView joins the statistics with the states: only the latter tell a
// forced drain from a check's, and keep the weight of a server in maintenance.
func parseView(stat, state string) (*view, error) {
	states, err := parseStates(state)
	if err != nil {
		return nil, err
	}
	rows, err := table(stat, "# ", ',')
	if err != nil {
		return nil, err
	}
	v := &view{}
	servers := map[string][]driver.Server{}
	for _, row := range rows {
		name := row["pxname"]
		if row["svname"] == "BACKEND" {
			v.backends = append(v.backends, driver.Backend{Name: name, Algorithm: row["algo"]})
			continue
		}
		s, ok := states[name+"/"+row["svname"]]
		if !ok {
			continue // added or removed between the two questions
		}
		if err := s.addStat(row); err != nil {
			return nil, err
		}
		servers[name] = append(servers[name], s.Server)
	}
	for i := range v.backends {
		v.backends[i].Servers = servers[v.backends[i].Name]
	}
	return v, nil
}

// state is a server as "show servers state" has it.
type state struct {
	driver.Server
	checked bool
}

func parseStates(text string) (map[string]state, error) {
	version, text, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if version != "1" {
		return nil, fmt.Errorf("server states of version %q: want 1", version)
	}
	rows, err := table(text, "# ", ' ')
	if err != nil {
		return nil, err
	}
	all := make(map[string]state, len(rows))
	for _, row := range rows {
		s := state{Server: driver.Server{Backend: row["be_name"], Name: row["srv_name"]}}
		s.Owner, _, _ = driver.ParseServerName(s.Name)
		var admin, check, port int
		if err := numbers(row, map[string]*int{
			"srv_admin_state": &admin, "srv_uweight": &s.Weight, "srv_iweight": &s.InitialWeight,
			"srv_port": &port, "srv_check_state": &check,
		}); err != nil {
			return nil, fmt.Errorf("server %s/%s: %w", s.Backend, s.Name, err)
		}
		switch {
		case admin&adminMaint != 0:
			s.State = driver.ServerMaint
		case admin&adminDrain != 0:
			s.State = driver.ServerDrain
		default:
			s.State = driver.ServerReady
		}
		if addr, err := netip.ParseAddr(row["srv_addr"]); err == nil && port > 0 && port < 1<<16 {
			s.Address = netip.AddrPortFrom(addr, uint16(port))
		}
		// The bits of a check: 0x02 configured, 0x04 enabled, 0x08 paused.
		s.checked = check&0x04 != 0
		all[s.Backend+"/"+s.Name] = s
	}
	return all, nil
}

func (s *state) addStat(row map[string]string) error {
	var total int
	if err := numbers(row, map[string]*int{"scur": &s.Sessions, "qcur": &s.Queued, "stot": &total}); err != nil {
		return fmt.Errorf("server %s/%s: %w", s.Backend, s.Name, err)
	}
	s.Total = uint64(total)
	// A check that is running has an asterisk before its last result.
	s.CheckStatus = strings.TrimPrefix(row["check_status"], "* ")
	switch {
	case !s.checked:
		s.Health = driver.HealthNone
	case s.CheckStatus == "" || s.CheckStatus == "INI" || s.CheckStatus == "UNK":
		s.Health = driver.HealthPending
	case strings.Contains(s.CheckStatus, "OK"):
		s.Health = driver.HealthUp
	default:
		s.Health = driver.HealthDown
	}
	return nil
}

func numbers(row map[string]string, into map[string]*int) error {
	for field, p := range into {
		n, err := strconv.Atoi(row[field])
		if err != nil {
			return fmt.Errorf("%s: %q is no number", field, row[field])
		}
		*p = n
	}
	return nil
}

// table reads HAProxy's tables: a heading behind a mark, then rows.
func table(text, mark string, comma rune) ([]map[string]string, error) {
	head, body, _ := strings.Cut(strings.TrimSpace(text), "\n")
	fields, ok := strings.CutPrefix(head, mark)
	if !ok {
		return nil, fmt.Errorf("%q: want a heading behind %q", head, mark)
	}
	names := strings.Split(fields, string(comma))
	r := csv.NewReader(strings.NewReader(body))
	r.Comma, r.FieldsPerRecord, r.LazyQuotes = comma, -1, comma == ' '
	records, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	rows := make([]map[string]string, len(records))
	for i, record := range records {
		rows[i] = make(map[string]string, len(names))
		for j, value := range record {
			if j < len(names) {
				rows[i][names[j]] = value
			}
		}
	}
	return rows, nil
}

// process is a run of HAProxy.
type process struct {
	pid int
	// started is in seconds since 1970; with it two runs are told apart that have
	// the same id, in a container or after a reboot.
	started int
}

// process reads what "show info" says of the process.
func (b *Balancer) process(ctx context.Context) (p process, err error) {
	info, err := b.socket.run(ctx, "show info")
	if err != nil {
		return p, err
	}
	row := map[string]string{}
	for line := range strings.Lines(info) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			row[k] = strings.TrimSpace(v)
		}
	}
	if err := numbers(row, map[string]*int{"Pid": &p.pid, "Start_time_sec": &p.started}); err != nil {
		return p, drover.E(drover.Internal, "haproxy: show info", err)
	}
	return p, nil
}

// endpoint is an address as HAProxy's commands take it.
func endpoint(a netip.AddrPort) string {
	return net.JoinHostPort(a.Addr().Unmap().String(), strconv.Itoa(int(a.Port())))
}
