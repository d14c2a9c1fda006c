package etcd_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/drover-vm/drover/store"
	"github.com/drover-vm/drover/store/etcd"
	"github.com/drover-vm/drover/store/storetest"
)

// An etcd that is reached over a connection gives its errors otherwise than one
// in the same process; the store has to pass the suite on both.
func TestConformanceOverAConnection(t *testing.T) {
	// A socket's path has room for 107 bytes, which a test's folder may exceed.
	dir, err := os.MkdirTemp("", "drover-etcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "client.sock")

	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "data")
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.ListenPeerUrls = nil
	cfg.ListenClientUrls = []url.URL{{Scheme: "unix", Path: socket}}
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	<-server.Server.ReadyNotify()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	var n atomic.Int32
	fresh := func() *etcd.Store { return etcd.New(client, fmt.Sprintf("/drover-%d", n.Add(1))) }
	storetest.Journal(t, func(*testing.T) store.Journal { return fresh() })
	storetest.Inventory(t, func(*testing.T) store.Inventory { return fresh() })
}
