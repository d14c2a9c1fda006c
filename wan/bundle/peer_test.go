package bundle

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

// peer is the far end of a protocol written by hand.
type peer struct {
	t    *testing.T
	conn net.Conn
}

func (p peer) write(h frame.Header, payload []byte) bool {
	_, err := p.conn.Write(h.Append(nil, payload))
	return err == nil
}

// closed waits for the other end to hang up.
func (p peer) closed() {
	p.t.Helper()
	if _, err := io.Copy(io.Discard, p.conn); err != nil && !errors.Is(err, errReset) {
		p.t.Errorf("read: %v", err)
	}
}

// introduce says hello by hand to an acceptor.
func introduce(t *testing.T, n *network, change func(*frame.Hello)) (peer, frame.Answer) {
	t.Helper()
	conn, err := n.dial(t.Context())
	must(t, err)
	h := frame.Hello{Lowest: 1, Highest: 1, Number: 1, Bundle: frame.BundleID{7}, Windows: frame.Windows{Channel: 1 << 20, Bundle: 4 << 20}, Token: testToken}
	if change != nil {
		change(&h)
	}
	_, err = conn.Write(h.Append(nil))
	must(t, err)
	a, err := frame.ReadAnswer(conn)
	must(t, err)
	return peer{t, conn}, a
}

// TestPeerThatBreaksTheProtocol: each violation costs the connection it came
// on; in the end the bundle gives up.
func TestPeerThatBreaksTheProtocol(t *testing.T) {
	const window = 1 << 20
	data := func(channel uint32, sequence uint64, n int) (frame.Header, []byte) {
		return frame.Header{Kind: frame.Data, Class: 3, Channel: channel, Sequence: sequence, Message: uint32(n)}, make([]byte, n)
	}
	violations := map[string]func(p peer){
		"ignores the window": func(p peer) {
			for i := uint64(1); ; i++ {
				if h, b := data(1, i, 30_000); !p.write(h, b) {
					return
				}
				if i > 2*window/30_000 {
					return
				}
			}
		},
		"acks what was not sent": func(p peer) {
			p.write(frame.Header{Kind: frame.Ack}, frame.AppendAck(nil, []frame.Count{{ID: 1, Value: 5}}, nil))
		},
		"changes a message's length": func(p peer) {
			h, b := data(1, 4, 30_000)
			p.write(h, b)
			h, b = data(1, 4, 30_001)
			p.write(h, b)
		},
		"changes a channel's class": func(p peer) {
			h, b := data(1, 2, 10)
			p.write(h, b)
			h.Class, h.Sequence = 1, 3
			p.write(h, b)
		},
		"uses a channel of ours": func(p peer) { h, b := data(2, 1, 10); p.write(h, b) },
		"opens too many": func(p peer) {
			h, b := data(1<<20+1, 1, 10)
			p.write(h, b)
		},
		"sends after the end": func(p peer) {
			p.write(frame.Header{Kind: frame.CloseSend, Class: 3, Channel: 1, Sequence: 1}, nil)
			h, b := data(1, 1, 10)
			p.write(h, b)
		},
		"answers a ping of the future": func(p peer) { p.write(frame.Header{Kind: frame.Pong, Sequence: math.MaxUint64}, nil) },
		"has an unknown kind":          func(p peer) { p.write(frame.Header{Kind: 77}, nil) },
	}
	for name, breaks := range violations {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(time.Millisecond)
				far, err := Accept(Config{Token: testToken, Window: window})
				must(t, err)
				n.accept = func(c net.Conn) {
					if h, err := frame.ReadHello(c); err == nil {
						_ = far.Attach(c, h)
					}
				}
				p, a := introduce(t, n, nil)
				must(t, a.Err(&frame.Hello{Lowest: 1, Highest: 1}))
				breaks(p)
				p.closed()
				if s := far.Stats(); s.Violations != 1 || s.Now != 0 || far.Err() != nil {
					t.Errorf("%d violations, %d connections, error %v; want one, none and none", s.Violations, s.Now, far.Err())
				}
				if held := far.buffered; held > int64(far.cfg.windows().Bundle) {
					t.Errorf("holds %d bytes", held)
				}
				far.abandon(errors.New("seen"))
				far.Close(nil)
				n.group.Wait()
			})
		})
	}
}

func TestStubbornPeerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		far, err := Accept(Config{Token: testToken})
		must(t, err)
		n.accept = func(c net.Conn) {
			if h, err := frame.ReadHello(c); err == nil {
				_ = far.Attach(c, h)
			}
		}
		for i := range violationLimit {
			p, a := introduce(t, n, func(h *frame.Hello) { h.Number = uint32(i + 1) })
			if a.Status != frame.Accepted {
				t.Fatalf("connection %d: %+v", i, a)
			}
			p.write(frame.Header{Kind: 77}, nil)
			p.closed()
		}
		<-far.Done()
		if drover.KindOf(far.Err()) != drover.Invalid {
			t.Errorf("ended with %v, want invalid", far.Err())
		}
		far.Close(nil)
		n.group.Wait()
	})
}

// TestForeignConnections are refused and disturb nothing.
func TestForeignConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		e := connect(t, n, Config{Conns: 2}, Config{})
		near, far := e.channel(Memory, "memory")
		var group sync.WaitGroup
		group.Go(func() { send(t, near, 6, 50) })
		group.Go(func() { receive(t, far, 6, 50) })
		same := func(h *frame.Hello) { h.Bundle, h.Number = e.near.id, 1000 }
		for name, change := range map[string]func(*frame.Hello){
			"another bundle":         func(h *frame.Hello) { h.Number = 1000 },
			"another token":          func(h *frame.Hello) { same(h); h.Token = []byte("another of twenty-four..") },
			"a replayed number":      func(h *frame.Hello) { same(h); h.Number = 1 },
			"no version in common":   func(h *frame.Hello) { same(h); h.Lowest, h.Highest = 2, 3 },
			"a number long ago used": func(h *frame.Hello) { same(h); h.Number = 2 },
		} {
			p, a := introduce(t, n, change)
			want := frame.Refused
			if name == "no version in common" {
				want = frame.WrongVersion
			}
			if a.Status != want {
				t.Errorf("%s: answer %d, want %d", name, a.Status, want)
			}
			p.closed()
		}
		// Noise instead of a hello.
		conn, err := n.dial(t.Context())
		must(t, err)
		_, err = conn.Write(binary.BigEndian.AppendUint64(nil, 0x1234))
		must(t, err)
		must(t, conn.Close())
		group.Wait()
		if s := e.far.Stats(); s.Lost != 0 || s.Now != 2 || s.Violations != 0 {
			t.Errorf("%d connections lost, %d up, %d violations", s.Lost, s.Now, s.Violations)
		}
		e.end()
	})
}

// TestFutureInitiator: a peer that speaks more versions gets one that both have.
func TestFutureInitiator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		far, err := Accept(Config{Token: testToken})
		must(t, err)
		n.accept = func(c net.Conn) {
			if h, err := frame.ReadHello(c); err == nil {
				_ = far.Attach(c, h)
			}
		}
		_, a := introduce(t, n, func(h *frame.Hello) {
			h.Highest, h.Features, h.Extension = 2, 0xff, []byte("what version 2 adds")
		})
		if a.Status != frame.Accepted || a.Version != 1 || a.Features != 0 {
			t.Errorf("answer %+v, want version 1 without features", a)
		}
		far.Close(errors.New("seen"))
		n.group.Wait()
	})
}

// TestRefusedForGood: an acceptor that does not know the session ends the
// initiator's bundle, at first and after a cut.
func TestRefusedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		e := connect(t, n, Config{}, Config{})
		n.set(func() {
			n.accept = func(c net.Conn) {
				if _, err := frame.ReadHello(c); err == nil {
					a := frame.Answer{Status: frame.Refused, Lowest: 1, Highest: 1, Text: "no such session"}
					_, _ = c.Write(a.Append(nil))
				}
				_ = c.Close()
			}
		})
		_, err := Initiate(t.Context(), Config{Token: testToken, Dial: n.dial})
		if drover.KindOf(err) != drover.Denied {
			t.Errorf("initiate: %v, want denied", err)
		}
		for i := range 20 {
			n.kill(i)
		}
		<-e.near.Done()
		if drover.KindOf(e.near.Err()) != drover.Denied {
			t.Errorf("after a cut: %v, want denied", e.near.Err())
		}
		e.far.Close(errors.New("seen"))
		e.end()
	})
}
