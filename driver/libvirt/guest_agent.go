package libvirt

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Limits for an agent, whose answers are the guest's word.
const (
	// agentLimit is how long an agent may take to answer: it does in
	// milliseconds, emulated on a busy host in a few tenths of a second. Libvirt
	// takes whole seconds, and gives as much to its greeting before the command,
	// which is where an agent that hangs is noticed.
	agentLimit = 3 * time.Second
	// execLimit is how long a command in the guest may take.
	execLimit = 10 * time.Second
	// freezeLimit is how long writing out what a guest has in its caches may
	// take.
	freezeLimit = 60 * time.Second
	// execPoll is the pause between questions whether a command has ended; it
	// doubles up to execPollMost.
	execPoll, execPollMost = 5 * time.Millisecond, 160 * time.Millisecond
	// maxInterfaces and maxAddresses bound what is read of a guest's network;
	// a container host has an interface for each container.
	maxInterfaces, maxAddresses = 1024, 64
	// maxExecText is what is kept of a failed command's words.
	maxExecText = 512
)

// The programs that are run in a guest.
const (
	ipProgram       = "ip"
	hostnameProgram = "hostname"
)

// agentFault is a failure that is the guest's or its agent's, not the host's.
type agentFault struct {
	kind drover.Kind
	err  error
}

func (f *agentFault) Error() string { return f.err.Error() }
func (f *agentFault) Unwrap() error { return f.err }

func agentFaultOf(err error) (*agentFault, bool) {
	var f *agentFault
	ok := errors.As(err, &f)
	return f, ok
}

// agentKinds says which kind libvirt's errors have that are about an agent. What
// the agent itself refuses comes as an internal error of libvirt's, or as a
// failed command.
var agentKinds = map[golibvirt.ErrorNumber]drover.Kind{
	golibvirt.ErrAgentUnresponsive:    drover.Unavailable, // not connected, or silent
	golibvirt.ErrAgentUnsynced:        drover.Unavailable,
	golibvirt.ErrAgentCommandTimeout:  drover.Unavailable,
	golibvirt.ErrOperationTimeout:     drover.Unavailable,
	golibvirt.ErrAgentCommandFailed:   drover.Refused,
	golibvirt.ErrInternalError:        drover.Refused,
	golibvirt.ErrArgumentUnsupported:  drover.Refused, // no channel in the definition
	golibvirt.ErrConfigUnsupported:    drover.Refused,
	golibvirt.ErrOperationUnsupported: drover.Refused,
	golibvirt.ErrOperationInvalid:     drover.Refused, // not running
}

// command has the agent carry out one of its commands and reads the answer into
// out, unless that is nil.
func (g *Guests) command(ctx context.Context, op, vm, name string, args, out any, limit time.Duration) error {
	request := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{name, args}
	text, err := json.Marshal(request)
	if err != nil {
		return wrap(op+" "+vm, err)
	}
	reply, err := askDomain(ctx, g.h, op, vm, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (string, error) {
		result, err := rpc.QEMUDomainAgentCommand(dom, string(text), int32(limit/time.Second), 0)
		if err != nil {
			return "", agentError(err)
		}
		return strings.Join(result, ""), nil
	})
	if err != nil {
		if f, ok := agentFaultOf(err); ok {
			return drover.E(f.kind, op+" "+vm, f)
		}
		return err
	}
	answer := struct {
		Return json.RawMessage `json:"return"`
	}{}
	err = json.Unmarshal([]byte(reply), &answer)
	if err == nil && out != nil {
		err = json.Unmarshal(answer.Return, out)
	}
	if err != nil {
		return drover.E(drover.Refused, op+" "+vm, &agentFault{drover.Refused, fmt.Errorf("answer of the agent to %s: %w", name, err)})
	}
	return nil
}

// agentError marks what is the agent's fault.
func agentError(err error) error {
	var fault golibvirt.Error
	if errors.As(err, &fault) {
		if kind, ok := agentKinds[golibvirt.ErrorNumber(fault.Code)]; ok {
			return &agentFault{kind, err}
		}
	}
	return err
}

