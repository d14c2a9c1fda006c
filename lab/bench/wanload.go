package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/guest/journal"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/trial"
	"github.com/drover-vm/drover/probe"
)

// guestKind knows how a guest is warmed up, and what it does while it moves.
type guestKind interface {
	// warm does what the guest has done long before a move.
	warm(ctx context.Context) error
	// work starts what the guest does while it moves.
	work(ctx context.Context) (worker, error)
}

// worker is a guest at work.
type worker interface {
	// stop ends the work and reports an error unless the guest still has all
	// that it has acknowledged and is the same boot as before.
	stop(ctx context.Context) error
}

// awakeLimit bounds the start of a guest, whose processor is emulated.
const awakeLimit = 4 * time.Minute

// awaken waits until a started guest answers its clients.
func (w *wanLab) awaken(ctx context.Context, c *wanCase, g *labfile.Guest) (guestKind, error) {
	ctx, cancel := context.WithTimeout(ctx, awakeLimit)
	defer cancel()
	kind, err := w.kind(c, g)
	if err != nil {
		return nil, err
	}
	for {
		err := w.answers(ctx, g)
		if err == nil {
			return kind, nil
		}
		if sleep(ctx, 250*time.Millisecond) != nil {
			return nil, fmt.Errorf("%s does not answer: %w", g.Name, err)
		}
	}
}

// answers probes a guest for a moment.
func (w *wanLab) answers(ctx context.Context, g *labfile.Guest) error {
	config, ok := w.probeOf(g)
	if !ok {
		return nil
	}
	config.Sessions, config.OpenTimeout = 1, 2*time.Second
	p, err := probe.Start(ctx, config)
	if err != nil {
		return err
	}
	p.Stop()
	return nil
}

// probeOf is how the guest's clients see it; false when the lab file does not
// say.
func (w *wanLab) probeOf(g *labfile.Guest) (probe.Config, bool) {
	if g.Probe == nil || g.Probe.TCP == "" && g.Probe.HTTP == "" || w.client == "" {
		return probe.Config{}, false
	}
	return probe.Config{
		Target: g.Probe.TCP, Kind: probe.Kind(g.Probe.Kind), URL: g.Probe.HTTP,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return w.Dial(ctx, w.client, network, address)
		},
	}, true
}

func (w *wanLab) kind(c *wanCase, g *labfile.Guest) (guestKind, error) {
	if w.client == "" {
		return idle{}, nil
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		return w.Dial(ctx, w.client, network, address)
	}
	ctl := &control.Client{
		Base: "http://" + net.JoinHostPort(g.Address.String(), strconv.Itoa(control.HTTPPort)),
		HTTP: &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: controlTimeout},
	}
	switch g.Image {
	case labfile.ImageSheep:
		client, err := w.trial.Guest(w.client, g.Name)
		return &sheepGuest{ctl: client, rate: c.dirtyRate, set: int64(g.Memory) / sheepShare}, err
	case labfile.ImageDebian:
		return &debianGuest{lab: w, ctl: ctl, address: g.Address.String(), seed: uint64(c.seed)}, nil
	default:
		return idle{ctl: ctl}, nil
	}
}

// controlTimeout bounds a question to a guest.
const controlTimeout = 10 * time.Second

// idle is a guest of which nothing is known but its probe.
type idle struct{ ctl *control.Client }

// idleWarm is what an unknown guest gets to come to rest after its boot.
const idleWarm = 20 * time.Second

func (idle) warm(ctx context.Context) error { return sleep(ctx, idleWarm) }

func (i idle) work(ctx context.Context) (worker, error) { return i.watch(ctx), nil }

// watch remembers the boot, if the guest is one that tells.
func (i idle) watch(ctx context.Context) *sameBoot {
	s := &sameBoot{ctl: i.ctl}
	if i.ctl != nil {
		if stats, err := i.ctl.Stats(ctx); err == nil {
			s.boot, s.known = stats.BootID, true
		}
	}
	return s
}

// sameBoot is a guest that must not restart.
type sameBoot struct {
	ctl   *control.Client
	boot  journal.ID
	known bool
}

func (s *sameBoot) stop(ctx context.Context) error {
	if !s.known {
		return nil
	}
	stats, err := s.ctl.Stats(ctx)
	if err == nil && stats.BootID != s.boot {
		err = errors.New("the guest has booted")
	}
	return err
}

// sheepGuest dirties memory at a rate and writes a little to its disk.
type sheepGuest struct {
	ctl  *control.Client
	rate int64
	set  int64 // bytes that are dirtied over and over
}

const (
	// sheepShare of the guest's memory is the working set.
	sheepShare        = 4
	sheepCompressible = 0.5
	sheepDiskRate     = 100e3
	// sheepFill is the rate at which the working set is first written.
	sheepFill = 32e6
)

