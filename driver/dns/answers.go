package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// answerLimit bounds one question to one address of a server; a lost
	// packet is asked for again.
	answerLimit = time.Second
	answerTries = 2
	// roundFirst and roundLast are the pauses between rounds of WaitAnswers:
	// a NOTIFY and its transfer take some ten milliseconds and a few round
	// trips, a server that has missed it minutes.
	roundFirst = 20 * time.Millisecond
	roundLast  = 200 * time.Millisecond
	// udpBytes is the answer's size that is asked for: what passes every path
	// unfragmented (DNS flag day 2020).
	udpBytes = 1232
	// maxAuthorityAddresses bounds the addresses of one server that are tried.
	maxAuthorityAddresses = 4
)

// authority is an authoritative server; its addresses are tried in order.
type authority struct {
	name      string
	addresses []string
}

// authorities returns the servers to ask.
func (s *Server) authorities(ctx context.Context) ([]authority, error) {
	if s.servers != nil {
		return s.servers, nil
	}
	reply, err := s.ask(ctx, s.zone, dns.TypeNS)
	if err != nil {
		return nil, err
	}
	var list []authority
	for _, rr := range reply.Answer {
		ns, ok := rr.(*dns.NS)
		if !ok || len(list) == maxServers {
			continue
		}
		a := authority{name: strings.ToLower(strings.TrimSuffix(ns.Ns, "."))}
		for _, ip := range s.lookUp(ctx, reply, ns.Ns) {
			if len(a.addresses) < maxAuthorityAddresses {
				a.addresses = append(a.addresses, net.JoinHostPort(ip.String(), defaultPort))
			}
		}
		list = append(list, a)
	}
	if len(list) == 0 {
		return nil, drover.Errorf(drover.NotFound, "", "the zone has no NS records")
	}
	return list, nil
}

// lookUp returns a server's addresses: those that came with the NS records,
// those in the zone, or those that this machine's resolver knows.
func (s *Server) lookUp(ctx context.Context, with *dns.Msg, name string) []net.IP {
	var list []net.IP
	add := func(rrs []dns.RR) {
		for _, rr := range rrs {
			if !strings.EqualFold(rr.Header().Name, name) {
				continue
			}
			switch rr := rr.(type) {
			case *dns.A:
				list = append(list, rr.A)
			case *dns.AAAA:
				list = append(list, rr.AAAA)
			}
		}
	}
	add(with.Extra)
	if len(list) == 0 && dns.IsSubDomain(s.zone, name) {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if reply, err := s.ask(ctx, name, kind); err == nil {
				add(reply.Answer)
			}
		}
	}
	if len(list) == 0 && !dns.IsSubDomain(s.zone, name) {
		ctx, cancel := context.WithTimeout(ctx, answerLimit*answerTries)
		defer cancel()
		found, err := net.DefaultResolver.LookupIP(ctx, "ip", name)
		if err == nil {
			list = found
		}
	}
	return list
}

// Answers implements driver.Names.
func (s *Server) Answers(ctx context.Context, name string) ([]driver.NameAnswer, error) {
	name, err := driver.NameInZone(name, s.zone)
	if err != nil {
		return nil, err
	}
	op := "ask all servers for " + name
	ctx, end, err := s.begin(ctx, op)
	if err != nil {
		return nil, err
	}
	defer end()
	servers, err := s.authorities(ctx)
	if err != nil {
		return nil, wrap(op, err)
	}
	answers := askAll(ctx, servers, dns.Fqdn(name))
	if err := ctx.Err(); err != nil {
		return nil, drover.E(kindOfContext(err), op, err)
	}
	return answers, nil
}

// WaitAnswers implements driver.Names.
func (s *Server) WaitAnswers(ctx context.Context, name string, want driver.NameRecords) ([]driver.NameAnswer, error) {
	name, err := driver.NameInZone(name, s.zone)
	if err != nil {
		return nil, err
	}
	if len(want.Addresses) > 0 {
		if want.Addresses, err = driver.CheckNameAddresses(want.Addresses); err != nil {
			return nil, err
		}
	}
	op := "wait for all servers to answer for " + name
	ctx, end, err := s.begin(ctx, op)
	if err != nil {
		return nil, err
	}
	defer end()
	servers, err := s.authorities(ctx)
	if err != nil {
		return nil, wrap(op, err)
	}
	var last []driver.NameAnswer
	for pause := roundFirst; ; pause = min(2*pause, roundLast) {
		answers := askAll(ctx, servers, dns.Fqdn(name))
		if last == nil || ctx.Err() == nil {
			last = answers
		}
		wrong := otherwise(last, want)
		if wrong == "" {
			return last, nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return last, drover.E(kindOfContext(ctx.Err()), op, fmt.Errorf("%w; %s", ctx.Err(), wrong))
		}
	}
}

// otherwise says which answers are not what is wanted; empty for none.
func otherwise(answers []driver.NameAnswer, want driver.NameRecords) string {
	var wrong []string
	for _, a := range answers {
		switch {
		case a.Fault != "":
			wrong = append(wrong, a.Server+": "+a.Fault)
		case !want.SameAddresses(a.Records):
			wrong = append(wrong, a.Server+" answers "+addressList(a.Records))
		case !want.Answer(a.Records):
			wrong = append(wrong, fmt.Sprintf("%s answers with TTLs of %v and %v", a.Server, a.Records.TTL4, a.Records.TTL6))
		}
	}
	return strings.Join(wrong, "; ")
}

// askAll asks all servers at once.
func askAll(ctx context.Context, servers []authority, name string) []driver.NameAnswer {
	answers := make([]driver.NameAnswer, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		wg.Go(func() { answers[i] = askServer(ctx, server, name) })
	}
	wg.Wait()
	return answers
}

// askServer asks one server by the first of its addresses that answers.
func askServer(ctx context.Context, server authority, name string) driver.NameAnswer {
	answer := driver.NameAnswer{Server: server.name, Fault: "its address is not known"}
	for _, address := range server.addresses {
		records, err := askAddress(ctx, address, name)
		var reply *replyError
		switch {
		case err == nil:
			return driver.NameAnswer{Server: server.name, Records: records}
		case errors.As(err, &reply):
			return driver.NameAnswer{Server: server.name, Fault: err.Error()}
		}
		answer.Fault = err.Error()
	}
	return answer
}

// askAddress asks one address of a server for a name's addresses.
func askAddress(ctx context.Context, address, name string) (driver.NameRecords, error) {
	var records driver.NameRecords
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		reply, err := question(ctx, address, name, kind)
		if err != nil {
			return driver.NameRecords{}, &unreachableError{server: address, err: err}
		}
		if _, err := collect(&records, reply, name); err != nil {
			return driver.NameRecords{}, err
		}
	}
	return records, nil
}

// question asks by UDP, and by TCP what does not fit.
func question(ctx context.Context, address, name string, kind uint16) (reply *dns.Msg, err error) {
	for range answerTries {
		m := new(dns.Msg)
		m.SetQuestion(name, kind)
		m.RecursionDesired = false
		m.SetEdns0(udpBytes, false)
		client := &dns.Client{Net: "udp", Timeout: answerLimit, UDPSize: udpBytes}
		if reply, _, err = client.ExchangeContext(ctx, m, address); err == nil && reply.Truncated {
			client.Net = "tcp"
			reply, _, err = client.ExchangeContext(ctx, m, address)
		}
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return reply, err
}
