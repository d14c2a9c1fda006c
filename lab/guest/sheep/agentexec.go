package main

import (
	"bytes"
	"encoding/json"
	"net"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// maxExecs bounds the results of commands that nobody has asked for yet; the
// oldest goes first.
const maxExecs = 16

// execResult is how a command ended; byte slices are base64 in JSON.
type execResult struct {
	Exited bool   `json:"exited"`
	Code   int    `json:"exitcode"`
	Out    []byte `json:"out-data,omitempty"`
	Err    []byte `json:"err-data,omitempty"`
}

// execTable runs the guest's built-in programs, for lack of others: each has
// ended when start returns.
type execTable struct {
	last  int64
	order []int64
	ended map[int64]execResult
}

func (t *execTable) start(args json.RawMessage) (any, error) {
	var req struct {
		Path    string          `json:"path"`
		Args    []string        `json:"arg"`
		Input   []byte          `json:"input-data"`
		Capture json.RawMessage `json:"capture-output"`
	}
	if err := json.Unmarshal(args, &req); err != nil || req.Path == "" {
		return nil, agentErrorf("Parameter 'path' is missing, or arguments of the wrong form")
	}
	program, ok := builtins[filepath.Base(req.Path)]
	if !ok {
		return nil, agentErrorf("Guest agent command failed, error was 'Failed to execute child process “%s” (No such file or directory)'", req.Path)
	}
	var stdout, stderr bytes.Buffer
	r := execResult{Exited: true, Code: program(req.Args, bytes.NewReader(req.Input), &stdout, &stderr)}
	if string(req.Capture) == "true" {
		r.Out, r.Err = stdout.Bytes(), stderr.Bytes()
	}
	if t.ended == nil {
		t.ended = map[int64]execResult{}
	}
	t.last++
	t.ended[t.last] = r
	if t.order = append(t.order, t.last); len(t.order) > maxExecs {
		delete(t.ended, t.order[0])
		t.order = t.order[1:]
	}
	return map[string]int64{"pid": t.last}, nil
}

// status tells how a command ended, once.
func (t *execTable) status(args json.RawMessage) (any, error) {
	var req struct {
		PID int64 `json:"pid"`
	}
	if err := json.Unmarshal(args, &req); err != nil {
		return nil, agentErrorf("Parameter 'pid' is missing")
	}
	r, ok := t.ended[req.PID]
	if !ok {
		return nil, agentErrorf("PID %d does not exist", req.PID)
	}
	delete(t.ended, req.PID)
	t.order = slices.DeleteFunc(t.order, func(pid int64) bool { return pid == req.PID })
	return r, nil
}

// guestInterface is one of the answer to guest-network-get-interfaces.
type guestInterface struct {
	Name      string         `json:"name"`
	MAC       string         `json:"hardware-address,omitempty"`
	Addresses []guestAddress `json:"ip-addresses,omitempty"`
}

type guestAddress struct {
	IP   string `json:"ip-address"`
	Kind string `json:"ip-address-type"`
	Bits int    `json:"prefix"`
}

func guestInterfaces() ([]guestInterface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	list := make([]guestInterface, 0, len(all))
	for _, i := range all {
		g := guestInterface{Name: i.Name, MAC: i.HardwareAddr.String()}
		if i.Flags&net.FlagLoopback != 0 {
			g.MAC = "00:00:00:00:00:00"
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			ipnet, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			kind := "ipv6"
			if ipnet.IP.To4() != nil {
				kind = "ipv4"
			}
			bits, _ := ipnet.Mask.Size()
			g.Addresses = append(g.Addresses, guestAddress{ipnet.IP.String(), kind, bits})
		}
		list = append(list, g)
	}
	return list, nil
}

// setHostName is hostname(1) with a name or without.
func setHostName(args []string, stdout, stderr *bytes.Buffer) int {
	switch len(args) {
	case 0:
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			stderr.WriteString(err.Error() + "\n")
			return 1
		}
		stdout.WriteString(unix.ByteSliceToString(u.Nodename[:]) + "\n")
	case 1:
		if err := unix.Sethostname([]byte(args[0])); err != nil {
			stderr.WriteString("hostname: " + err.Error() + "\n")
			return 1
		}
	default:
		stderr.WriteString("hostname: too many arguments\n")
		return 255
	}
	return 0
}

// builtins are the programs that the small guest has.
var builtins = map[string]func(args []string, stdin *bytes.Reader, stdout, stderr *bytes.Buffer) int{
	"ip": func(args []string, stdin *bytes.Reader, stdout, stderr *bytes.Buffer) int {
		return ipCommand(args, stdin, stdout, stderr)
	},
	"hostname": func(args []string, _ *bytes.Reader, stdout, stderr *bytes.Buffer) int {
		return setHostName(args, stdout, stderr)
	},
}
