package probe

import (
	"bytes"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"strconv"
)

// errState says that a session did not prove its state.
var errState = errors.New("session state lost")

// protocol is one session's requests and replies. Replies come in the order
// of the requests.
type protocol interface {
	// request returns the n-th request of the session, from 1.
	request(n uint64) []byte
	// check judges the reply to the n-th request, a line with its end.
	check(n uint64, reply []byte) error
	// boot names the server's boot as far as the protocol tells, or "".
	boot() string
}

func newProtocol(cfg Config) protocol {
	switch cfg.Kind {
	case KindRedis:
		return fixed{send: []byte("PING\r\n"), want: []byte("+PONG")}
	case KindLine:
		return fixed{send: []byte(cfg.Send + "\n"), want: []byte(cfg.Expect)}
	default:
		return &sheep{hash: fnv.New64a()}
	}
}

// fixed is a protocol whose requests and replies never change.
type fixed struct{ send, want []byte }

func (f fixed) request(uint64) []byte { return f.send }
func (f fixed) boot() string          { return "" }

func (f fixed) check(_ uint64, reply []byte) error {
	if got := bytes.TrimRight(reply, "\r\n"); !bytes.Equal(got, f.want) {
		return fmt.Errorf("reply %q, want %q", got, f.want)
	}
	return nil
}

// sheep is the lab guest's protocol:
//
//	ECHO <n>\n  →  OK <session> <count> <n> <boot> <hash>\n
//
// count and hash are over all lines of the session; here they are computed
// again from what was sent.
type sheep struct {
	session, bootID string // of the first reply
	hash            hash.Hash64
}

func (s *sheep) request(n uint64) []byte {
	return append(strconv.AppendUint([]byte("ECHO "), n, 10), '\n')
}

func (s *sheep) boot() string { return s.bootID }

func (s *sheep) check(n uint64, reply []byte) error {
	f := bytes.Fields(reply)
	if len(f) != 6 || string(f[0]) != "OK" {
		return fmt.Errorf("reply %q, want OK <session> <count> <n> <boot> <hash>", bytes.TrimSpace(reply))
	}
	_, _ = s.hash.Write(s.request(n)) // never fails
	if n == 1 {
		s.session, s.bootID = string(f[1]), string(f[4])
	}
	number := strconv.FormatUint(n, 10)
	for _, want := range []struct{ what, got, want string }{
		{"session", string(f[1]), s.session},
		{"boot", string(f[4]), s.bootID},
		{"count", string(f[2]), number},
		{"number", string(f[3]), number},
		{"hash", string(f[5]), fmt.Sprintf("%016x", s.hash.Sum64())},
	} {
		if want.got != want.want {
			return fmt.Errorf("%w: %s %s, want %s", errState, want.what, want.got, want.want)
		}
	}
	return nil
}
