package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
)

// talk is an agent and the host's end of its port.
type talk struct {
	conn net.Conn
	r    *bufio.Reader
}

func newTalk(t *testing.T, hangs bool) *talk {
	t.Helper()
	host, port := net.Pipe()
	a := &agent{log: slog.New(slog.DiscardHandler), disk: &diskWriter{}, hangs: hangs}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = a.serve(ctx, port) // ends with the port
	}()
	t.Cleanup(func() {
		cancel()
		_ = port.Close()
		_ = host.Close()
		<-ended
	})
	return &talk{conn: host, r: bufio.NewReader(host)}
}

func (c *talk) ask(t *testing.T, request string) string {
	t.Helper()
	if _, err := fmt.Fprintf(c.conn, "%s\n", request); err != nil {
		t.Fatal(err)
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func TestAgent(t *testing.T) {
	c := newTalk(t, false)
	for _, step := range []struct{ request, want string }{
		{`{"execute":"guest-ping"}`, `{"return":{}}`},
		{`{"execute":"guest-sync","arguments":{"id":77}}`, `{"return":77}`},
		{"{\"exec\xff" + `{"execute":"guest-sync-delimited","arguments":{"id":9007199254740993}}`, "\xff" + `{"return":9007199254740993}`},
		{`{"execute":"guest-sync"}`, `{"error":{"class":"GenericError","desc":"Parameter 'id' is missing"}}`},
		{`{"execute":"guest-fsfreeze-status"}`, `{"return":"thawed"}`},
		{`{"execute":"guest-fsfreeze-freeze"}`, `{"return":1}`},
		{`{"execute":"guest-fsfreeze-status"}`, `{"return":"frozen"}`},
		{`{"execute":"guest-ping"}`, `{"return":{}}`},
		{`{"execute":"guest-exec","arguments":{"path":"ip"}}`, `{"error":{"class":"CommandNotFound","desc":"Command guest-exec has been disabled: the agent is in frozen state"}}`},
		{`{"execute":"guest-fsfreeze-thaw"}`, `{"return":1}`},
		{`{"execute":"guest-fsfreeze-thaw"}`, `{"return":0}`},
		{`{"execute":"guest-exec","arguments":{"path":"/sbin/ip","arg":["-V"],"capture-output":true}}`, `{"return":{"pid":1}}`},
		{`{"execute":"guest-exec-status","arguments":{"pid":1}}`, `{"return":{"exited":true,"exitcode":0,"out-data":"aXAgdXRpbGl0eSwgdGhlIHNoZWVwJ3Mgb3duCg=="}}`},
		{`{"execute":"guest-exec-status","arguments":{"pid":1}}`, `{"error":{"class":"GenericError","desc":"PID 1 does not exist"}}`},
		{`{"execute":"guest-exec","arguments":{"path":"ip","arg":["nonsense"]}}`, `{"return":{"pid":2}}`},
		{`{"execute":"guest-exec-status","arguments":{"pid":2}}`, `{"return":{"exited":true,"exitcode":255}}`},
	} {
		if got := c.ask(t, step.request); got != step.want {
			t.Errorf("%q:\n got %q\nwant %q", step.request, got, step.want)
		}
	}
	for request, want := range map[string]string{
		`{`:                       "JSON parse error",
		`{"execute":"guest-nap"}`: "CommandNotFound",
		`{"execute":"guest-exec","arguments":{"path":"/bin/sh"}}`: "No such file",
		`{"execute":"guest-exec","arguments":{}}`:                 "'path' is missing",
		`{"execute":"guest-exec","arguments":7}`:                  "'path' is missing",
	} {
		if got := c.ask(t, request); !strings.Contains(got, `"error"`) || !strings.Contains(got, want) {
			t.Errorf("%s: %s, want an error with %q", request, got, want)
		}
	}
	var info struct {
		Return struct {
			Version  string
			Commands []struct {
				Name    string
				Enabled bool
			} `json:"supported_commands"`
		}
	}
	if err := json.Unmarshal([]byte(c.ask(t, `{"execute":"guest-info"}`)), &info); err != nil || info.Return.Version == "" || len(info.Return.Commands) < 10 {
		t.Errorf("info %+v, %v", info, err)
	}
}

// TestAgentForgetsResults: what nobody asks for does not fill the memory.
func TestAgentForgetsResults(t *testing.T) {
	c := newTalk(t, false)
	for range 3 * maxExecs {
		c.ask(t, `{"execute":"guest-exec","arguments":{"path":"ip","arg":["-V"]}}`)
	}
	if got := c.ask(t, `{"execute":"guest-exec-status","arguments":{"pid":1}}`); !strings.Contains(got, "does not exist") {
		t.Errorf("the first result: %s", got)
	}
	if got := c.ask(t, fmt.Sprintf(`{"execute":"guest-exec-status","arguments":{"pid":%d}}`, 3*maxExecs)); !strings.Contains(got, "exited") {
		t.Errorf("the last result: %s", got)
	}
}
