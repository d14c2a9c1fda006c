package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/pki"
)

// Where a client's file is looked for, besides --config and --lab.
const (
	configVariable  = "DROVER_CONFIG"
	labsVariable    = "DROVER_LAB_DIR"
	systemConfig    = "/etc/drover/client.yaml"
	defaultLabs     = "/var/lib/drover/lab"
	clientFileName  = "client.yaml"
	userConfigBelow = ".config/drover/" + clientFileName
)

// clientConfig is the file that tells the commands where their server is.
type clientConfig struct {
	// Server is "https://HOST:PORT" or "unix:///PATH".
	Server string    `yaml:"server"`
	TLS    pki.Files `yaml:"tls"`
}

// clientFlags say which server a command asks.
type clientFlags struct {
	config, lab string
}

func (f *clientFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.config, "config", "", "client file (default: $"+configVariable+", ~/"+userConfigBelow+", "+systemConfig+", the lab that is up)")
	cmd.Flags().StringVar(&f.lab, "lab", "", "ask the server of this lab")
	cmd.MarkFlagsMutuallyExclusive("config", "lab")
	_ = cmd.MarkFlagFilename("config", "yaml")
}

// dial makes the client that the flags and the environment name.
func (f *clientFlags) dial() (*api.Client, error) {
	path, err := f.find()
	if err != nil {
		return nil, err
	}
	var c clientConfig
	if err := readYAML(path, &c); err != nil {
		return nil, err
	}
	if c.Server == "" {
		return nil, drover.Errorf(drover.Invalid, "", "%s: server: missing: want https://HOST:PORT or unix:///PATH", path)
	}
	c.TLS = beside(path, c.TLS)
	if err := c.TLS.Validate(); err != nil {
		return nil, inFile(path, err)
	}
	cfg, err := pki.Config(c.TLS)
	if err != nil {
		return nil, inFile(path, err)
	}
	cl, err := api.NewClient(c.Server, cfg)
	return cl, inFile(path, err)
}

// find returns the path of the client file: the first of the places that has
// one. Several labs that are up leave the choice to the operator.
func (f *clientFlags) find() (string, error) {
	if f.config != "" {
		return f.config, nil
	}
	if f.lab != "" {
		if err := drover.CheckName("--lab", f.lab); err != nil {
			return "", err
		}
		path := filepath.Join(labsFolder(), f.lab, clientFileName)
		if !isFile(path) {
			return "", drover.Errorf(drover.NotFound, "lab "+f.lab, "it is not up (no %s)", path)
		}
		return path, nil
	}
	if path := os.Getenv(configVariable); path != "" {
		return path, nil
	}
	for _, path := range []string{userConfig(), systemConfig} {
		if isFile(path) {
			return path, nil
		}
	}
	labs, _ := filepath.Glob(filepath.Join(labsFolder(), "*", clientFileName))
	switch len(labs) {
	case 1:
		return labs[0], nil
	case 0:
		return "", drover.Errorf(drover.Invalid, "", "no client file: want --config FILE, $%s, ~/%s or %s, or a lab that is up", configVariable, userConfigBelow, systemConfig)
	}
	names := make([]string, len(labs))
	for i, path := range labs {
		names[i] = filepath.Base(filepath.Dir(path))
	}
	return "", drover.Errorf(drover.Invalid, "", "several labs are up: want --lab with one of %s", strings.Join(names, ", "))
}

func labsFolder() string {
	if dir := os.Getenv(labsVariable); dir != "" {
		return dir
	}
	return defaultLabs
}

func userConfig() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, userConfigBelow)
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// beside makes relative names in the file at path start at its folder.
func beside(path string, f pki.Files) pki.Files {
	dir := filepath.Dir(path)
	at := func(name string) string {
		if name == "" || filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(dir, name)
	}
	return pki.Files{CA: at(f.CA), Cert: at(f.Cert), Key: at(f.Key)}
}

// call is a command's work with a client that lives as long as it.
func (f *clientFlags) call(ctx context.Context, do func(context.Context, *api.Client) error) error {
	c, err := f.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return do(ctx, c)
}
