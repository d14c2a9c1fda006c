package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
	"github.com/drover-vm/drover/namespace"
)

// DefaultDir is the folder of all labs unless DirEnv names another.
const DefaultDir = "/var/lib/drover/lab"

// DirEnv is the environment variable that names the folder of all labs.
const DirEnv = "DROVER_LAB_DIR"

// Options say how labs are run. The zero value of a field is its default.
type Options struct {
	// Dir is the folder of all labs.
	Dir string
	// CacheDir is where built images are kept between labs.
	CacheDir string
	// Exe is the drover binary that holders and emulators run.
	Exe string
	// Log gets progress at level info.
	Log *slog.Logger
	// Bare leaves out agents and server: hosts, guests and links only.
	Bare bool
	// WaitGuests makes Up wait until the guests' probes answer.
	WaitGuests bool
}

// withDefaults fills in what o leaves out.
func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		o.Dir = os.Getenv(DirEnv)
	}
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	abs, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, err
	}
	o.Dir = abs
	if o.CacheDir == "" {
		o.CacheDir = guest.DefaultCacheDir
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Exe == "" {
		if o.Exe, err = os.Executable(); err != nil {
			return o, err
		}
	}
	return o, nil
}

// Phase is how far a lab has come.
type Phase string

// The phases of a lab.
const (
	Starting Phase = "starting"
	Running  Phase = "up"
)

// State is what is known of a lab; Up writes it into the lab's folder.
type State struct {
	Name  string `json:"name"`
	Dir   string `json:"dir"`
	Phase Phase  `json:"phase"`
	// Client is the configuration file for the command line's --config.
	Client string  `json:"client,omitempty"`
	Accel  string  `json:"accel,omitempty"`
	Nodes  []Node  `json:"nodes"`
	Links  []Link  `json:"links"`
	Guests []Guest `json:"guests"`
}

// Node is a node of a running lab.
type Node struct {
	Name    string        `json:"name"`
	Role    topology.Role `json:"role"`
	Site    string        `json:"site"`
	Address string        `json:"address"`
	// Dir is the node's folder; its /run is Dir/run on the lab machine.
	Dir      string   `json:"dir"`
	Services []string `json:"services"`
}

// Link is a WAN link of a running lab.
type Link struct {
	Name string `json:"name"`
	A    string `json:"a"`
	B    string `json:"b"`
}

// Guest is a guest of a lab as its file has it, and where it is now.
type Guest struct {
	Name    string              `json:"name"`
	Image   string              `json:"image"`
	Segment string              `json:"segment"`
	Address string              `json:"address"`
	MAC     string              `json:"mac"`
	Probe   *drover.ProbeTarget `json:"probe,omitempty"`
	// Host is where the guest was started; List replaces it by where it is
	// ("" when no host has it) and adds State.
	Host  string `json:"host"`
	State string `json:"state,omitempty"`
}

// Lab is a lab that is there, running or left over.
type Lab struct {
	State
	opt Options
}

// Files of a lab's folder.
const (
	stateFile  = "lab.json"
	lockFile   = "lock"
	clientFile = "client.yaml"
	wanFile    = "wan.json"
	sharedDir  = "shared" // bind-mounted into every node at node.LabDir
	wanSocket  = "wan.sock"
	wanLog     = "wan.log"
	pkiDir     = "pki"
	imagesDir  = "images"
)

