package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/guest/journal"
	"github.com/drover-vm/drover/lab/guest/session"
)

const (
	// maxBody holds any request; the largest lists ranges of acknowledgements.
	maxBody = 64 << 10
	// ackBatch is how long acknowledgements are collected before they are
	// sent: a packet per record would cost more than the record.
	ackBatch = 5 * time.Millisecond
)

// handler serves the control interface.
type handler struct {
	log      *slog.Logger
	name     string
	boot     journal.ID
	started  time.Time
	sessions *session.Server
	disk     *diskWriter
	memory   *memoryWriter
	gap      *gapMeter
	spinner  spinner
	book     *addressBook
}

func (h *handler) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /stats", h.stats)
	mux.HandleFunc("DELETE /stats/gap", func(w http.ResponseWriter, _ *http.Request) {
		h.gap.reset()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /spin", func(w http.ResponseWriter, r *http.Request) {
		var req control.Spin
		if !h.decode(w, r, &req) {
			return
		}
		stats, err := h.spinner.run(r.Context(), req)
		if err != nil {
			h.fail(w, err)
			return
		}
		h.reply(w, http.StatusOK, stats)
	})
	mux.HandleFunc("GET /addresses", func(w http.ResponseWriter, _ *http.Request) {
		list, err := h.book.report()
		if err != nil {
			h.fail(w, err)
			return
		}
		h.reply(w, http.StatusOK, list)
	})
	mux.HandleFunc("DELETE /addresses/{address}", func(w http.ResponseWriter, r *http.Request) {
		a, err := netip.ParseAddr(r.PathValue("address"))
		if err != nil {
			h.fail(w, fmt.Errorf("address %q: want an IP address", r.PathValue("address")))
			return
		}
		h.act(w, r, nil, func() error { return h.book.drop(a) })
	})
	mux.HandleFunc("POST /memory", func(w http.ResponseWriter, r *http.Request) {
		var req control.Memory
		h.act(w, r, &req, func() error { return h.memory.start(req) })
	})
	mux.HandleFunc("DELETE /memory", func(w http.ResponseWriter, r *http.Request) {
		h.act(w, r, nil, h.memory.stop)
	})
	mux.HandleFunc("POST /disk", func(w http.ResponseWriter, r *http.Request) {
		var req control.Disk
		h.act(w, r, &req, func() error { return h.disk.start(req) })
	})
	mux.HandleFunc("DELETE /disk", func(w http.ResponseWriter, r *http.Request) {
		h.act(w, r, nil, func() error { h.disk.halt(); return nil })
	})
	mux.HandleFunc("GET /disk/acks", h.acks)
	mux.HandleFunc("GET /disk/check", func(w http.ResponseWriter, _ *http.Request) {
		h.check(w, nil)
	})
	mux.HandleFunc("POST /disk/check", func(w http.ResponseWriter, r *http.Request) {
		acked := new(journal.Acks)
		if h.decode(w, r, acked) {
			h.check(w, acked)
		}
	})
	return mux
}

func (h *handler) check(w http.ResponseWriter, acked *journal.Acks) {
	check, err := h.disk.check(acked)
	if err != nil {
		h.fail(w, err)
		return
	}
	h.reply(w, http.StatusOK, check)
}

// decode reads the request's body, or answers that it is no good.
func (h *handler) decode(w http.ResponseWriter, r *http.Request, req any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(req); err != nil {
		h.reply(w, http.StatusBadRequest, map[string]string{"error": "request: " + err.Error()})
		return false
	}
	return true
}

// act decodes the request into req, unless that is nil, and does what was
// asked.
func (h *handler) act(w http.ResponseWriter, r *http.Request, req any, do func() error) {
	if req != nil && !h.decode(w, r, req) {
		return
	}
	if err := do(); err != nil {
		h.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *handler) fail(w http.ResponseWriter, err error) {
	code := http.StatusBadRequest
	switch {
	case errors.Is(err, errNoDisk), errors.Is(err, errNoMemory), errors.Is(err, errSpinning), errors.Is(err, journal.ErrNoJournal),
		errors.Is(err, journal.ErrForeign), errors.Is(err, journal.ErrGeometry), errors.Is(err, journal.ErrTooSmall):
		code = http.StatusConflict
	case errors.Is(err, errNoAddress):
		code = http.StatusNotFound
	case errors.Is(err, errLastAddress):
		code = http.StatusConflict
	}
	h.reply(w, code, map[string]string{"error": err.Error()})
}

func (h *handler) reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		h.log.Debug("reply not sent", "err", err)
	}
}

func (h *handler) stats(w http.ResponseWriter, _ *http.Request) {
	disk, _ := h.disk.watch()
	h.reply(w, http.StatusOK, control.Stats{
		Name:      h.name,
		BootID:    h.boot,
		UptimeMS:  time.Since(h.started).Milliseconds(),
		Addresses: addresses(),
		Sessions:  h.sessions.Stats(),
		Memory:    h.memory.stats(),
		Disk:      disk,
		Gap:       h.gap.stats(),
	})
}

func addresses() []string {
	list := []string{}
	all, _ := net.InterfaceAddrs() // an error leaves the list empty
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			list = append(list, ip.String())
		}
	}
	return list
}

// acks streams the acknowledged records. Every one of this boot is there for
// whoever asks, however late: a range is all there is to remember.
func (h *handler) acks(w http.ResponseWriter, r *http.Request) {
	var next uint64
	if from := r.FormValue("from"); from != "" {
		var err error
		if next, err = strconv.ParseUint(from, 10, 64); err != nil {
			h.reply(w, http.StatusBadRequest, map[string]string{"error": fmt.Sprintf("from %q: want a sequence number", from)})
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	buf := bufio.NewWriter(w)
	var current journal.ID
	for {
		s, changed := h.disk.watch()
		if s.Journal != current {
			if current != (journal.ID{}) {
				next = 0 // a new journal counts from 1 again
			}
			current = s.Journal
		}
		if s.LastSeq > 0 {
			for next = max(next, s.FirstSeq); next <= s.LastSeq; next++ {
				_, _ = fmt.Fprintf(buf, "{\"journal\":%q,\"boot\":%q,\"seq\":%d}\n", s.Journal, h.boot, next)
			}
		}
		if buf.Flush() != nil || out.Flush() != nil { // the client is gone
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
			sleep(r.Context(), ackBatch)
		}
	}
}
