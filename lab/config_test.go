package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/drover-vm/drover/agent"
	"github.com/drover-vm/drover/lab/files"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/server"
)

// TestDrovers writes the files of the ready labs' agents and servers and lets
// agent and server read them.
func TestDrovers(t *testing.T) {
	for _, name := range files.Names() {
		f, err := labfile.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := topology.New(f)
		if err != nil {
			t.Fatal(err)
		}
		l := &Lab{State: State{Name: name, Dir: t.TempDir()}}
		for _, n := range plan.Nodes {
			if err := os.MkdirAll(filepath.Join(node.Dir(l.Dir, n.Name), confDir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.drovers(f, plan); err != nil {
			t.Fatal(err)
		}
		for _, n := range plan.Nodes {
			conf := filepath.Join(node.Dir(l.Dir, n.Name), confDir)
			if n.Role == topology.RouterRole {
				if _, err := os.Stat(filepath.Join(conf, "agent.yaml")); err == nil {
					t.Errorf("%s has an agent", n.Name)
				}
				continue
			}
			if n.Role == topology.Server {
				checkServer(t, filepath.Join(conf, "server.yaml"), f)
				continue
			}
			var c agent.Config
			strict(t, filepath.Join(conf, "agent.yaml"), &c)
			if err := c.Validate(); err != nil {
				t.Errorf("%s: %v", n.Name, err)
			}
			if c.Name != n.Name || c.Site != n.Site || (c.Edge != nil) != (n.Role == topology.Edge) || (c.Libvirt != "") != (n.Role == topology.Host) {
				t.Errorf("%s, a %s: %+v", n.Name, n.Role, c)
			}
		}
		b, err := os.ReadFile(l.Client)
		if err != nil {
			t.Fatal(err)
		}
		var client clientConfig
		if err := yaml.Unmarshal(b, &client); err != nil {
			t.Fatal(err)
		}
		if _, err := pki.Config(client.TLS); err != nil {
			t.Errorf("the operator's certificate: %v", err)
		}
	}
}

func checkServer(t *testing.T, path string, f *labfile.File) {
	t.Helper()
	var c server.Config
	strict(t, path, &c)
	if err := c.Validate(); err != nil {
		t.Errorf("%s: %v", f.Name, err)
	}
	for i, k := range f.Links {
		if got := c.Links[i]; got.Rate != server.Rate(k.Rate) || time.Duration(got.RTT) != 2*k.OneWay() {
			t.Errorf("%s: link %s is %+v to the server, want %d bit/s and %s", f.Name, k.Name, got, k.Rate, 2*k.OneWay())
		}
	}
	for i, s := range f.Sites {
		if s.Location != nil && (c.Sites[i].Latitude != s.Location.Lat || c.Sites[i].Longitude != s.Location.Lon) {
			t.Errorf("%s: site %s is at %+v to the server", f.Name, s.Name, c.Sites[i])
		}
	}
}

// strict reads a file as agent and server do: an unknown key is an error.
func strict(t *testing.T, path string, out any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(out); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
