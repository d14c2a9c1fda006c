package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/miekg/dns"

	"github.com/drover-vm/drover"
)

const (
	// primaryLimit bounds one exchange with the primary. An update is on its
	// disk before it answers.
	primaryLimit = 10 * time.Second
	// fudge is how far clocks may be apart for a signature, in seconds: what
	// RFC 8945 recommends.
	fudge = 300
)

// replyError is a reply that is not what was asked for.
type replyError struct {
	reply *dns.Msg
	// signature is the error of the reply's own TSIG record.
	signature uint16
}

// Error says it in DNS's words.
func (e *replyError) Error() string {
	switch {
	case e.signature == dns.RcodeBadTime:
		return "the server's clock and this one's are too far apart for the key (BADTIME)"
	case e.signature != 0:
		return fmt.Sprintf("the server does not take the key (%s)", dns.RcodeToString[int(e.signature)])
	case e.reply.Rcode == dns.RcodeSuccess:
		return "the server is not authoritative for the name"
	default:
		return "the server answers " + dns.RcodeToString[e.reply.Rcode]
	}
}

// prerequisite reports whether the server did not find what an update requires.
func (e *replyError) prerequisite() bool {
	switch e.reply.Rcode {
	case dns.RcodeYXDomain, dns.RcodeYXRrset, dns.RcodeNXRrset, dns.RcodeNameError:
		return true
	}
	return false
}

func (e *replyError) kind() drover.Kind {
	switch {
	case e.signature != 0, e.reply.Rcode == dns.RcodeRefused:
		return drover.Denied
	case e.reply.Rcode == dns.RcodeNotAuth:
		return drover.NotFound // with the key in order: it does not have the zone
	case e.reply.Rcode == dns.RcodeNotZone:
		return drover.Invalid
	case e.reply.Rcode == dns.RcodeServerFailure:
		return drover.Unavailable
	default:
		return drover.Refused
	}
}

// unreachableError says that a server could not be asked; sent says that it
// may have got the request.
type unreachableError struct {
	server string
	sent   bool
	err    error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("name server %s does not answer: %v", e.server, e.err)
}
func (e *unreachableError) Unwrap() error { return e.err }

// errUnsigned says that a reply to a signed request does not carry a good
// signature.
var errUnsigned = errors.New("its reply is not signed with the key")

// wrap puts the border's error shape around err.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *drover.Error
	var reply *replyError
	var unreachable *unreachableError
	switch {
	case errors.As(err, &known):
		return drover.E(known.Kind, op, err)
	case errors.As(err, &reply):
		return drover.E(reply.kind(), op, err)
	case errors.Is(err, errUnsigned):
		return drover.E(drover.Denied, op, err)
	case errors.Is(err, context.Canceled):
		return drover.E(drover.Canceled, op, err)
	case errors.As(err, &unreachable) && unreachable.sent:
		return drover.E(drover.Unknown, op, err)
	case errors.As(err, &unreachable), errors.Is(err, context.DeadlineExceeded):
		return drover.E(drover.Unavailable, op, err)
	}
	return drover.E(drover.Internal, op, err)
}

func kindOfContext(err error) drover.Kind {
	if errors.Is(err, context.DeadlineExceeded) {
		return drover.Unavailable
	}
	return drover.Canceled
}

// ask asks the primary a question, signed.
func (s *Server) ask(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	m.RecursionDesired = false
	reply, err := s.primaryExchange(ctx, m)
	var unreachable *unreachableError
	if errors.As(err, &unreachable) {
		unreachable.sent = false // a question changes nothing
	}
	if err != nil {
		return nil, err
	}
	if !reply.Authoritative || reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return nil, &replyError{reply: reply}
	}
	return reply, nil
}

// newUpdate begins an update of the zone.
func (s *Server) newUpdate() *dns.Msg {
	m := new(dns.Msg)
	m.SetUpdate(s.zone)
	return m
}

// update sends an update; changed says that the server has made it.
func (s *Server) update(ctx context.Context, m *dns.Msg) (changed bool, err error) {
	reply, err := s.primaryExchange(ctx, m)
	if err != nil {
		return false, err
	}
	if reply.Rcode != dns.RcodeSuccess {
		return false, &replyError{reply: reply}
	}
	return true, nil
}

// primaryExchange sends one signed message to the primary by TCP, which
// neither repeats nor shortens, and returns its reply, whose signature is good.
func (s *Server) primaryExchange(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, primaryLimit)
	defer cancel()
	fail := func(sent bool, err error) error {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return &unreachableError{server: s.primary, sent: sent, err: err}
	}
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", s.primary)
	if err != nil {
		return nil, fail(false, err)
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	conn := &dns.Conn{Conn: raw, TsigSecret: s.secrets}
	m.SetTsig(s.keyName, s.algorithm, fudge, time.Now().Unix())
	if err := conn.WriteMsg(m); err != nil {
		return nil, fail(true, err)
	}
	reply, err := conn.ReadMsg()
	if reply == nil {
		return nil, fail(true, err)
	}
	if reply.Id != m.Id {
		return nil, fail(true, dns.ErrId)
	}
	signature := reply.IsTsig()
	switch {
	case signature != nil && signature.Error != 0:
		return nil, &replyError{reply: reply, signature: signature.Error}
	case signature == nil && reply.Rcode != dns.RcodeSuccess, errors.Is(err, dns.ErrAuth):
		// It did not get as far as the key; or the library, which looks no
		// further into the signature of a reply NOTAUTH.
		return nil, &replyError{reply: reply}
	case signature == nil:
		return nil, errUnsigned
	case err != nil:
		return nil, errors.Join(errUnsigned, err)
	}
	return reply, nil
}
