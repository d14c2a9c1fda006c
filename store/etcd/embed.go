package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/drover-vm/drover"
)

const (
	// quotaBytes bounds the database. A finished move takes about 8 KiB, so
	// this is more than 200,000 of them, and it is opened in memory-mapped
	// pages that a small server can still afford.
	quotaBytes = 2 << 30
	// retention is how long changes are kept for watchers that fall behind. A
	// server that was gone for longer lists again; a move in progress makes a
	// few changes a minute.
	retention = "1h"
	// readyTime bounds the wait for the member to elect itself: replaying a
	// full write-ahead log takes seconds on a slow disk.
	readyTime = 2 * time.Minute
	// requestBytes bounds one request: a record (store.MaxRecordBytes) with its
	// keys fits.
	requestBytes = 2 << 20
)

// Embedded is an etcd inside this process. It has one member and listens
// nowhere: no port, no socket; Client is the only way to it.
type Embedded struct {
	server *embed.Etcd
	client *clientv3.Client
	folder *os.File // locked
	close  sync.Once
}

// Embed starts etcd on the folder dir, which is made where it is missing, and
// returns when it answers. Every write is on the disk before it is
// acknowledged. log is nil for none. Close ends it.
//
// drover.Unavailable says that it did not come up, for instance because
// another process has the folder open; drover.Invalid that dir cannot be used.
func Embed(ctx context.Context, log *slog.Logger, dir string) (*Embedded, error) {
	const op = "start embedded etcd"
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	// etcd keeps definitions of VMs, which may have secrets.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	folder, err := lockFolder(dir)
	if err != nil {
		return nil, drover.E(drover.Unavailable, op, err)
	}
	e, err := start(ctx, config(dir, log))
	if err != nil {
		folder.Close()
		return nil, drover.E(drover.Unavailable, op, fmt.Errorf("in %s: %w", dir, err))
	}
	e.folder = folder
	return e, nil
}

// start starts etcd and waits until it answers.
func start(ctx context.Context, cfg *embed.Config) (*Embedded, error) {
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		server.Close()
		return nil, err
	case <-ctx.Done():
		server.Server.HardStop()
		server.Close()
		return nil, fmt.Errorf("it did not become ready: %w", ctx.Err())
	}
	return &Embedded{server: server, client: v3client.New(server.Server)}, nil
}

// lockFolder makes sure that no other process has the folder: etcd itself
// would wait for that one without end. The lock ends with the file, or with
// the process.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "drover.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("folder %s is open in another process: end that one first", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// Client speaks to the embedded etcd. It is closed with it.
func (e *Embedded) Client() *clientv3.Client { return e.client }

// Done is closed when etcd has ended by itself, which it does when its disk
// fails.
func (e *Embedded) Done() <-chan struct{} { return e.server.Server.StopNotify() }

// Close ends etcd and waits for it. Repeating it is fine.
func (e *Embedded) Close() error {
	var err error
	e.close.Do(func() {
		err = e.client.Close()
		e.server.Close()
		e.folder.Close()
		if errors.Is(err, context.Canceled) {
			err = nil // what a client of its own kind says when it is closed
		}
	})
	return err
}

// config is a member of its own, without listeners.
func config(dir string, log *slog.Logger) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = "drover"
	cfg.Dir = dir
	// The one member's address names it in the cluster's list. Nobody dials it.
	self := url.URL{Scheme: "unix", Host: "drover:0"}
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = []url.URL{self}, []url.URL{self}
	cfg.ListenPeerUrls, cfg.ListenClientUrls, cfg.ListenClientHttpUrls = nil, nil, nil
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.UnsafeNoFsync = false
	cfg.QuotaBackendBytes = quotaBytes
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, retention
	cfg.MaxRequestBytes = requestBytes
	cfg.StrictReconfigCheck = true
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(log))
	return cfg
}
