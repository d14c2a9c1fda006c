package wan

import (
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/drover-vm/drover/wan/bundle"
)

// counted is a listener that counts what comes, and passes it on.
func counted(t *testing.T, to string) (address string, came *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	came = new(atomic.Int64)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			came.Add(1)
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				return
			}
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
		}
	}()
	return l.Addr().String(), came
}

// What was connected to while the destination was being prepared is what the
// session goes over, all of it, in default settings too.
func TestApproachIsTaken(t *testing.T) {
	north, south := pair(t, Config{})
	address, came := counted(t, south.address)
	approach := north.node.Approach(address, south.name)
	defer approach.Close()
	eventually(t, "the connections of the approach are made", func() bool { return len(approach.made) == bundle.DefaultConns })
	s := start(t, trip{from: north, to: south, via: address, approach: approach})
	s.whole(t, bundle.DefaultConns)
	if n := came.Load(); n != bundle.DefaultConns {
		t.Errorf("%d connections were made for a session of %d", n, bundle.DefaultConns)
	}
	for _, left := range []int{approach.left, len(approach.made)} {
		if left != 0 {
			t.Errorf("%d connections of the approach are left", left)
		}
	}
}

// What nobody takes is closed.
func TestApproachIsClosed(t *testing.T) {
	north, south := pair(t, Config{Connections: 2})
	approach := north.node.Approach(south.address, south.name)
	eventually(t, "connections", func() bool { return len(approach.made) == 2 })
	approach.Close()
	if c := approach.take(t.Context()); c != nil {
		t.Error("a closed approach gives a connection")
	}
}
