package server_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/server"
	"github.com/drover-vm/drover/server/servertest"
)

// scrape reads the server's metrics: by name and labels, "name{a=b,c=d}".
func (in *installation) scrape() map[string]float64 {
	in.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + in.cfg.Metrics + "/metrics")
	if err != nil {
		in.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		in.t.Fatalf("%s, %v: %s", resp.Status, err, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	if err != nil {
		in.t.Fatal(err)
	}
	values := map[string]float64{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			values[name+"{"+strings.Join(labels, ",")+"}"] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

func TestMetrics(t *testing.T) {
	in := newInstallation(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in.cfg.Metrics = l.Addr().String()
	l.Close()
	in.end()
	in.start()
	in.allUp()
	hold := make(chan struct{})
	in.Agents["n1"].Set(func(s *servertest.State) { s.Hold["transfer"] = hold })
	check := func(what string, want map[string]float64, none ...string) {
		t.Helper()
		got := in.scrape()
		for name, v := range want {
			if is, ok := got[name]; !ok || is != v {
				t.Errorf("%s: %s is %v (there: %v), want %v", what, name, is, ok, v)
			}
		}
		for _, name := range none {
			for key := range got {
				if strings.HasPrefix(key, name+"{") {
					t.Errorf("%s: %s is there", what, key)
				}
			}
		}
	}
	check("before", map[string]float64{
		"drover_moves_active{state=running}": 0, "drover_hosts{up=true}": 6, "drover_hosts{up=false}": 0,
		"drover_path_wire_bytes_total{phase=memory}": 0,
	}, "drover_moves_ended_total", "drover_move_done_bytes", "drover_move_path_cuts_total")
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1")})
	in.follow(m.Name, atStep("transfer"))
	labels := "{move=" + m.Name + ",vm=web1}"
	check("while it moves", map[string]float64{
		"drover_moves_active{state=running}":         1,
		"drover_move_done_bytes" + labels:            float64(64 * drover.MiB),
		"drover_move_size_bytes" + labels:            float64(256 * drover.MiB),
		"drover_move_guest_bits_per_second" + labels: 100e6,
		"drover_move_wire_bits_per_second" + labels:  12e6,
		"drover_move_limit_bits_per_second" + labels: 20e6,
		"drover_move_cut_seconds" + labels:           0,
	})
	close(hold)
	in.follow(m.Name, final)
	f := servertest.Path()
	check("after it", map[string]float64{
		"drover_moves_active{state=running}":                                                        0,
		"drover_moves_ended_total{method=live,state=done}":                                          1,
		"drover_path_wire_bytes_total{phase=memory}":                                                float64(f.Memory.WireBytes),
		"drover_path_guest_bytes_total{kind=reference,phase=memory}":                                float64(f.Memory.Kinds.Reference.GuestBytes),
		"drover_path_retransmitted_bytes_total{phase=memory}":                                       float64(f.Memory.RetransmittedBytes),
		"drover_path_cut_seconds_total{phase=memory}":                                               f.Memory.CutSeconds,
		"drover_move_path_wire_bytes_total{move=" + m.Name + ",phase=disk,vm=web1}":                 float64(f.Disk.WireBytes),
		"drover_move_path_batch_bytes_total{kind=raw,move=" + m.Name + ",phase=switchover,vm=web1}": float64(f.Switchover.Kinds.Raw.WireBytes),
	}, "drover_move_done_bytes", "drover_move_wire_bits_per_second")

	// An address that is taken is refused at once.
	other := in.cfg
	other.Socket += "2"
	tls, err := pki.Config(other.TLS)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := server.New(server.Deps{Journal: in.store, Inventory: in.store, TLS: tls}, other); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("a second server with the same address: %v, want unavailable", err)
		if err == nil {
			s.Close()
		}
	}
}
