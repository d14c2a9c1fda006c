package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/trial"
	"github.com/drover-vm/drover/lab/wanem"
	"github.com/drover-vm/drover/probe"
)

const (
	// sessionPatience is how long a session may be silent. The client's own link
	// is cut too, at times twice in a row, and its TCP tries again after twice
	// the time that it has waited.
	sessionPatience = 3 * time.Minute
	// backPatience is how long sessions and host may take after the link has
	// healed and the move has ended: TCP's next attempt may be half a minute
	// away, and what an agent has to tidy it tries every few seconds.
	backPatience = time.Minute
	// cutsWriters bounds a request that starts or stops the guest's writers.
	cutsWriters = time.Minute
)

// move moves the guest to the other site under the planned cuts, or with a bit
// flipped in every so many segments, and judges it in row. It returns the cuts
// that the move was too short for.
func (b *cutsBench) move(ctx context.Context, row Row, plan []plannedCut, flip int) (left []plannedCut) {
	for k, v := range (Row{
		"cuts": 0, "cut_s": 0.0, "phases": []string{}, "state": "", "lost_writes": int64(-1), "running_on": "", "sessions_lost": int64(-1),
		"total_s": -1.0, "pause_ms": -1.0, "retransmitted_bytes": int64(-1), "sent_bytes": int64(-1), "in_flight_bytes": int64(0), "corrupt_found": int64(-1), "ok": false, "fault": "",
	}) {
		row[k] = v
	}
	if flip > 0 {
		row["flip_every"] = flip
	}
	ctx, cancel := context.WithTimeout(ctx, cutsMoveLimit)
	defer cancel()
	left, err := b.tryMove(ctx, row, plan, flip)
	if err == nil {
		row["ok"] = true
		return left
	}
	row["fault"] = err.Error()
	return left
}

// tryMove does move's work; the error says what is wrong.
func (b *cutsBench) tryMove(ctx context.Context, row Row, plan []plannedCut, flip int) (left []plannedCut, err error) {
	vm, to, err := b.trial.Opposite(ctx, cutsVM)
	if err != nil {
		return plan, err
	}
	clients, err := b.clients(ctx)
	if err != nil {
		return plan, err
	}
	stopClients := sync.OnceValue(clients.Stop)
	defer stopClients()
	load, err := b.work(ctx)
	if err != nil {
		return plan, err
	}
	before, err := b.trial.CorruptConnections(ctx)
	if err != nil {
		return plan, err
	}
	m, left, err := b.carry(ctx, row, vm.Host, to, plan, flip)
	b.figures(row, m)
	if err != nil {
		_, stopErr := load.Stop(ctx)
		return left, errors.Join(err, stopErr)
	}
	faults := []error{b.judgeGuest(ctx, row, m, load)}
	seen := stopClients()
	row["sessions_lost"] = int64(seen.SessionsLost)
	if seen.SessionsLost > 0 || len(seen.Boots) != 1 {
		faults = append(faults, fmt.Errorf("%d sessions lost (%+v), boots %v", seen.SessionsLost, seen.Lost, seen.Boots))
	}
	found, err := b.trial.CorruptConnections(ctx)
	faults = append(faults, err)
	row["corrupt_found"] = found - before
	if flip > 0 && found == before {
		faults = append(faults, errors.New("no agent noticed a flipped bit"))
	}
	if m.State != drover.MoveDone {
		faults = append(faults, fmt.Errorf("the move is %s: %s", m.State, m.Fault))
	}
	return left, errors.Join(append(faults, b.judgeResent(row))...)
}

// clients opens the guest's sessions and waits until each is answered.
func (b *cutsBench) clients(ctx context.Context) (*probe.Prober, error) {
	i := 0
	for b.lab.Guests[i].Name != cutsVM {
		i++
	}
	return probe.Start(ctx, probe.Config{
		Target: net.JoinHostPort(b.lab.Guests[i].Address, strconv.Itoa(control.SessionPort)), Kind: probe.KindSheep,
		Beat: 50 * time.Millisecond, LostAfter: sessionPatience, OpenTimeout: clientsReady,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return b.lab.Dial(ctx, "c1", network, address)
		},
	})
}

// work makes the guest's memory and disk anew and lets it go on slowly.
func (b *cutsBench) work(ctx context.Context) (*trial.Load, error) {
	limited, cancel := context.WithTimeout(ctx, cutsWriters)
	defer cancel()
	load, err := trial.StartLoad(ctx, b.guest, cutsChurnMemory, cutsChurnDisk)
	if err != nil {
		return nil, err
	}
	if err := sleep(limited, cutsChurn); err != nil {
		return nil, err
	}
	return load, errors.Join(b.guest.StartMemory(limited, cutsMemory), b.guest.StartDisk(limited, cutsDisk))
}

