package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/drover-vm/drover/lab/guest/journal"
)

// maxReply bounds a reply's size: a check lists a few hundred numbers.
const maxReply = 1 << 20

// Client controls one guest. The zero value of HTTP uses
// http.DefaultClient; a caller outside the guest's network passes a client
// that dials inside the right namespace.
type Client struct {
	// Base is the guest's address, such as "http://10.20.0.10:8080".
	Base string
	HTTP *http.Client
}

// StatusError is a refusal by the guest.
type StatusError struct {
	Code    int
	Message string
}

// Error returns the guest's message.
func (e *StatusError) Error() string { return fmt.Sprintf("%s (HTTP %d)", e.Message, e.Code) }

// Health returns nil when the guest's services run.
func (c *Client) Health(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/healthz", nil, nil)
}

// Stats returns the guest's state and counters.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	err := c.do(ctx, http.MethodGet, "/stats", nil, &s)
	return s, err
}

// ResetGap forgets the largest scheduling gap seen so far. The first has the
// guest begin to measure it.
func (c *Client) ResetGap(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, "/stats/gap", nil, nil)
}

// Spin has the guest work, and returns how it got on. It takes as long as the
// work.
func (c *Client) Spin(ctx context.Context, s Spin) (SpinStats, error) {
	var stats SpinStats
	err := c.do(ctx, http.MethodPost, "/spin", s, &stats)
	return stats, err
}

// Addresses returns what the guest answers to, link-local addresses left out.
func (c *Client) Addresses(ctx context.Context) ([]Address, error) {
	var list []Address
	err := c.do(ctx, http.MethodGet, "/addresses", nil, &list)
	return list, err
}

// DropAddress takes an address of the guest's away, whatever sessions use it. One
// that it does not have is a StatusError with http.StatusNotFound; the last one
// of its family stays, with http.StatusConflict.
func (c *Client) DropAddress(ctx context.Context, a netip.Addr) error {
	return c.do(ctx, http.MethodDelete, "/addresses/"+a.String(), nil, nil)
}

// StartMemory starts the memory writer or replaces the running one.
func (c *Client) StartMemory(ctx context.Context, m Memory) error {
	return c.do(ctx, http.MethodPost, "/memory", m, nil)
}

// StopMemory stops the memory writer; it is no error when none runs.
func (c *Client) StopMemory(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, "/memory", nil, nil)
}

// StartDisk starts the disk writer or replaces the running one.
func (c *Client) StartDisk(ctx context.Context, d Disk) error {
	return c.do(ctx, http.MethodPost, "/disk", d, nil)
}

// StopDisk stops the disk writer after the write in flight; it is no error
// when none runs.
func (c *Client) StopDisk(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, "/disk", nil, nil)
}

// CheckDisk has the guest read its disk. The disk writer waits meanwhile.
func (c *Client) CheckDisk(ctx context.Context) (DiskCheck, error) {
	var d DiskCheck
	err := c.do(ctx, http.MethodGet, "/disk/check", nil, &d)
	return d, err
}

// CheckDiskAgainst has the guest read its disk and judge it against what was
// acknowledged to a recorder outside, in earlier boots too.
func (c *Client) CheckDiskAgainst(ctx context.Context, acked journal.Acks) (DiskCheck, error) {
	var d DiskCheck
	err := c.do(ctx, http.MethodPost, "/disk/check", acked, &d)
	return d, err
}

// Acks calls f for every record acknowledged from sequence number from on (0:
// the first of this boot), in order, until ctx is done, f fails or the stream
// breaks; it always returns an error, ctx's in the first case. To go on after
// a break, call it again from the last number seen plus one.
func (c *Client) Acks(ctx context.Context, from uint64, f func(journal.Ack) error) error {
	path := "/disk/acks"
	if from > 0 {
		path += "?from=" + strconv.FormatUint(from, 10)
	}
	body, err := c.open(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		var ack journal.Ack
		if err := json.Unmarshal(lines.Bytes(), &ack); err != nil {
			return fmt.Errorf("acknowledgement %q: %w", lines.Text(), err)
		}
		if err := f(ack); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read acknowledgements: %w", err)
	}
	return fmt.Errorf("read acknowledgements: %w", io.ErrUnexpectedEOF)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	body, err := c.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	b, err := io.ReadAll(io.LimitReader(body, maxReply))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: reply: %w", method, path, err)
	}
	return nil
}

func (c *Client) open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.Base, "/")+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err // names method and address already
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer func() { _ = resp.Body.Close() }()
	var e struct {
		Error string `json:"error"`
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err = errors.Join(err, json.Unmarshal(b, &e)); err != nil || e.Error == "" {
		e.Error = http.StatusText(resp.StatusCode)
	}
	return nil, &StatusError{Code: resp.StatusCode, Message: fmt.Sprintf("%s %s: %s", method, path, e.Error)}
}
