package bundle

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

// ErrClosed is in the chain of every error after a bundle was closed, by either
// end, with all messages delivered.
var ErrClosed = errors.New("bundle closed")

// Bundle is one end of the path. Its methods may be called concurrently.
// Whoever made it calls Close in the end, also after it has failed.
type Bundle struct {
	cfg       Config
	initiator bool
	began     time.Time
	pool      pool
	gate      *Gate
	held      atomic.Bool // the gate lets control pass only
	done      chan struct{}
	cancel    context.CancelFunc
	group     sync.WaitGroup
	redial    chan struct{} // a connection is missing
	first     chan struct{} // closed when the first connection has come
	accepting chan struct{} // a channel may be waiting in arrived
	progress  chan struct{} // Close may go on

	mu   sync.Mutex
	work sync.Cond // writers wait for something to send
	err  error

	id         frame.BundleID
	joined     bool // id and the far end's windows are known
	windows    frame.Windows
	numbers    replay
	nextNumber uint32
	links      []*link
	ghosts     []*link // dead ones, whose frames may still be counted
	cut        cut

	channels    map[uint32]*Channel
	nextID      uint32
	closed      idSet // of the far end's channels
	finals      []frame.Count
	arrived     queue[*Channel]
	turns       [classes]queue[*Channel] // channels that have something to send
	resend      [classes]queue[sent]     // what goes before them: lost frames
	order       uint64
	unacked     int           // messages not wholly received at the far end
	outstanding int64         // not consumed at the far end, without exempt classes
	buffered    int64         // not released here, without exempt classes
	queueLimit  int           // bytes that a channel may hold unsent
	batch       int           // large frames that a writer takes at once
	activity    time.Duration // the last, after began
	active      time.Duration // when it began after idleness
	patience    int           // doublings of the silence that is borne

	ackDue    bool
	ackArmed  bool
	ackTimer  *time.Timer
	ackBytes  int
	dirty     []*Channel
	repeatAll bool // finals and ghosts are to be told again
	bucket    bucket
	paceTimer *time.Timer
	paceArmed bool

	closing bool
	bye     bye
	stats   counters
}

// ghostLimit bounds the dead connections that are remembered: those of a few
// cuts.
const ghostLimit = 2 * maxConns

func newBundle(cfg Config, initiator bool) *Bundle {
	b := &Bundle{
		cfg: cfg, initiator: initiator, began: time.Now(), gate: cfg.Gate,
		done: make(chan struct{}), redial: make(chan struct{}, 1), first: make(chan struct{}),
		accepting: make(chan struct{}, 1), progress: make(chan struct{}, 1),
		channels: make(map[uint32]*Channel), queueLimit: startQueue, batch: 1,
	}
	b.work.L = &b.mu
	b.nextID = 2
	if initiator {
		b.nextID = 1
	}
	b.closed.next = 3 - b.nextID
	b.bucket.at = b.began
	b.bucket.set(cfg.Rate, b.began)
	b.ackTimer = time.AfterFunc(time.Hour, b.ackNow)
	b.ackTimer.Stop()
	b.paceTimer = time.AfterFunc(time.Hour, b.paceNow)
	b.paceTimer.Stop()
	b.cut.begin(0)
	return b
}

func (b *Bundle) start(ctx context.Context) {
	b.gate.join(b)
	b.group.Go(func() { b.keep(ctx) })
	if b.initiator {
		b.group.Go(func() { b.dial(ctx) })
	}
}

// Initiate makes a bundle and waits for its first connection; the others come
// while it runs. ctx bounds the waiting only. What cannot get better is
// returned at once: drover.Invalid for a wrong configuration or when no common
// version is spoken, drover.Denied when the acceptor refuses; else
// drover.Unavailable after ctx or the cut limit has ended.
func Initiate(ctx context.Context, cfg Config) (*Bundle, error) {
	const op = "open wan bundle"
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Dial == nil {
		return nil, drover.Errorf(drover.Invalid, op, "no way to dial")
	}
	b := newBundle(cfg, true)
	if _, err := rand.Read(b.id[:]); err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b.cancel = cancel
	b.start(run)
	select {
	case <-b.first:
		return b, nil
	case <-b.done:
		err = b.Err()
	case <-ctx.Done():
		b.mu.Lock()
		err = context.Cause(ctx)
		if last := b.cut.lastFailure; last != nil {
			err = fmt.Errorf("%w; the last attempt: %w", err, last)
		}
		b.mu.Unlock()
		err = drover.E(drover.Unavailable, op, err)
	}
	b.abandon(err)
	b.group.Wait()
	return nil, err
}

// Accept makes the acceptor's end. It waits for connections, which come by
// Attach; the cut limit counts from now.
func Accept(cfg Config) (*Bundle, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	b := newBundle(cfg, false)
	run, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	b.start(run)
	return b, nil
}