func (s *sheepGuest) warm(ctx context.Context) error {
	err := s.ctl.StartMemory(ctx, control.Memory{WorkingSetBytes: s.set, RateBytesPerS: sheepFill, Compressible: sheepCompressible})
	if err != nil {
		return err
	}
	return sleep(ctx, time.Duration(2*float64(s.set)/sheepFill*float64(time.Second)))
}

func (s *sheepGuest) work(ctx context.Context) (worker, error) {
	load, err := trial.StartLoad(ctx, s.ctl,
		control.Memory{WorkingSetBytes: s.set, RateBytesPerS: s.rate, Compressible: sheepCompressible},
		control.Disk{RateBytesPerS: sheepDiskRate})
	if err != nil {
		return nil, err
	}
	return &sheepWorker{load: load, ctl: s.ctl}, nil
}

type sheepWorker struct {
	load *trial.Load
	ctl  *control.Client
}

func (s *sheepWorker) stop(ctx context.Context) error {
	acks, err := s.load.Stop(ctx)
	if err := errors.Join(err, s.load.SameBoot(ctx)); err != nil {
		return err
	}
	check, err := s.ctl.CheckDiskAgainst(ctx, acks)
	if err == nil && !check.Verdict.OK {
		err = errors.New(check.Verdict.Reason)
	}
	return err
}

// debianGuest serves Redis and PostgreSQL to a light load, and has read a fair
// part of its disk before.
type debianGuest struct {
	lab     *wanLab
	ctl     *control.Client
	address string
	seed    uint64
}

const (
	// debianReads is how much of the disk the guest has read into its page
	// cache when it moves: what a 512 MB machine with these services has room
	// for.
	debianReads = 240 << 20
	// Redis holds redisKeys values, of which redisRate per second are set anew.
	redisKeys  = 20000
	redisValue = 512 // bytes, half of them random digits
	redisRate  = 100 // per second
	// debianRest is the time from the last of the reading to the move.
	debianRest = 5 * time.Second
)

// readSet has the guest read files in a fixed order, through PostgreSQL, which
// runs programs for its superuser.
var readSet = fmt.Sprintf(`COPY wanbench_read FROM PROGRAM 'find /usr /var/lib/postgresql -xdev -type f 2>/dev/null`+
	` | LC_ALL=C sort | xargs -d "\n" cat 2>/dev/null | head -c %d | wc -c'`, debianReads)

func (d *debianGuest) psql(ctx context.Context, statements ...string) (string, error) {
	args := []string{"psql", "-h", d.address, "-U", "postgres", "-qAt", "-v", "ON_ERROR_STOP=1"}
	for _, s := range statements {
		args = append(args, "-c", s)
	}
	return d.lab.exec(ctx, d.lab.client, append(args, "bench")...)
}

func (d *debianGuest) warm(ctx context.Context) error {
	// The probe speaks to Redis; PostgreSQL takes longer to be ready.
	for {
		_, err := d.lab.exec(ctx, d.lab.client, "pg_isready", "-q", "-h", d.address)
		if err == nil {
			break
		}
		if serr := sleep(ctx, 500*time.Millisecond); serr != nil {
			return errors.Join(err, serr)
		}
	}
	r, err := d.dialRedis(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	for k := range redisKeys {
		if err := r.set(k); err != nil {
			return err
		}
	}
	if err := r.settle(); err != nil {
		return err
	}
	if _, err := d.psql(ctx, "CREATE TABLE wanbench_acks (n bigint PRIMARY KEY)", "CREATE TABLE wanbench_read (n bigint)",
		readSet, "SELECT sum(abalance) FROM pgbench_accounts"); err != nil {
		return err
	}
	return sleep(ctx, debianRest)
}

func (d *debianGuest) work(ctx context.Context) (worker, error) {
	r, err := d.dialRedis(ctx)
	if err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(ctx)
	w := &debianWorker{guest: d, cancel: cancel, boot: idle{ctl: d.ctl}.watch(ctx)}
	out, err := d.psql(ctx, "SELECT coalesce(max(n), 0) FROM wanbench_acks")
	if err == nil {
		w.committed, err = strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	}
	if err != nil {
		cancel()
		r.close()
		return nil, err
	}
	w.wg.Go(func() {
		defer r.close()
		w.failed(run, r.light(run))
	})
	if err := w.startWriter(run); err != nil {
		cancel()
		w.wg.Wait()
		return nil, err
	}
	return w, nil
}

// debianWorker sets keys and inserts rows, each after the other's commit.
type debianWorker struct {
	guest  *debianGuest
	cancel context.CancelFunc
	boot   *sameBoot
	wg     sync.WaitGroup

	mu  sync.Mutex
	err error
	// committed is the last row's number; there is none missing before it.
	committed int64
}

// failed keeps an error that was not the end of the work.
func (w *debianWorker) failed(run context.Context, err error) {
	if err == nil || run.Err() != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, err)
}

