package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover/api"
)

// completeLimit bounds how long a shell waits for names; a person who presses
// TAB would rather type than wait longer.
const completeLimit = 2 * time.Second

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// complete offers the names that ask returns, for a command's first argument.
// A server that does not answer offers none.
func complete(flags *clientFlags, ask func(context.Context, *api.Client) ([]string, error)) completer {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return offer(c, flags, ask)
	}
}

// completeFlag offers the names that ask returns, for a flag.
func completeFlag(flags *clientFlags, ask func(context.Context, *api.Client) ([]string, error)) completer {
	return func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return offer(c, flags, ask)
	}
}

func offer(c *cobra.Command, flags *clientFlags, ask func(context.Context, *api.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	parent := c.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completeLimit)
	defer cancel()
	var names []string
	err := flags.call(ctx, func(ctx context.Context, cl *api.Client) (err error) {
		names, err = ask(ctx, cl)
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func vmNames(ctx context.Context, c *api.Client) ([]string, error) {
	all, err := fetchVMs(ctx, c)
	names := make([]string, len(all))
	for i, v := range all {
		names[i] = v.Name
	}
	return names, err
}

// places offers every site, and every host that can run VMs as SITE/HOST.
func places(ctx context.Context, c *api.Client) ([]string, error) {
	sites, err := fetchSites(ctx, c)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range sites {
		names = append(names, s.Name)
		for _, h := range s.Hosts {
			names = append(names, s.Name+"/"+h)
		}
	}
	return names, nil
}

func unfinishedMoves(ctx context.Context, c *api.Client) ([]string, error) {
	all, err := fetchMoves(ctx, c)
	var names []string
	for _, m := range all {
		if !m.State.Final() {
			names = append(names, m.Name)
		}
	}
	return names, err
}
