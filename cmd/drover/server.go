package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/server"
	"github.com/drover-vm/drover/store/etcd"
)

// storePrefix is where the server's keys begin in etcd.
const storePrefix = "/drover/"

func newServerCommand(a *app) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "server --config FILE",
		Short: "Run the server: inventory, preflight, moves",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := readServerConfig(path)
			if err != nil {
				return err
			}
			return a.runServer(c.Context(), path, cfg)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "the server's file")
	_ = cmd.MarkFlagFilename("config", "yaml")
	return cmd
}

// readServerConfig reads and checks the server's file. Relative paths in it
// begin at its folder.
func readServerConfig(path string) (server.Config, error) {
	var cfg server.Config
	if path == "" {
		return cfg, drover.Errorf(drover.Invalid, "", "missing --config: want drover server --config FILE")
	}
	if err := readYAML(path, &cfg); err != nil {
		return cfg, err
	}
	cfg.TLS = beside(path, cfg.TLS)
	if err := readRules(path, &cfg.Advice); err != nil {
		return cfg, err
	}
	return cfg, inFile(path, cfg.Validate())
}

// readRules reads the rule sets that the server's file at path names a file of.
func readRules(path string, c *server.AdviceConfig) error {
	if c.RulesFile == "" {
		return nil
	}
	file := c.RulesFile
	if !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(path), file)
	}
	var rules server.RulesConfig
	if err := decodeYAML(file, &rules, true); err != nil {
		return err
	}
	c.Own = rules.RuleSets
	return inFile(file, rules.Validate())
}

// runServer opens what the server needs and runs it until ctx ends.
func (a *app) runServer(ctx context.Context, path string, cfg server.Config) (err error) {
	log := a.logger()
	tls, err := pki.Config(cfg.TLS)
	if err != nil {
		return inFile(path, err)
	}
	db, err := etcd.Embed(ctx, log, filepath.Join(cfg.State, "etcd"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	kept := etcd.New(db.Client(), storePrefix)
	s, err := server.New(server.Deps{Journal: kept, Inventory: kept, TLS: tls, Log: log}, cfg)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
