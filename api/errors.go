package api

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"connectrpc.com/connect"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// kinds is the one table between kinds, API codes and the names in a Fault.
// Each kind has exactly one code; codes that are not listed come from proxies
// and from the transport, never from Drover (see kindOfCode).
var kinds = []struct {
	kind drover.Kind
	code connect.Code
}{
	{drover.Internal, connect.CodeInternal},
	{drover.Invalid, connect.CodeInvalidArgument},
	{drover.NotFound, connect.CodeNotFound},
	{drover.Exists, connect.CodeAlreadyExists},
	{drover.Refused, connect.CodeFailedPrecondition},
	{drover.Unavailable, connect.CodeUnavailable},
	{drover.Canceled, connect.CodeCanceled},
	{drover.Denied, connect.CodePermissionDenied},
	{drover.Exhausted, connect.CodeResourceExhausted},
	{drover.Corrupt, connect.CodeDataLoss},
	{drover.Unknown, connect.CodeUnknown},
}

// CodeOf returns the API code of a kind.
func CodeOf(k drover.Kind) connect.Code {
	for _, e := range kinds {
		if e.kind == k {
			return e.code
		}
	}
	return connect.CodeInternal
}

// kindOfCode returns the kind of a code, for errors without a Fault: those
// that the transport or another implementation made.
func kindOfCode(c connect.Code) drover.Kind {
	for _, e := range kinds {
		if e.code == c {
			return e.kind
		}
	}
	switch c {
	case connect.CodeDeadlineExceeded, connect.CodeAborted:
		return drover.Unavailable
	case connect.CodeUnauthenticated:
		return drover.Denied
	case connect.CodeOutOfRange:
		return drover.Invalid
	case connect.CodeUnimplemented:
		// The other end is an older version, or no Drover at all.
		return drover.Refused
	default:
		return drover.Internal
	}
}

func kindOfName(name string) (drover.Kind, bool) {
	for _, e := range kinds {
		if e.kind.String() == name {
			return e.kind, true
		}
	}
	return drover.Internal, false
}

// ToConnect turns an error into what crosses the API: a code by its kind, its
// text, and a Fault detail that lets FromConnect restore it. nil stays nil and
// an error that already is a connect.Error passes unchanged. An error without
// a kind is internal, except that a context's end is canceled or unavailable.
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	de, ce := outermost(err)
	if ce != nil {
		return ce
	}
	kind := kindOf(err)
	ce = connect.NewError(CodeOf(kind), err)
	fault := &droverv1.Fault{Kind: kind.String()}
	// Op is only of use where it is the beginning of the text; an error
	// wrapped further above has a text that begins otherwise.
	if de != nil && strings.HasPrefix(err.Error(), de.Op) {
		fault.Op = de.Op
	}
	// An Any of a registered message cannot fail to be made; without it the
	// code alone still tells the kind.
	if d, derr := connect.NewErrorDetail(fault); derr == nil {
		ce.AddDetail(d)
	}
	return ce
}

// outermost returns whichever of the two shapes is the outer one in err's
// chain, and nil for the other: each may wrap the other.
func outermost(err error) (de *drover.Error, ce *connect.Error) {
	if !errors.As(err, &ce) {
		errors.As(err, &de)
		return de, nil
	}
	if errors.As(err, &de) && !errors.As(ce, new(*drover.Error)) {
		return de, nil
	}
	return nil, ce
}

// kindOf is drover.KindOf, and knows a context's end.
func kindOf(err error) drover.Kind {
	var de *drover.Error
	switch {
	case errors.As(err, &de):
		return de.Kind
	case errors.Is(err, context.Canceled):
		return drover.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return drover.Unavailable
	default:
		return drover.Internal
	}
}

// FromConnect turns an error of an API call back into a drover.Error of the
// same kind, operation and text. nil stays nil; an error that already has a
// kind passes unchanged. errors.Is still finds what the error wrapped on this
// side, such as context.Canceled.
func FromConnect(err error) error { return from("", err) }

// from is FromConnect; who is the operation of errors that the other end did
// not send.
func from(who string, err error) error {
	if err == nil {
		return nil
	}
	de, ce := outermost(err)
	if de != nil {
		return err
	}
	if ce == nil {
		return drover.E(kindOf(err), who, err)
	}
	kind, op, known := faultOf(ce)
	text, answered := ce.Message(), false
	switch {
	case known:
		answered = true
		text = strings.TrimPrefix(strings.TrimPrefix(text, op), ": ")
	case connect.IsWireError(ce):
		answered = true
		op, kind = who, kindOfCode(ce.Code())
	default:
		op, kind, text = who, transportKind(ce), transportText(ce)
	}
	if text == "" && answered {
		return &drover.Error{Kind: kind, Op: op}
	}
	return &drover.Error{Kind: kind, Op: op, Err: &remote{text: text, cause: ce, answered: answered}}
}

// faultOf reads the Fault detail, when there is one with a kind known here.
func faultOf(ce *connect.Error) (drover.Kind, string, bool) {
	for _, d := range ce.Details() {
		v, err := d.Value()
		if err != nil {
			continue
		}
		if f, ok := v.(*droverv1.Fault); ok {
			k, known := kindOfName(f.GetKind())
			return k, f.GetOp(), known
		}
	}
	return drover.Internal, "", false
}

// transportKind is the kind of an error that this side made because the other
// did not answer properly. connect calls a connection that breaks inside a
// message "invalid argument", at its border "internal", elsewhere "unknown":
// to a caller all of them are a peer that went away. It also calls a reset
// connection (EPIPE, ECONNRESET) "canceled"; only a context says that truly.
func transportKind(ce *connect.Error) drover.Kind {
	switch c := ce.Code(); c {
	case connect.CodeCanceled:
		if errors.Is(ce, context.Canceled) {
			return drover.Canceled
		}
		return drover.Unavailable
	case connect.CodeInternal, connect.CodeInvalidArgument, connect.CodeUnknown:
		return drover.Unavailable
	default:
		return kindOfCode(c)
	}
}

// transportText is the error without the request's URL, which says nothing
// that the operation does not.
func transportText(ce *connect.Error) string {
	var ue *url.Error
	if errors.As(ce, &ue) {
		return ue.Err.Error()
	}
	return ce.Message()
}

// remote is the text of an error that came over the API, without the code
// that connect puts before it.
type remote struct {
	text  string
	cause error
	// answered is false when it was made on this side.
	answered bool
}

// Unanswered reports whether an error of an API call was made on this side,
// because the other did not answer, or not to the end: it says nothing about
// what became of the call.
func Unanswered(err error) bool {
	var r *remote
	return errors.As(err, &r) && !r.answered
}

func (r *remote) Error() string { return r.text }
func (r *remote) Unwrap() error { return r.cause }