// save writes the state so that a reader sees the old or the new one.
func (l *Lab) save() error {
	b, err := json.MarshalIndent(l.State, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(l.Dir, stateFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Open finds a lab by name; with an empty name, the only one there is.
func Open(o Options, name string) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if name == "" {
		if name, err = only(o); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(names(o), name) {
		return nil, drover.Errorf(drover.NotFound, "lab "+name, "no such lab%s", hint(o))
	}
	l := &Lab{opt: o, State: State{Name: name, Dir: filepath.Join(o.Dir, name)}}
	b, err := os.ReadFile(filepath.Join(l.Dir, stateFile))
	if err != nil {
		return nil, drover.Errorf(drover.NotFound, "lab "+name, "it was left half way; take it down with: drover lab down %s", name)
	}
	if err := json.Unmarshal(b, &l.State); err != nil {
		return nil, drover.Errorf(drover.Corrupt, "lab "+name, "%s: %w", stateFile, err)
	}
	return l, nil
}

// only returns the name of the one lab there is.
func only(o Options) (string, error) {
	switch all := names(o); len(all) {
	case 0:
		return "", drover.Errorf(drover.NotFound, "lab", "no lab is up; start one with: drover lab up")
	case 1:
		return all[0], nil
	default:
		return "", drover.Errorf(drover.Invalid, "lab", "several labs are up, want the name of one of %s", strings.Join(all, ", "))
	}
}

func hint(o Options) string {
	if all := names(o); len(all) > 0 {
		return ", there is " + strings.Join(all, ", ")
	}
	return ", none is up"
}

// Names lists the labs that are there, whatever their state.
func Names(o Options) []string {
	o, err := o.withDefaults()
	if err != nil {
		return nil
	}
	return names(o)
}

// names lists the labs that have a folder or a process.
func names(o Options) []string {
	var all []string
	entries, _ := os.ReadDir(o.Dir) // missing means that there is none
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, e.Name())
		}
	}
	for _, p := range processes() {
		if filepath.Dir(p.lab) == o.Dir {
			all = append(all, filepath.Base(p.lab))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Node returns the node of that name.
func (l *Lab) Node(name string) (*Node, error) {
	var have []string
	for i := range l.Nodes {
		if l.Nodes[i].Name == name {
			return &l.Nodes[i], nil
		}
		have = append(have, l.Nodes[i].Name)
	}
	return nil, drover.Errorf(drover.NotFound, "lab "+l.Name, "no node %q, want one of %s", name, strings.Join(have, ", "))
}

// Holder returns the process id of a node's holder on the lab machine.
func (l *Lab) Holder(name string) (int, error) {
	if _, err := l.Node(name); err != nil {
		return 0, err
	}
	for _, p := range processes() {
		if p.lab == l.Dir && p.node == name {
			return p.pid, nil
		}
	}
	return 0, drover.Errorf(drover.Unavailable, "node "+name, "its holder is gone; take the lab down and up again")
}

// EmulatorPID returns the process id of the lab's WAN emulator.
func (l *Lab) EmulatorPID() (int, error) {
	for _, p := range processes() {
		if p.lab == l.Dir && p.node == "" {
			return p.pid, nil
		}
	}
	return 0, drover.Errorf(drover.Unavailable, "lab "+l.Name, "its WAN emulator is gone; take the lab down and up again")
}

// Command prepares a command that runs inside a node, as in a shell there.
// Canceling ctx ends it and what it started. It has a process group of its own,
// so at a terminal, clear SysProcAttr and Cancel to leave it in the caller's.
func (l *Lab) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	argv, err := l.commandLine(name, args)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// nsenter stays outside and only waits: the signal is for what is inside.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = commandGrace
	return cmd, nil
}

// commandGrace is how long a command in a node may take to end after SIGTERM.
const commandGrace = 5 * time.Second

// commandLine is the command that enters a node and runs args there.
func (l *Lab) commandLine(name string, args []string) ([]string, error) {
	pid, err := l.Holder(name)
	if err != nil {
		return nil, err
	}
	tool, err := exec.LookPath("nsenter")
	if err != nil {
		return nil, drover.Errorf(drover.Unavailable, "lab exec", "nsenter is not installed: apt-get install util-linux")
	}
	return append([]string{
		tool, "-t", fmt.Sprint(pid), "-m", "-u", "-i", "-n", "-p", "--", "env",
		"PATH=" + node.Path,
	}, args...), nil
}

// Service does one action to a service of a node and returns the states of the
// node's services after it.
func (l *Lab) Service(ctx context.Context, name string, action node.Action, service string) ([]node.Status, error) {
	n, err := l.Node(name)
	if err != nil {
		return nil, err
	}
	st, err := node.Ask(ctx, n.Dir, action, service)
	if err != nil {
		return st, drover.E(drover.Unavailable, "node "+name, err)
	}
	return st, nil
}

// Dial connects to an address as a process of the node would. Only literal
// addresses are dialled: a node has no names of its own to resolve.
func (l *Lab) Dial(ctx context.Context, name, network, address string) (net.Conn, error) {
	pid, err := l.Holder(name)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = namespace.InProcess(pid, func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// poll calls f every interval until it returns nil, ctx ends or limit has
// passed; the error then says what f said last.
func poll(parent context.Context, interval, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if parent.Err() != nil {
				return parent.Err()
			}
			return fmt.Errorf("not within %s: %w", limit, err)
		case <-tick.C:
		}
	}
}
