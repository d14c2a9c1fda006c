// Command sheep is the guest of the lab: a static program that runs as PID 1
// in an initramfs on Debian's cloud kernel. It takes its settings from the
// kernel command line, brings up the network, and serves what a moved machine
// is judged by: sessions that prove their state (package session, port 7000),
// and over HTTP (package control, port 8080) a memory writer, a disk writer
// that journals every acknowledged write (package journal) and counters. On
// the power button it takes its network down, syncs and powers off.
//
// To its host it answers as QEMU's guest agent does, with an ip(8) of its own.
// When its cable is put back in it asks DHCP again, and keeps the address that it
// had, beside a new one, for the sessions that use it.
//
// With root= on the command line it is the initramfs of an installed system
// instead: it mounts the file system and either runs the image's /etc/drover/rc
// beside its own services, or, when the image has none, hands over to its
// /sbin/init.
//
// Command line:
//
//	drover.name=NAME                  host name
//	drover.ip=ADDRESS/BITS[,…]        IPv4 and IPv6 addresses, may be repeated
//	drover.ip=dhcp|dhcp6|ra[,…]       addresses by DHCP, DHCPv6 or router advertisements
//	drover.gw=ADDRESS[,…]             default gateways, one per family
//	drover.dhcp=once                  keeps its first addresses: asks DHCP never again
//	drover.agent=off|hang             has no guest agent, or one that never answers
//	drover.dns=ADDRESS[,…]            name servers
//	drover.mtu=BYTES                  MTU of the interface
//	root=DEVICE rootfstype=TYPE ro init=PATH   as for the kernel
//
// Building the initramfs is left to package guest, starting machines to the
// lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/guest/journal"
	"github.com/drover-vm/drover/lab/guest/session"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "sheep: runs as PID 1 of a guest only")
		os.Exit(2)
	}
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelInfo}))
	err := run(context.Background(), log)
	if err != nil {
		log.Error("guest failed", "err", err)
	}
	// Whatever happened, a PID 1 may not return: power off, so that a test
	// sees a machine that is off and not one that hangs.
	if err := cutLinks(log); err != nil {
		log.Error("guest's network stays up", "err", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		log.Error("power off", "err", err)
	}
	select {} // never panic the kernel by returning
}

func run(ctx context.Context, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, unix.SIGPWR)
	defer stop()
	if err := mountKernelFS(); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	set, err := parseSettings(string(cmdline))
	if err != nil {
		return fmt.Errorf("kernel command line: %w", err)
	}
	if err := loadModules(log, "/modules"); err != nil {
		return err
	}
	var sys *system
	if set.root != "" {
		if sys, err = enterRoot(log, set); err != nil {
			return err
		}
	}
	if set.name != "" {
		if err := unix.Sethostname([]byte(set.name)); err != nil {
			return fmt.Errorf("set host name %q: %w", set.name, err)
		}
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	log.Info("guest starts", "name", set.name, "boot", boot)
	err = serve(ctx, log, set, boot, sys)
	log.Info("guest stops", "err", err)
	return errors.Join(err, sys.stop(log))
}

// serve runs the guest until the power button is pressed or ctx is done,
// which it reports with nil, or until a service fails.
func serve(ctx context.Context, log *slog.Logger, set settings, boot journal.ID, sys *system) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	link, err := waitLink(ctx, linkWait, set)
	if err != nil {
		return err
	}
	if err := configureStatic(log, link, set); err != nil {
		return err
	}
	watch := &linkWatch{log: log, device: link.Attrs().Name}
	updates, stop, err := watch.subscribe()
	if err != nil {
		return err
	}
	defer stop()
	book := newAddressBook(log, link.Attrs().Name)
	if set.dhcp {
		client := newDHCP(log, set, book, watch.came())
		g.Go(func() error { return client.run(ctx) })
	}
	if set.dhcp6 {
		client := &dhcp6{log: log, set: set, book: book, up: watch.came()}
		g.Go(func() error { return client.run(ctx) })
	}
	g.Go(func() error { watch.run(ctx, updates); return nil })
	sessions := session.New(log, boot.String())
	disk := newDiskWriter(log, boot, set.root)
	memory := newMemoryWriter()
	gap := newGapMeter()
	h := &handler{log: log, name: set.name, boot: boot, started: time.Now(), sessions: sessions, disk: disk, memory: memory, gap: gap, book: book}
	g.Go(func() error { gap.run(ctx); return nil })
	if sys == nil && set.agent != agentOff { // an installed system has an agent of its own
		agent := &agent{log: log, disk: disk, hangs: set.agent == agentHang}
		g.Go(func() error { return agent.run(ctx) })
	}
	g.Go(func() error { disk.run(ctx); return nil })
	g.Go(func() error { memory.run(ctx); return nil })
	g.Go(func() error { return listen(ctx, control.SessionPort, sessions.Serve) })
	g.Go(func() error { return listen(ctx, control.HTTPPort, h.serve) })
	g.Go(func() error { return sys.run(ctx, log) })
	g.Go(func() error {
		defer cancel()
		return waitPowerButton(ctx, log)
	})
	return g.Wait()
}

func listen(ctx context.Context, port int, serve func(context.Context, net.Listener) error) error {
	ln, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	return serve(ctx, ln)
}

func (h *handler) serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           h.routes(),
		ReadHeaderTimeout: time.Minute, // a move may cut a request in half
		// Streams end with the guest.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http: %w", err)
	}
	return nil
}