// writeInterval is the time between two rows.
const writeInterval = 100 * time.Millisecond

// startWriter inserts rows in one session and counts those that PostgreSQL
// says are on the disk.
func (w *debianWorker) startWriter(run context.Context) error {
	d := w.guest
	cmd, err := d.lab.Command(run, d.lab.client, "psql", "-h", d.address, "-U", "postgres", "-qAt", "-v", "ON_ERROR_STOP=1", "bench")
	if err != nil {
		return err
	}
	in, ierr := cmd.StdinPipe()
	out, oerr := cmd.StdoutPipe()
	if err := errors.Join(ierr, oerr, cmd.Start()); err != nil {
		return err
	}
	w.wg.Go(func() {
		w.failed(run, w.write(run, in, bufio.NewReader(out)))
		_ = in.Close() // the session ends with it
		_ = cmd.Wait() // what went wrong is known already
	})
	return nil
}

func (w *debianWorker) write(run context.Context, in io.Writer, out *bufio.Reader) error {
	for n := w.committed + 1; run.Err() == nil; n++ {
		if _, err := fmt.Fprintf(in, "INSERT INTO wanbench_acks VALUES (%d) RETURNING n;\n", n); err != nil {
			return fmt.Errorf("PostgreSQL's session: %w", err)
		}
		line, err := out.ReadString('\n')
		if err != nil {
			return fmt.Errorf("PostgreSQL's session: %w", err)
		}
		if got := strings.TrimSpace(line); got != strconv.FormatInt(n, 10) {
			return fmt.Errorf("PostgreSQL answered %q to row %d", got, n)
		}
		w.mu.Lock()
		w.committed = n
		w.mu.Unlock()
		_ = sleep(run, writeInterval) // the loop looks at run itself
	}
	return nil
}

func (w *debianWorker) stop(ctx context.Context) error {
	w.cancel()
	w.wg.Wait()
	if w.err != nil {
		return w.err
	}
	out, err := w.guest.psql(ctx, "SELECT count(*) FROM wanbench_acks WHERE n <= "+strconv.FormatInt(w.committed, 10))
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(out); got != strconv.FormatInt(w.committed, 10) || w.committed == 0 {
		return fmt.Errorf("PostgreSQL has %s of %d committed rows", got, w.committed)
	}
	return w.boot.stop(ctx)
}

// redis is a client that sets keys to values that it makes up.
type redis struct {
	conn    net.Conn
	out     *bufio.Writer
	in      *bufio.Reader
	random  *rand.Rand
	value   [redisValue]byte
	pending int
}

// redisBatch bounds the requests that are not answered yet.
const redisBatch = 100

func (d *debianGuest) dialRedis(ctx context.Context) (*redis, error) {
	conn, err := d.lab.Dial(ctx, d.lab.client, "tcp", net.JoinHostPort(d.address, "6379"))
	if err != nil {
		return nil, err
	}
	return &redis{
		conn: conn, out: bufio.NewWriter(conn), in: bufio.NewReader(conn), random: rand.New(rand.NewPCG(d.seed, 0)),
	}, nil
}

func (r *redis) close() { _ = r.conn.Close() }

// set sends a SET; every redisBatch-th waits for the answers.
func (r *redis) set(key int) error {
	const letters = "0123456789abcdef"
	for i := range redisValue / 2 {
		r.value[i] = letters[r.random.IntN(len(letters))]
	}
	for i := redisValue / 2; i < redisValue; i++ {
		r.value[i] = ' '
	}
	name := fmt.Sprintf("key:%08d", key)
	if _, err := fmt.Fprintf(r.out, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(name), name, redisValue, r.value[:]); err != nil {
		return err
	}
	if r.pending++; r.pending < redisBatch {
		return nil
	}
	return r.settle()
}

// settle waits for all answers.
func (r *redis) settle() error {
	if err := r.out.Flush(); err != nil {
		return err
	}
	for ; r.pending > 0; r.pending-- {
		line, err := r.in.ReadString('\n')
		if err != nil {
			return fmt.Errorf("redis's session: %w", err)
		}
		if strings.TrimSpace(line) != "+OK" {
			return fmt.Errorf("redis answered %q", strings.TrimSpace(line))
		}
	}
	return nil
}

// light sets random keys at redisRate until ctx ends.
func (r *redis) light(ctx context.Context) error {
	defer context.AfterFunc(ctx, r.close)()
	tick := time.NewTicker(time.Second / redisRate)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := errors.Join(r.set(r.random.IntN(redisKeys)), r.settle()); err != nil {
			return err
		}
	}
}