// run runs a program in the guest and waits for its end; an exit status other
// than zero is drover.Refused with what it said.
func (g *Guests) run(ctx context.Context, vm, input, program string, args ...string) error {
	op := "run " + program + " in"
	ctx, cancel := context.WithTimeout(ctx, execLimit)
	defer cancel()
	request := struct {
		Path    string   `json:"path"`
		Args    []string `json:"arg,omitempty"`
		Input   string   `json:"input-data,omitempty"`
		Capture bool     `json:"capture-output"`
	}{program, args, base64.StdEncoding.EncodeToString([]byte(input)), true}
	var started struct {
		PID int64 `json:"pid"`
	}
	if err := g.command(ctx, op, vm, "guest-exec", request, &started, agentLimit); err != nil {
		return err
	}
	for wait := execPoll; ; wait = min(2*wait, execPollMost) {
		var status execStatus
		if err := g.command(ctx, op, vm, "guest-exec-status", started, &status, agentLimit); err != nil {
			return err
		}
		if status.Exited {
			if err := status.err(); err != nil {
				return drover.E(drover.Refused, op+" "+vm, &agentFault{drover.Refused, err})
			}
			return nil
		}
		if err := pause(ctx, wait); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = &agentFault{drover.Unavailable, fmt.Errorf("it has not ended within %s", execLimit)}
			}
			return drover.E(kindOf(err), op+" "+vm, err)
		}
	}
}

// execStatus is the agent's answer to guest-exec-status.
type execStatus struct {
	Exited bool   `json:"exited"`
	Code   int    `json:"exitcode"`
	Signal int    `json:"signal"`
	Out    []byte `json:"out-data"` // base64 in JSON
	Err    []byte `json:"err-data"`
}

func (s execStatus) err() error {
	if s.Code == 0 && s.Signal == 0 {
		return nil
	}
	text := strings.Join(strings.Fields(string(s.Err)+" "+string(s.Out)), " ")
	if len(text) > maxExecText {
		text = text[:maxExecText] + "…"
	}
	text = strings.ToValidUTF8(text, "?")
	if s.Signal != 0 {
		return fmt.Errorf("ended by signal %d: %q", s.Signal, text)
	}
	return fmt.Errorf("exit status %d: %q", s.Code, text)
}

// agentInterface is one of the agent's answer to guest-network-get-interfaces.
type agentInterface struct {
	Name      string `json:"name"`
	MAC       string `json:"hardware-address"`
	Addresses []struct {
		IP     string `json:"ip-address"`
		Prefix int    `json:"prefix"`
	} `json:"ip-addresses"`
}

// interfacesOf checks and translates: what has no Ethernet address is left out,
// an address that is none is an error.
func interfacesOf(list []agentInterface) ([]driver.GuestInterface, error) {
	if len(list) > maxInterfaces {
		return nil, fmt.Errorf("the agent lists %d interfaces, want %d at most", len(list), maxInterfaces)
	}
	out := make([]driver.GuestInterface, 0, len(list))
	for _, i := range list {
		mac, err := driver.GuestMAC(i.MAC)
		if err != nil || i.Name == "lo" || mac == "00:00:00:00:00:00" {
			continue
		}
		if err := checkInterfaceName(i.Name); err != nil {
			return nil, err
		}
		if len(i.Addresses) > maxAddresses {
			return nil, fmt.Errorf("the agent lists %d addresses on %s, want %d at most", len(i.Addresses), i.Name, maxAddresses)
		}
		nic := driver.GuestInterface{Name: i.Name, MAC: mac}
		for _, a := range i.Addresses {
			ip, err := netip.ParseAddr(a.IP)
			if err != nil {
				return nil, fmt.Errorf("the agent lists address %q on %s", a.IP, i.Name)
			}
			p := netip.PrefixFrom(ip.Unmap().WithZone(""), a.Prefix)
			if !p.IsValid() {
				return nil, fmt.Errorf("the agent lists address %s/%d on %s", a.IP, a.Prefix, i.Name)
			}
			if driver.CheckGuestAddress(p.Addr()) == nil {
				nic.Addresses = append(nic.Addresses, p)
			}
		}
		out = append(out, nic)
	}
	return out, nil
}

// maxInterfaceName is Linux's IFNAMSIZ without the final NUL.
const maxInterfaceName = 15

// checkInterfaceName makes sure that a name from a guest is a word in a batch for
// ip(8), and no option.
func checkInterfaceName(name string) error {
	bad := name == "" || len(name) > maxInterfaceName || name[0] == '-' || name[0] == '#'
	for _, c := range []byte(name) {
		bad = bad || c <= ' ' || c >= 0x7f || strings.IndexByte(`/"'\`, c) >= 0
	}
	if bad {
		return fmt.Errorf("the agent names an interface %q", name)
	}
	return nil
}
