package api

import (
	"context"
	"net/http"
	"slices"

	"connectrpc.com/connect"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
)

type callerKey struct{}

// Caller returns who made the call that ctx belongs to, as RequireRole saw it.
func Caller(ctx context.Context) (pki.Identity, bool) {
	id, ok := ctx.Value(callerKey{}).(pki.Identity)
	return id, ok
}

// RequireRole lets pass only callers whose certificate gives them one of the
// roles, and tells h who they are (Caller). Others get drover.Denied.
func RequireRole(h http.Handler, roles ...pki.Role) http.Handler {
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := pki.Peer(r.TLS)
		if err == nil && !slices.Contains(roles, id.Role) {
			err = drover.Errorf(drover.Denied, "authorize", "%s may not call %s", id, r.URL.Path)
		}
		if err != nil {
			// The connection is the caller's to lose; there is nobody to tell.
			_ = refuse.Write(w, r, ToConnect(err))
			return
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, id)))
	})
}
