package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

const (
	// healthEvery is how often a VM that is not well yet is asked again.
	healthEvery = time.Second
	// healthTry bounds one try: a service that takes longer to answer is not well.
	healthTry = 10 * time.Second
	// maxHealthOutput bounds what of a program's last words is shown.
	maxHealthOutput = 256
)

// checkHealth asks until the VM is well or the time is over.
func (a *Agent) checkHealth(ctx context.Context, j *job, ref moveRef, m *droverv1.CheckHealth) (*droverv1.RunResult, error) {
	op := "check health of vm " + ref.vm
	check := drover.HealthCheck{Kind: drover.HealthKind(m.GetKind()), Target: m.GetTarget(), Limit: time.Duration(m.GetLimitMillis()) * time.Millisecond}
	if check.Kind != "" {
		if err := check.Validate(); err != nil {
			return nil, err
		}
	}
	if check.Limit <= 0 {
		check.Limit = drover.DefaultHealthLimit
	}
	over := time.Now().Add(check.Limit)
	for {
		runs, err := a.runsHere(ctx, ref)
		if err == nil && !runs {
			return &droverv1.RunResult{Detail: "it does not run any more on host " + a.config.Name}, nil
		}
		var detail string
		if err == nil {
			detail, err = a.try(ctx, ref, check, over)
		}
		switch {
		case ctx.Err() != nil:
			return nil, drover.E(drover.Canceled, op, ctx.Err())
		case err == nil:
			return &droverv1.RunResult{Healthy: true, Detail: detail}, nil
		case drover.KindOf(err) == drover.Invalid:
			return nil, err
		case !time.Now().Before(over):
			return &droverv1.RunResult{Detail: fmt.Sprintf("not within %s: %v", check.Limit, err)}, nil
		}
		j.report(a.clock(), drover.Progress{Phase: "health", ETASeconds: time.Until(over).Seconds()})
		if err := sleep(ctx, min(healthEvery, time.Until(over)), nil); err != nil {
			return nil, drover.E(drover.Canceled, op, err)
		}
	}
}

// runsHere reports whether the VM runs, where it should; elsewhere nothing can be
// said against it.
func (a *Agent) runsHere(ctx context.Context, ref moveRef) (bool, error) {
	r, err := a.journal.move(ref.move)
	if err != nil || r == nil || !r.Target || a.edge() {
		return true, err
	}
	vm, err := a.vmHere(ctx, ref)
	if drover.KindOf(err) == drover.NotFound {
		return false, nil
	}
	// Paused it may be for a moment, by whoever takes its snapshot.
	return vm.State == drover.VMRunning || vm.State == drover.VMPaused, err
}

// try asks once.
func (a *Agent) try(ctx context.Context, ref moveRef, check drover.HealthCheck, over time.Time) (string, error) {
	// A try that begins in time is let end, a little.
	ctx, cancel := context.WithTimeout(ctx, max(time.Second, min(healthTry, time.Until(over))))
	defer cancel()
	switch check.Kind {
	case drover.HealthTCP:
		return tryTCP(ctx, check.Target)
	case drover.HealthHTTP:
		return tryHTTP(ctx, check.Target)
	case drover.HealthCommand:
		return a.tryCommand(ctx, ref, check.Target)
	default:
		return "it runs", nil
	}
}

func tryTCP(ctx context.Context, target string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return "", drover.E(drover.Unavailable, "tcp", err)
	}
	_ = conn.Close()
	return target + " accepts connections", nil
}

// tryHTTP takes an answer as it comes: where a redirection leads to is not the
// VM's.
func tryHTTP(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", drover.E(drover.Invalid, "http", err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return "", drover.E(drover.Unavailable, "http", err)
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxHealthOutput)
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return "", drover.Errorf(drover.Unavailable, "http", "%s answers %s", url, resp.Status)
	}
	return url + " answers " + resp.Status, nil
}

// tryCommand runs a program from the agent's folder of checks, and no other:
// whoever may move VMs is not for that reason root on hosts.
func (a *Agent) tryCommand(ctx context.Context, ref moveRef, line string) (string, error) {
	const op = "command"
	if a.config.Checks == "" {
		return "", drover.Errorf(drover.Invalid, op, "the file of agent %s names no folder of checks: set checks", a.config.Name)
	}
	fields := strings.Fields(line)
	path := filepath.Join(a.config.Checks, fields[0])
	if _, err := os.Stat(path); err != nil {
		return "", drover.Errorf(drover.Invalid, op, "host %s has no check %s: %w", a.config.Name, fields[0], err)
	}
	cmd := exec.CommandContext(ctx, path, fields[1:]...)
	cmd.Dir = a.config.Checks
	cmd.Env = append(os.Environ(), "DROVER_MOVE="+ref.move, "DROVER_VM="+ref.vm, "DROVER_VM_UUID="+ref.uuid)
	// What it has started goes with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	last := strings.TrimSpace(string(out))
	if i := strings.LastIndexByte(last, '\n'); i >= 0 {
		last = last[i+1:]
	}
	last = strings.ToValidUTF8(last[:min(len(last), maxHealthOutput)], "")
	switch exit := (*exec.ExitError)(nil); {
	case err == nil:
		return strings.TrimSuffix(fields[0]+": "+last, ": "), nil
	case errors.As(err, &exit):
		return "", drover.Errorf(drover.Unavailable, op, "%s: %s (%s)", fields[0], last, exit.ProcessState)
	default:
		return "", drover.E(drover.Unavailable, op, err)
	}
}
