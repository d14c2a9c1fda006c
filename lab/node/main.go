package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// Main is the holder: the entry of the hidden subcommand. args are the
// arguments after the subcommand's name. It returns the exit status when it is
// asked to end by a signal or cannot start.
func Main(args []string) int {
	if err := run(args); err != nil {
		NotReady(err)
		fmt.Fprintln(os.Stderr, "drover lab-node:", err)
		return 1
	}
	return 0
}

func run(args []string) error {
	fs := flag.NewFlagSet(Subcommand, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the error says it
	lab := fs.String("lab", "", "folder of the lab that the node belongs to")
	name := fs.String("node", "", "name of the node")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *lab == "" || *name == "" {
		return errors.New("this command is for drover lab up alone")
	}
	if os.Getpid() != 1 {
		return errors.New("not process 1 of a process namespace: this command is for drover lab up alone")
	}
	c, err := readConfig(Dir(*lab, *name))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", c.Name)

	// Both are opened before the mounts, which may hide the node's own folder.
	logs, err := os.OpenRoot(filepath.Join(c.Dir, logFolder))
	if err != nil {
		return err
	}
	defer logs.Close()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: ControlSocket(c.Dir), Net: "unix"})
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := setUp(c); err != nil {
		return err
	}
	sup := newSupervisor(log, c.Services, logs)
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		sup.reap(ctx)
	}()
	if err := Ready(); err != nil {
		return err
	}
	log.Info("node is up")
	err = serve(ctx, log, listener, sup)
	stop()
	<-reaped
	return err
}

// Dir is the folder of node name in the lab whose folder is lab.
func Dir(lab, name string) string { return filepath.Join(lab, "nodes", name) }