// carry starts the move, cuts the link as planned or has bits flipped on it, and
// waits for the move's end.
func (b *cutsBench) carry(ctx context.Context, row Row, from string, to drover.Place, plan []plannedCut, flip int) (m drover.Move, left []plannedCut, err error) {
	if err := b.trial.Drover(ctx, &m, "move", cutsVM, "--to", to.String(), "--method", "live", "--detach"); err != nil {
		return m, plan, err
	}
	if flip > 0 {
		if err := b.shape(ctx, wanem.ShapeChange{CorruptEvery: &flip}); err != nil {
			return m, plan, err
		}
		defer func() {
			err = errors.Join(err, b.shape(context.WithoutCancel(ctx), wanem.ShapeChange{CorruptEvery: new(0)}))
		}()
	}
	w := &phaseWatch{b: b, move: m.Name, host: from, reached: make([]chan struct{}, len(cutPhases)), ended: make(chan struct{})}
	for i := range w.reached {
		w.reached[i] = make(chan struct{})
	}
	watching, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { w.paused(watching) })
	group.Go(func() { w.progress(watching) })
	left, cutErr := b.cutAsPlanned(ctx, row, w, plan)
	m, err = b.trial.Settled(ctx, m.Name)
	stop()
	group.Wait()
	return m, left, errors.Join(cutErr, err)
}

// cutAsPlanned cuts and heals until the plan or the move has ended.
func (b *cutsBench) cutAsPlanned(ctx context.Context, row Row, w *phaseWatch, plan []plannedCut) (left []plannedCut, err error) {
	for i, c := range plan {
		select {
		case <-w.reached[c.phase]:
		case <-w.ended:
			return plan[i:], nil
		case <-ctx.Done():
			return plan[i:], ctx.Err()
		}
		select {
		case <-time.After(c.after):
		case <-w.ended:
			return plan[i:], nil
		case <-ctx.Done():
			return plan[i:], ctx.Err()
		}
		if err := b.shape(ctx, wanem.ShapeChange{Cut: new(true)}); err != nil {
			return plan[i:], err
		}
		row["cuts"] = row["cuts"].(int) + 1
		row["cut_s"] = row["cut_s"].(float64) + c.length.Seconds()
		row["phases"] = append(row["phases"].([]string), w.now())
		serr := b.waitCut(ctx, row, w.host, c.length)
		// Healed whatever came: the next move needs the link.
		err := b.shape(context.WithoutCancel(ctx), wanem.ShapeChange{Cut: new(false)})
		if err = errors.Join(serr, err); err != nil {
			return plan[i+1:], err
		}
	}
	return nil, nil
}

// cutSettled is how long after a cut nothing is added any more to what is in
// flight, since all queues are full, and the data path has not yet given its
// connections up, which it does after two seconds of silence.
const cutSettled = time.Second

// waitCut lasts as long as the cut and notes what was in flight when it came. A
// cut that ends before that is known breaks no connection.
func (b *cutsBench) waitCut(ctx context.Context, row Row, host string, length time.Duration) error {
	healed := time.Now().Add(length)
	if err := sleep(ctx, min(length, cutSettled)); err != nil || length <= cutSettled {
		return err
	}
	out, err := b.trial.Exec(ctx, host, "ss", "-tnH", "state", "established")
	if err != nil {
		return err
	}
	row["in_flight_bytes"] = row["in_flight_bytes"].(int64) + unacknowledged(string(out))
	return sleep(ctx, time.Until(healed))
}

// agentPort is where a lab's agents listen.
const agentPort = ":7443"

// unacknowledged adds up what the kernel holds for other agents that they have
// not acknowledged, from ss's list: receive queue, send queue, here, there.
func unacknowledged(list string) (sum int64) {
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasSuffix(f[3], agentPort) {
			continue
		}
		if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
			sum += n
		}
	}
	return sum
}

// phaseWatch tells when a move reaches a phase.
type phaseWatch struct {
	b          *cutsBench
	move, host string

	mu      sync.Mutex
	most    int // phases reached
	reached []chan struct{}
	ended   chan struct{}
}

// reach notes that a phase, and with it every one before, has begun.
func (w *phaseWatch) reach(phase int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ; w.most <= phase; w.most++ {
		close(w.reached[w.most])
	}
}

// now names the phase that the move is in.
func (w *phaseWatch) now() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.most == 0 {
		return "before"
	}
	return cutPhases[w.most-1].name
}

