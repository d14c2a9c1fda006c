package dns

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// transferLimit bounds a zone's transfer: a million records take a second or
// two, a silent server nothing at all.
const transferLimit = time.Minute

// List implements driver.Names, by a transfer of the zone (AXFR).
func (s *Server) List(ctx context.Context) ([]driver.OwnedName, error) {
	const op = "list the zone's marks"
	ctx, end, err := s.begin(ctx, op)
	if err != nil {
		return nil, err
	}
	defer end()
	texts, err := s.transfer(ctx)
	if err != nil {
		return nil, wrap(op, err)
	}
	var list []driver.OwnedName
	for name, rrs := range texts {
		if m := markOf(name, rrs); m != nil {
			list = append(list, m.OwnedName)
		}
	}
	slices.SortFunc(list, func(a, b driver.OwnedName) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// transfer reads the whole zone and returns the TXT records at marks' names,
// by the name that is marked.
func (s *Server) transfer(ctx context.Context) (map[string][]dns.RR, error) {
	ctx, cancel := context.WithTimeout(ctx, transferLimit)
	defer cancel()
	fail := func(err error) error {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return &unreachableError{server: s.primary, err: err}
	}
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", s.primary)
	if err != nil {
		return nil, fail(err)
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	conn := &dns.Conn{Conn: raw, TsigSecret: s.secrets}
	m := new(dns.Msg)
	m.SetAxfr(s.zone)
	m.SetTsig(s.keyName, s.algorithm, fudge, time.Now().Unix())
	tr := &dns.Transfer{Conn: conn, TsigSecret: s.secrets, ReadTimeout: primaryLimit}
	envelopes, err := tr.In(m, s.primary)
	if err != nil {
		return nil, fail(err)
	}
	texts := make(map[string][]dns.RR)
	for e := range envelopes { // to its end: the library's goroutine waits for it
		if e.Error != nil && err == nil {
			err = e.Error
		}
		for _, rr := range e.RR {
			name := strings.ToLower(rr.Header().Name)
			if marked, ok := strings.CutPrefix(name, markLabel); ok && rr.Header().Rrtype == dns.TypeTXT {
				marked = strings.TrimSuffix(marked, ".")
				texts[marked] = append(texts[marked], rr)
			}
		}
	}
	var refused *dns.Error // the library's word for anything but a broken connection
	switch {
	case err == nil:
		return texts, nil
	case ctx.Err() == nil && errors.As(err, &refused):
		return nil, drover.E(drover.Denied, "read the whole zone (the key needs the right to transfer it)", err)
	default:
		return nil, fail(err)
	}
}
