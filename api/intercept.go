package api

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/drover-vm/drover/api/droverv1/droverv1connect"
)

// maxMessageBytes bounds one message. The largest are Describe answers of a
// host with many VMs (some KiB each) and domain definitions (tens of KiB);
// a guest's memory and disks never come this way.
const maxMessageBytes = 16 << 20

const (
	// quickLimit bounds a unary call that only reads or writes what the other
	// end has at hand. A dead peer is noticed sooner, by the keepalive pings;
	// this is for one that is alive but stuck.
	quickLimit = 30 * time.Second
	// slowLimit bounds a unary call that may read whole disk images: the
	// digest of 1 TiB at 1 GB/s takes 18 minutes.
	slowLimit = time.Hour
)

// slowCalls are the procedures that may read whole images, or wait for others
// that do.
var slowCalls = map[string]bool{
	droverv1connect.AgentServiceCheckSourceProcedure: true,
	droverv1connect.AgentServiceCheckTargetProcedure: true,
	droverv1connect.AgentServiceProbeStopProcedure:   true,
	droverv1connect.PeerServicePrepareProcedure:      true,
	droverv1connect.PeerServiceFinishProcedure:       true,
	droverv1connect.PeerServiceAbandonProcedure:      true,
	droverv1connect.PeerServiceDigestProcedure:       true,
	droverv1connect.DroverServicePreflightProcedure:  true,
	droverv1connect.DroverServiceStartMoveProcedure:  true,
}

// HandlerOptions are the options of every handler of the installation:
// drover.Error crosses with its kind, and messages are bounded.
func HandlerOptions() []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithInterceptors(serverErrors{}),
		connect.WithReadMaxBytes(maxMessageBytes),
	}
}

func clientOptions(who string) []connect.ClientOption {
	return []connect.ClientOption{
		connect.WithInterceptors(clientErrors{who}),
		connect.WithReadMaxBytes(maxMessageBytes),
		// The agents' links are what moves need; a Describe answer is text
		// that shrinks to a tenth, but only large ones are worth it.
		connect.WithCompressMinBytes(4 << 10),
	}
}

// serverErrors turns what handlers return into what crosses the API.
type serverErrors struct{}

func (serverErrors) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, ToConnect(err)
	}
}

func (serverErrors) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (serverErrors) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return ToConnect(next(ctx, conn))
	}
}

// clientErrors turns what came over the API into drover.Error, and bounds
// unary calls that their caller did not.
type clientErrors struct {
	// who is at the other end ("agent h1 at 192.0.2.1:7443"), for the errors
	// that it did not send itself.
	who string
}

func (i clientErrors) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if _, bounded := ctx.Deadline(); !bounded {
			limit := quickLimit
			if slowCalls[req.Spec().Procedure] {
				limit = slowLimit
			}
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		resp, err := next(ctx, req)
		return resp, from(i.who, err)
	}
}

func (i clientErrors) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return errorConn{next(ctx, spec), i.who}
	}
}

func (clientErrors) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// errorConn is a client stream whose errors are drover.Error. io.EOF stays
// itself: it is how connect tells a stream's end. (A connection that breaks is
// io.ErrUnexpectedEOF or another error, never io.EOF.)
type errorConn struct {
	connect.StreamingClientConn
	who string
}

func (c errorConn) Send(msg any) error    { return c.error(c.StreamingClientConn.Send(msg)) }
func (c errorConn) Receive(msg any) error { return c.error(c.StreamingClientConn.Receive(msg)) }
func (c errorConn) CloseRequest() error   { return c.error(c.StreamingClientConn.CloseRequest()) }
func (c errorConn) CloseResponse() error  { return c.error(c.StreamingClientConn.CloseResponse()) }

func (c errorConn) error(err error) error {
	if errors.Is(err, io.EOF) {
		return err
	}
	return from(c.who, err)
}
