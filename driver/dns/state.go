package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// state is what the primary says of a name.
type state struct {
	name    string // absolute, with the final dot
	records driver.NameRecords
	// alias is where a CNAME at the name points.
	alias string
	// texts are the TXT records at the mark's name; mark is what they say when
	// they are Drover's.
	texts []dns.RR
	mark  *mark
}

// before is what was there before the owner's first change.
func (s state) before() driver.NameRecords {
	if s.mark != nil {
		return s.mark.Before
	}
	return s.records
}

// changeable reports why the name may not be changed for the owner, if so.
func (s state) changeable(owner driver.Owner) error {
	switch {
	case s.alias != "":
		return drover.Errorf(drover.Refused, "", "it is an alias of %s: change that name", s.alias)
	case s.mark == nil && len(s.texts) > 0:
		return drover.Errorf(drover.Refused, "", "the TXT record at %s is not Drover's", markName(s.name))
	case s.mark != nil && s.mark.Owner != owner:
		return drover.Errorf(drover.Exists, "", "%s changes it already", s.mark.Owner)
	case s.mark == nil && len(s.records.Addresses) > driver.MaxNameAddresses:
		return drover.Errorf(drover.Refused, "", "it has %d addresses: want at most %d", len(s.records.Addresses), driver.MaxNameAddresses)
	}
	if s.mark != nil {
		return s.untouched()
	}
	return nil
}

// untouched reports whether somebody else has changed what Drover had put there.
func (s state) untouched() error {
	if s.alias != "" || !s.records.SameAddresses(s.mark.Now) {
		return drover.Errorf(drover.Refused, "", "somebody else has changed it meanwhile: it is %s, and was %s",
			s.describe(), addressList(s.mark.Now))
	}
	return nil
}

// describe says what is at the name, for messages.
func (s state) describe() string {
	if s.alias != "" {
		return "an alias of " + s.alias
	}
	return addressList(s.records)
}

func addressList(r driver.NameRecords) string {
	if len(r.Addresses) == 0 {
		return "without addresses"
	}
	text := make([]string, len(r.Addresses))
	for i, a := range r.Addresses {
		text[i] = a.String()
	}
	return strings.Join(text, " ")
}

// is reports whether the name is as the mark wants it already.
func (s state) is(m driver.OwnedName) bool {
	return s.mark != nil && s.mark.text() == mark{m}.text() && s.records.Answer(m.Now) && m.Now.Answer(s.records)
}

// same reports whether two readings are equal but for TTLs.
func (s state) same(o state) bool {
	return s.records.SameAddresses(o.records) && s.alias == o.alias && slices.EqualFunc(s.texts, o.texts, func(a, b dns.RR) bool {
		return dns.IsDuplicate(a, b)
	})
}

// read asks the primary for a name and its mark.
func (s *Server) read(ctx context.Context, name string) (state, error) {
	st := state{name: dns.Fqdn(name)}
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		reply, err := s.ask(ctx, st.name, kind)
		if err != nil {
			return st, err
		}
		if st.alias, err = collect(&st.records, reply, st.name); err != nil {
			return st, err
		}
	}
	reply, err := s.ask(ctx, markName(st.name), dns.TypeTXT)
	if err != nil {
		return st, err
	}
	for _, rr := range reply.Answer {
		if strings.EqualFold(rr.Header().Name, markName(st.name)) && rr.Header().Rrtype == dns.TypeTXT {
			st.texts = append(st.texts, rr)
		}
	}
	st.mark = markOf(name, st.texts)
	return st, nil
}

// collect adds a reply's addresses of the name to records, in order, and
// returns where an alias at the name points.
func collect(records *driver.NameRecords, reply *dns.Msg, name string) (alias string, err error) {
	if !reply.Authoritative || reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return "", &replyError{reply: reply}
	}
	for _, rr := range reply.Answer {
		if !strings.EqualFold(rr.Header().Name, name) {
			continue
		}
		ttl := time.Duration(rr.Header().Ttl) * time.Second
		switch rr := rr.(type) {
		case *dns.A:
			addAddress(records, rr.A)
			records.TTL4 = ttl
		case *dns.AAAA:
			addAddress(records, rr.AAAA)
			records.TTL6 = ttl
		case *dns.CNAME:
			alias = rr.Target
		}
	}
	return alias, nil
}

// replace makes one update of the name: if all is as read, then records
// instead, and mark instead of the mark that is there (nil: none).
func (s *Server) replace(ctx context.Context, have state, records driver.NameRecords, m *driver.OwnedName) error {
	update := s.newUpdate()
	for _, v4 := range []bool{true, false} {
		require(update, have.name, typeOf(v4), family(have.name, have.records, v4))
	}
	require(update, have.name, dns.TypeCNAME, nil)
	require(update, markName(have.name), dns.TypeTXT, have.texts)
	for _, v4 := range []bool{true, false} {
		was, is := family(have.name, have.records, v4), family(have.name, records, v4)
		if slices.EqualFunc(was, is, func(a, b dns.RR) bool { return a.String() == b.String() }) {
			continue
		}
		// Records of one type have one TTL, so all of them are made anew.
		update.RemoveRRset([]dns.RR{header(have.name, typeOf(v4))})
		update.Insert(is)
	}
	if len(have.texts) > 0 {
		update.RemoveRRset([]dns.RR{header(markName(have.name), dns.TypeTXT)})
	}
	if m != nil {
		update.Insert([]dns.RR{textRecord(markName(have.name), mark{*m}.text())})
	}
	changed, err := s.update(ctx, update)
	if changed || err == nil {
		return err
	}
	var reply *replyError
	if !errors.As(err, &reply) || !reply.prerequisite() {
		return err
	}
	return s.whyNot(ctx, have, err)
}

// whyNot explains an update whose prerequisites the server did not find.
func (s *Server) whyNot(ctx context.Context, have state, cause error) error {
	now, err := s.read(ctx, strings.TrimSuffix(have.name, "."))
	switch {
	case err != nil:
		return drover.E(drover.Refused, "somebody else has changed it meanwhile", errors.Join(cause, err))
	case now.same(have):
		return drover.E(drover.Refused, "the server answers what the zone does not hold at that name (a wildcard, or another view)", cause)
	default:
		return drover.E(drover.Refused, fmt.Sprintf("somebody else has changed it meanwhile: it is %s, and was %s", now.describe(), have.describe()), cause)
	}
}

// require adds the prerequisite that exactly the records are there.
func require(update *dns.Msg, name string, kind uint16, rrs []dns.RR) {
	if len(rrs) == 0 {
		update.RRsetNotUsed([]dns.RR{header(name, kind)})
		return
	}
	// Used writes class and TTL as a prerequisite wants them: not into ours.
	copies := make([]dns.RR, len(rrs))
	for i, rr := range rrs {
		copies[i] = dns.Copy(rr)
	}
	update.Used(copies)
}
