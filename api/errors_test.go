package api_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
)

// allKinds ends at the first number that has no name.
func allKinds() []drover.Kind {
	var ks []drover.Kind
	for k := drover.Kind(0); k.String() != fmt.Sprintf("kind %d", int(k)); k++ {
		ks = append(ks, k)
	}
	return ks
}

func TestEveryKindHasItsOwnCode(t *testing.T) {
	seen := map[connect.Code]drover.Kind{}
	for _, k := range allKinds() {
		c := api.CodeOf(k)
		if other, taken := seen[c]; taken {
			t.Errorf("%s and %s share the code %s", k, other, c)
		}
		seen[c] = k
		// Without a Fault, the code alone must give the kind back.
		if got := drover.KindOf(api.FromConnect(connect.NewWireError(c, errors.New("x")))); got != k {
			t.Errorf("code %s: got %s, want %s", c, got, k)
		}
	}
	if len(seen) != 11 {
		t.Errorf("got %d kinds, want 11", len(seen))
	}
}

func TestErrorsRoundTrip(t *testing.T) {
	for _, k := range allKinds() {
		for _, want := range []error{
			drover.Errorf(k, "define vm web1", "disk %q: no such file", "/x"),
			&drover.Error{Kind: k, Op: "define vm web1"},
			drover.Errorf(k, "", "no operation"),
			drover.E(k, "outer", drover.Errorf(drover.Corrupt, "inner", "cause")),
			fmt.Errorf("wrapped: %w", drover.Errorf(k, "op", "cause")),
		} {
			got := api.FromConnect(api.ToConnect(want))
			if got.Error() != want.Error() || drover.KindOf(got) != k {
				t.Errorf("%v: got %q (%s), want %q (%s)", k, got, drover.KindOf(got), want, k)
			}
		}
	}
}

func TestOtherErrors(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want drover.Kind
	}{
		{"plain", errors.New("x"), drover.Internal},
		{"canceled", fmt.Errorf("wait: %w", context.Canceled), drover.Canceled},
		{"too late", context.DeadlineExceeded, drover.Unavailable},
		{"a connect error", connect.NewError(connect.CodeNotFound, errors.New("x")), drover.NotFound},
	} {
		if got := drover.KindOf(api.FromConnect(api.ToConnect(tt.err))); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
	if api.ToConnect(nil) != nil || api.FromConnect(nil) != nil {
		t.Error("nil did not stay nil")
	}
	if err := api.FromConnect(context.Canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("%v lost its cause", err)
	}
}

func TestUnanswered(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"none", nil, false},
		{"ours", drover.Errorf(drover.Unavailable, "op", "x"), false},
		{"the other end's", api.FromConnect(api.ToConnect(drover.Errorf(drover.Unavailable, "op", "x"))), false},
		{"the other end's, received", api.FromConnect(connect.NewWireError(connect.CodeUnavailable, errors.New("x"))), false},
		{"the transport's", api.FromConnect(connect.NewError(connect.CodeUnavailable, errors.New("connection refused"))), true},
		{"the transport's, wrapped", fmt.Errorf("run: %w", api.FromConnect(connect.NewError(connect.CodeUnknown, errors.New("reset")))), true},
		{"the transport's, without a text", api.FromConnect(connect.NewError(connect.CodeUnavailable, nil)), true},
	} {
		if got := api.Unanswered(tt.err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