// Done is closed when the bundle has ended; Err says why.
func (b *Bundle) Done() <-chan struct{} { return b.done }

// Err returns nil while the bundle runs. After a clean end ErrClosed is in the
// error's chain; else it is drover.Unavailable (cut for too long), Denied (the
// far end does not know the session), Canceled (given up at either end) or
// Invalid (the far end breaks the protocol).
func (b *Bundle) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// SetRate changes what this end may send, over all classes, as bytes on the
// link; zero is unlimited.
func (b *Bundle) SetRate(r drover.BitRate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bucket.set(max(0, r), time.Now())
	b.work.Broadcast()
}

// SetUrgent makes the bundle go before the others of its Gate, for at most
// gateLimit.
func (b *Bundle) SetUrgent(urgent bool) {
	if urgent {
		select {
		case <-b.done:
			return
		default:
		}
	}
	b.gate.set(b, urgent)
}

func (b *Bundle) wakeAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.work.Broadcast()
}

// now is the time since the bundle began.
func (b *Bundle) now() time.Duration { return time.Since(b.began) }

// wake puts a token into a channel with room for one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// abandon ends the bundle at once.
func (b *Bundle) abandon(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end(err)
}

// end ends everything for the reason err, under the lock. Goroutines end by
// themselves.
func (b *Bundle) end(err error) {
	if b.err != nil {
		return
	}
	b.err = err
	b.cut.end(b.now())
	close(b.done)
	b.cancel()
	b.ackTimer.Stop()
	b.paceTimer.Stop()
	clean := errors.Is(err, ErrClosed) || b.bye.written
	for _, l := range b.links {
		l.dead = true
		b.stats.bury(l)
		if clean {
			closeBelow(l.conn)
		} else {
			abort(l.conn)
		}
	}
	b.links = nil
	for _, c := range b.channels {
		c.wakeUsers()
	}
	wake(b.accepting)
	wake(b.progress)
	b.work.Broadcast()
}

// join makes a connection part of the bundle, hello and answer done.
func (b *Bundle) join(conn net.Conn, number uint32, windows frame.Windows) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	if !b.joined {
		b.joined, b.windows = true, windows
		close(b.first)
	}
	now := b.now()
	l := newLink(conn, number, now)
	b.links = append(b.links, l)
	b.cut.end(now)
	b.stats.connections++
	// What was told on connections that died may not have arrived.
	b.repeat()
	b.group.Go(func() { b.write(l) })
	b.group.Go(func() { b.read(l) })
	for _, c := range b.channels {
		wake(c.canSend)
	}
	b.work.Broadcast()
	b.cfg.Log.Debug("wan connection joined", "connection", number, "connections", len(b.links))
	return nil
}

// drop takes a connection out: it is dead for the reason why.
func (b *Bundle) drop(l *link, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.dead {
		return
	}
	l.dead = true
	if b.bye.parting {
		closeBelow(l.conn)
		wake(b.progress)
	} else {
		abort(l.conn)
	}
	for i, other := range b.links {
		if other == l {
			b.links = append(b.links[:i], b.links[i+1:]...)
			break
		}
	}
	b.stats.bury(l)
	if b.bye.parting || b.err != nil {
		return
	}
	b.stats.lost++
	b.ghosts = append(b.ghosts, l)
	if len(b.ghosts) > ghostLimit {
		b.ghosts = append(b.ghosts[:0], b.ghosts[1:]...)
	}
	if len(b.links) == 0 {
		b.cut.begin(time.Duration(l.heard.Load()))
		b.stats.cuts++
	}
	b.cfg.Log.Info("wan connection lost", "connection", l.number, "connections", len(b.links), "err", why)
	if b.bye.written && !b.bye.came {
		b.bye.written, b.bye.wanted = false, true
	}
	b.lose(l)
	b.repeat()
	b.blame(why)
	wake(b.redial)
	b.work.Broadcast()
}

// violationLimit is how many connections may die because the far end breaks
// the protocol: it does so again on the next.
const violationLimit = 16

// blame counts what a connection died of, and gives up on a peer that is wrong
// each time.
func (b *Bundle) blame(why error) {
	switch {
	case isCorrupt(why):
		b.stats.corrupt++
	case drover.KindOf(why) == drover.Invalid:
		b.stats.violations++
		if b.stats.violations >= violationLimit {
			b.end(drover.E(drover.Invalid, "wan bundle: the far end breaks the protocol", why))
		}
	}
}

// isCorrupt reports whether bytes were not what was sent: our own checksum, or
// TLS's. net/tls marks what it finds itself, other than what the peer says, as
// a local error.
func isCorrupt(err error) bool {
	var op *net.OpError
	var head tls.RecordHeaderError // a record's length or version
	return errors.Is(err, frame.ErrCorrupt) || errors.As(err, &head) || errors.As(err, &op) && op.Op == "local error"
}