// progress asks the server until the move has ended or ctx has.
func (w *phaseWatch) progress(ctx context.Context) {
	const every = 300 * time.Millisecond
	for sleep(ctx, every) == nil {
		var m drover.Move
		if err := w.b.trial.Drover(ctx, &m, "moves", "get", w.move); err != nil {
			continue
		}
		if m.State.Final() {
			close(w.ended)
			return
		}
		if m.Progress == nil {
			continue
		}
		for i, p := range cutPhases {
			if p.name == m.Progress.Phase && m.Progress.DoneBytes > 0 {
				w.reach(i)
			}
		}
	}
}

// paused asks the source's hypervisor until the guest is paused there: the
// switchover lasts for a fraction of what the server's word takes.
func (w *phaseWatch) paused(ctx context.Context) {
	const every = 5 * time.Millisecond
	conn, err := w.b.lab.Libvirt(w.host)
	if err != nil {
		w.b.logf("no watch over the pause: %v", err)
		return
	}
	defer func() { _ = conn.Disconnect() }() // nothing depends on a clean goodbye
	dom, err := conn.DomainLookupByName(cutsVM)
	for err == nil && sleep(ctx, every) == nil {
		var state int32
		state, _, err = conn.DomainGetState(dom, 0)
		if err == nil && libvirt.DomainState(state) == libvirt.DomainPaused {
			w.reach(len(cutPhases) - 1)
			return
		}
	}
}

// figures puts what was measured into the row.
func (b *cutsBench) figures(row Row, m drover.Move) {
	row["state"] = string(m.State)
	row["total_s"], row["pause_ms"] = orNaN(m.Measured.TotalSeconds), orNaN(m.Measured.PauseMillis)
	if p := m.Measured.Path; p != nil {
		total := p.Total()
		row["retransmitted_bytes"], row["sent_bytes"] = int64(total.RetransmittedBytes), int64(total.WireBytes)
		row["connections_lost_at_once"] = total.Cuts
	}
}

// judgeGuest proves that the guest runs once, where it should, has not booted
// and has every write that was acknowledged.
func (b *cutsBench) judgeGuest(ctx context.Context, row Row, m drover.Move, load *trial.Load) error {
	place := map[drover.MoveState]drover.Place{drover.MoveDone: m.To, drover.MoveUndone: m.From}[m.State]
	where, err := b.trial.Where(ctx, cutsVM)
	if err != nil {
		return err
	}
	row["running_on"] = fmt.Sprint(where)
	var faults []error
	until, cancel := context.WithTimeout(ctx, backPatience)
	defer cancel()
	faults = append(faults, trial.WaitHealthy(until, b.guest))
	for {
		err := b.trial.OnlyAt(ctx, cutsVM, place.Host, "running")
		if err == nil {
			row["running_on"] = place.Host
			break
		}
		if sleep(until, time.Second) != nil {
			faults = append(faults, err)
			break
		}
	}
	faults = append(faults, load.SameBoot(ctx))
	acks, err := load.Stop(ctx)
	if err != nil {
		return errors.Join(append(faults, err)...)
	}
	row["acked_writes"] = int64(acks.Count())
	check, err := b.guest.CheckDiskAgainst(ctx, acks)
	if err != nil {
		return errors.Join(append(faults, err)...)
	}
	row["lost_writes"] = int64(check.Verdict.LostCount)
	switch {
	case acks.Count() == 0:
		faults = append(faults, errors.New("no write was acknowledged: nothing is proven"))
	case !check.Verdict.OK:
		faults = append(faults, errors.New(check.Verdict.Reason))
	}
	return errors.Join(faults...)
}

// What may be sent again beside what was in flight when the link went: a share of
// what was sent. A flipped bit breaks one connection, whose queues are not read:
// it may have held what BBR has under way, up to three round trips' worth when
// it starts, and its send queue.
const (
	resentShare  = 0.01
	cutsTrip     = 40e6 / 8 * 0.020 // bytes
	resentAtFlip = 3*cutsTrip + 128<<10
)

// judgeResent compares what was sent again with what may be.
func (b *cutsBench) judgeResent(row Row) error {
	again, sent := row["retransmitted_bytes"].(int64), row["sent_bytes"].(int64)
	if sent < 0 {
		return errors.New("what was sent is not known")
	}
	flips := max(0, row["corrupt_found"].(int64))
	limit := int64(resentShare*float64(sent)) + row["in_flight_bytes"].(int64) + flips*resentAtFlip
	if row["resent_limit_bytes"] = limit; again > limit {
		return fmt.Errorf("%d bytes were sent again, want at most %d", again, limit)
	}
	return nil
}
