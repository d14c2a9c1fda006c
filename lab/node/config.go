// Package node is a lab node from the inside: the holder process of one host,
// edge, client or server of a lab.
//
// A node is a set of Linux namespaces (process, network, mount, host name, IPC).
// The holder is process 1 in them: it mounts the node's own folders over the
// machine's, reaps orphans, and supervises the node's services. When it dies the
// kernel ends every process of the node and takes its mounts and interfaces away,
// so nothing has to be cleaned up one by one.
//
// What the node is connected to is not decided here: package lab plugs the
// interfaces in from outside, and package topology says which.
package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Subcommand is the hidden subcommand of the drover binary that runs a holder.
const Subcommand = "lab-node"

// Names of what a node's folder holds; see [Config.Dir].
const (
	configFile  = "node.json"
	controlFile = "control.sock"
	logFolder   = "log"
)

// Places inside a node.
const (
	// LabDir is where a node finds what it shares with the rest of its lab.
	LabDir = "/run/drover-lab"
	// Binary is the drover binary inside a node.
	Binary = LabDir + "/bin/drover"
	// Path is where a node's programs are found, the lab's drover before any other.
	Path = LabDir + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Config describes one node to its holder.
type Config struct {
	// Name is the node's name, which is also its host name.
	Name string `json:"name"`
	// Dir is the node's folder on the lab machine.
	Dir string `json:"dir"`
	// Binds are mounted in order; sources are paths of the lab machine.
	Binds []Bind `json:"binds"`
	// Sysctls are written below /proc/sys in order, before any interface exists.
	Sysctls []Sysctl `json:"sysctls"`
	// Services are known but stopped until the control socket asks for them.
	Services []Service `json:"services"`
}

// Bind is one bind mount.
type Bind struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Sysctl is one kernel setting of the node's namespaces. Key is a path below
// /proc/sys.
type Sysctl struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	// Optional settings may be missing from the kernel.
	Optional bool `json:"optional,omitempty"`
}

// Service is a long-running program of a node.
type Service struct {
	Name string `json:"name"`
	// Args is the command; a program without a slash is looked up in PATH, and
	// "drover" is the binary that the holder itself runs.
	Args []string `json:"args"`
	// Env is added to the holder's own environment.
	Env []string `json:"env,omitempty"`
}

// Validate reports the first thing that makes c unusable.
func (c *Config) Validate() error {
	if c.Name == "" || c.Dir == "" {
		return errors.New("node: name and dir are required")
	}
	seen := map[string]bool{}
	for _, s := range c.Services {
		if s.Name == "" || len(s.Args) == 0 || filepath.Base(s.Name) != s.Name {
			return fmt.Errorf("node %s: service %q needs a plain name and a command", c.Name, s.Name)
		}
		if seen[s.Name] {
			return fmt.Errorf("node %s: two services are named %q", c.Name, s.Name)
		}
		seen[s.Name] = true
	}
	return nil
}

// Write stores c in its folder, where the holder reads it.
func (c *Config) Write() error {
	if err := c.Validate(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, logFolder), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Dir, configFile), b, 0o600)
}

// readConfig loads the configuration of the node whose folder is dir.
func readConfig(dir string) (*Config, error) {
	b, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return nil, err
	}
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, configFile), err)
	}
	return &c, c.Validate()
}

// ControlSocket is the path of the control socket of the node whose folder is dir.
func ControlSocket(dir string) string { return filepath.Join(dir, controlFile) }

// ServiceLog is the log file of one service of the node whose folder is dir.
func ServiceLog(dir, service string) string {
	return filepath.Join(dir, logFolder, service+".log")
}

// HolderLog is the log file of the holder itself.
func HolderLog(dir string) string { return ServiceLog(dir, "holder") }
