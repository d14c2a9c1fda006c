package wanem

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
)

// The control protocol is HTTP with JSON over a unix socket:
//
//	client                                   server
//	  │ GET /links                             │
//	  │ ─────────────────────────────────────▶ │
//	  │ ◀───────────── 200 [Status, …]         │
//	  │ GET /link?name=NAME                    │
//	  │ ─────────────────────────────────────▶ │
//	  │ ◀───────────── 200 Status              │
//	  │ PATCH /link?name=NAME   ShapeChange    │
//	  │ ─────────────────────────────────────▶ │
//	  │ ◀───────────── 200 Status, afterwards  │
//
// What cannot be done is answered 400, 404, 500 or 503 with a refusal.
type refusal struct {
	Kind  drover.Kind `json:"kind"`
	Error string      `json:"error"`
}

const (
	// maxRequest bounds a request's body: a ShapeChange has under 200 bytes.
	maxRequest = 64 << 10
	// maxResponse bounds what a client reads: 4 KiB for each of 4096 links.
	maxResponse = 16 << 20
	// controlTimeout bounds one exchange and the server's farewell. All of it
	// is local, and takes about a millisecond.
	controlTimeout = 5 * time.Second
)

// Serve answers clients on a unix socket at path, readable by the owner only,
// until ctx is done, and then removes the socket and returns nil. A socket that
// a dead process left is replaced; one that is served is an error of kind
// drover.Exists. The links stay open.
func Serve(ctx context.Context, log *slog.Logger, path string, links []*Link) error {
	op := "serve links on " + path
	byName := make(map[string]*Link, len(links))
	for _, l := range links {
		if byName[l.name] != nil {
			return drover.Errorf(drover.Invalid, op, "two links are called %q", l.name)
		}
		byName[l.name] = l
	}
	listener, err := listen(ctx, path)
	if err != nil {
		return drover.E(drover.KindOf(err), op, err)
	}
	server := &http.Server{
		Handler:      control{links: links, byName: byName}.handler(),
		ReadTimeout:  controlTimeout,
		WriteTimeout: controlTimeout,
		ErrorLog:     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return drover.E(drover.Internal, op, err)
	case <-ctx.Done():
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), controlTimeout)
	defer cancel()
	err = server.Shutdown(bye)
	if err != nil {
		err = errors.Join(err, server.Close())
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return drover.E(drover.Internal, op, err)
}

func listen(ctx context.Context, path string) (net.Listener, error) {
	conn, err := net.DialTimeout("unix", path, controlTimeout)
	switch {
	case err == nil:
		_ = conn.Close()
		return nil, drover.Errorf(drover.Exists, "", "another process serves this socket")
	case errors.Is(err, syscall.ECONNREFUSED):
		info, err := os.Lstat(path)
		if err != nil {
			return nil, err
		}
		if info.Mode().Type() != os.ModeSocket {
			return nil, drover.Errorf(drover.Exists, "", "the path is taken by something that is no socket")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// The mode of a socket's file is that of the descriptor at bind, so it is
	// right from the first moment.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	return config.Listen(ctx, "unix", path)
}

type control struct {
	links  []*Link
	byName map[string]*Link
}

func (c control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /links", func(w http.ResponseWriter, _ *http.Request) {
		all := make([]Status, 0, len(c.links))
		for _, l := range c.links {
			all = append(all, l.Status())
		}
		answer(w, http.StatusOK, all)
	})
	mux.HandleFunc("GET /link", func(w http.ResponseWriter, r *http.Request) {
		l, err := c.link(r)
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, http.StatusOK, l.Status())
	})
	mux.HandleFunc("PATCH /link", func(w http.ResponseWriter, r *http.Request) {
		l, err := c.link(r)
		if err != nil {
			refuse(w, err)
			return
		}
		var change ShapeChange
		body := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		body.DisallowUnknownFields()
		err = body.Decode(&change)
		if err == nil && body.More() {
			err = errors.New("something comes after the JSON object")
		}
		if err != nil {
			refuse(w, drover.Errorf(drover.Invalid, "set link "+l.name, "request body: %w", err))
			return
		}
		status, err := l.Change(change)
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, http.StatusOK, status)
	})
	return mux
}

func (c control) link(r *http.Request) (*Link, error) {
	name := r.URL.Query().Get("name")
	if l := c.byName[name]; l != nil {
		return l, nil
	}
	names := make([]string, len(c.links))
	for i, l := range c.links {
		names[i] = l.name
	}
	return nil, drover.Errorf(drover.NotFound, "", "link %q: not here; there is %s", name, strings.Join(names, ", "))
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// An error here is the client's going away; nobody is left to tell.
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, err error) {
	kind := drover.KindOf(err)
	code, ok := map[drover.Kind]int{
		drover.Invalid:     http.StatusBadRequest,
		drover.NotFound:    http.StatusNotFound,
		drover.Unavailable: http.StatusServiceUnavailable,
	}[kind]
	if !ok {
		code = http.StatusInternalServerError
	}
	answer(w, code, refusal{Kind: kind, Error: err.Error()})
}

// Client talks to Serve. The zero value with a Path is ready, needs no closing
// and may be shared. Errors keep the server's kind; a server that does not
// answer is of kind drover.Unavailable.
type Client struct {
	// Path is the server's unix socket.
	Path string
}

// List returns the status of every link, in the server's order.
func (c Client) List(ctx context.Context) ([]Status, error) {
	var all []Status
	err := c.call(ctx, "list links", http.MethodGet, "/links", nil, &all)
	return all, err
}

// Status returns the status of one link.
func (c Client) Status(ctx context.Context, name string) (Status, error) {
	var s Status
	err := c.call(ctx, "read link "+name, http.MethodGet, linkPath(name), nil, &s)
	return s, err
}

// Set changes the settings that change names, in both directions, and returns
// the status afterwards. Setting the same twice is harmless.
func (c Client) Set(ctx context.Context, name string, change ShapeChange) (Status, error) {
	var s Status
	err := c.call(ctx, "set link "+name, http.MethodPatch, linkPath(name), change, &s)
	return s, err
}

func linkPath(name string) string { return "/link?name=" + url.QueryEscape(name) }

func (c Client) call(ctx context.Context, op, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return drover.E(drover.Invalid, op, err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://wanem"+path, &body)
	if err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	transport := &http.Transport{
		DisableKeepAlives: true, // one exchange per connection: nothing to close later
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.Path)
		},
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return drover.E(callKind(ctx), op, fmt.Errorf("WAN emulator at %s: %w", c.Path, unwrapURL(err)))
	}
	defer response.Body.Close()
	answer := json.NewDecoder(io.LimitReader(response.Body, maxResponse))
	if response.StatusCode != http.StatusOK {
		var no refusal
		if err := answer.Decode(&no); err != nil || no.Error == "" {
			return drover.Errorf(drover.Internal, op, "WAN emulator at %s: answered %s", c.Path, response.Status)
		}
		return drover.E(no.Kind, "", errors.New(no.Error))
	}
	if err := answer.Decode(out); err != nil {
		return drover.Errorf(drover.Unavailable, op, "WAN emulator at %s: %w", c.Path, err)
	}
	return nil
}

func callKind(ctx context.Context) drover.Kind {
	if errors.Is(ctx.Err(), context.Canceled) {
		return drover.Canceled
	}
	return drover.Unavailable
}

// unwrapURL takes off the made-up address that net/http puts before an error.
func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
