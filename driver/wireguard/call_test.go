package wireguard

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/drover-vm/drover/driver"
)

// deafEngine is one whose peers do not answer, until they have shaken hands.
type deafEngine struct {
	asked    []wgtypes.PeerConfig
	hands    time.Time
	received int64
}

func (e *deafEngine) configure(c wgtypes.Config) error {
	e.asked = append(e.asked, c.Peers...)
	return nil
}

func (e *deafEngine) peers() ([]wgtypes.Peer, error) {
	return []wgtypes.Peer{{PublicKey: wgtypes.Key{9}, LastHandshakeTime: e.hands, ReceiveBytes: e.received}}, nil
}

func (e *deafEngine) close() error { return nil }

// south is a peer, and alone an edge that has no other.
var south = driver.Peer{
	Name: "south", Key: driver.TunnelKey{9}, Endpoint: netip.MustParseAddrPort("203.0.113.2:51820"), Keepalive: time.Second,
	Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.2/32")},
}

func alone(e *deafEngine) *Tunnels {
	return &Tunnels{
		eng: e, set: []driver.Peer{south}, active: map[string]driver.TunnelKey{"south": south.Key},
		quiet: map[driver.TunnelKey]waiting{}, calls: map[driver.TunnelKey]nextCall{},
	}
}

// TestCallLate: a peer that may call first is found, then called, when it has not, and
// left where it is when it has.
func TestCallLate(t *testing.T) {
	for name, c := range map[string]struct {
		waited       time.Duration
		told, called bool
		received     int64
		// want is how many peers are configured; of the last, where says whether its
		// endpoint is, and calls whether it gets keepalives. The waiting ends.
		want               int
		where, calls, ends bool
	}{
		"it may still call":   {},
		"there may be data":   {waited: reserve, want: 2, where: true},
		"it is known where":   {waited: reserve, told: true},
		"it is calling":       {waited: reserve, received: 148},
		"it has called":       {called: true, want: 1, calls: true, ends: true},
		"it has not called":   {waited: courtesy, told: true, want: 1, where: true, calls: true, ends: true},
		"nobody looked since": {waited: time.Hour, want: 1, where: true, calls: true, ends: true},
	} {
		e := &deafEngine{received: c.received}
		if c.called {
			e.hands = time.Now()
		}
		at := alone(e)
		at.quiet[south.Key] = waiting{since: time.Now().Add(-c.waited), told: c.told}
		more, err := at.call()
		if err != nil || more == c.ends || len(e.asked) != c.want {
			t.Errorf("%s: more %v, %+v, %v", name, more, e.asked, err)
			continue
		}
		if c.want == 0 {
			continue
		}
		got := e.asked[c.want-1]
		if (*got.PersistentKeepaliveInterval > 0) != c.calls || (got.Endpoint != nil) != c.where || got.UpdateOnly != (c.want == 1) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestCallAgain: a peer that has not answered is made anew, with all that it has,
// ever more rarely, and no more once it has answered.
func TestCallAgain(t *testing.T) {
	e := &deafEngine{}
	at, key := alone(e), south.Key
	call := func() bool {
		t.Helper()
		e.asked = nil
		more, err := at.call()
		if err != nil {
			t.Fatal(err)
		}
		return more
	}
	due := func(wait time.Duration) { at.calls[key] = nextCall{at: time.Now().Add(-time.Second), wait: wait} }

	at.calls[key] = nextCall{at: time.Now().Add(time.Hour), wait: callAgain}
	if more := call(); !more || len(e.asked) != 0 {
		t.Errorf("called before it is due: %+v", e.asked)
	}
	due(callAgain)
	if more := call(); !more || len(e.asked) != 2 {
		t.Fatalf("when it is due: more %v, %+v", more, e.asked)
	}
	gone, anew := e.asked[0], e.asked[1]
	if !gone.Remove || anew.Remove || anew.PublicKey != gone.PublicKey || anew.Endpoint.AddrPort() != south.Endpoint ||
		*anew.PersistentKeepaliveInterval != south.Keepalive || len(anew.AllowedIPs) != 1 || !anew.AllowedIPs[0].IP.Equal(net.IPv4(10, 99, 0, 2)) {
		t.Errorf("made anew: %+v after %+v", anew, gone)
	}
	if next := at.calls[key]; next.wait != 2*callAgain || time.Until(next.at) <= 0 {
		t.Errorf("the next call: %+v", next)
	}
	due(callMost)
	if more := call(); more || len(e.asked) != 2 {
		t.Errorf("the last call: more %v, %+v", more, e.asked)
	}
	due(callAgain)
	e.hands = time.Now()
	if more := call(); more || len(e.asked) != 0 {
		t.Errorf("called though it has answered: more %v, %+v", more, e.asked)
	}
}
