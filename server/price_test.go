package server_test

import (
	"math"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/server"
)

// linkPrice is that of the link between north and south, for a GB.
const linkPrice = 50.0

// priced is an installation whose link has a price.
func priced(t *testing.T) *installation {
	in := newInstallation(t)
	in.end()
	in.cfg.Links[0].Price = new(server.Price(linkPrice))
	in.start()
	in.allUp()
	return in
}

func (in *installation) advise(site string) drover.Advice {
	in.t.Helper()
	r, err := in.client.Advise(in.t.Context(), &droverv1.AdviseRequest{Vm: "web1", To: to(site, "")})
	if err != nil {
		in.t.Fatal(err)
	}
	return api.AdviceFromProto(r.GetAdvice())
}

func (in *installation) require(values map[string]string) {
	in.t.Helper()
	if _, err := in.client.SetRequirements(in.t.Context(), &droverv1.SetRequirementsRequest{Vm: "web1", Values: values}); err != nil {
		in.t.Fatal(err)
	}
}

// TestCostCeiling: what a move may cost decides the advice, and what it has cost
// is measured.
func TestCostCeiling(t *testing.T) {
	in := priced(t)
	l, err := in.client.ListLinks(t.Context(), &droverv1.ListLinksRequest{})
	if err != nil || len(l.GetLinks()) != 1 || l.GetLinks()[0].GetPricePerGb() != linkPrice {
		t.Fatalf("links: %v, %v", l, err)
	}
	in.require(map[string]string{"max-cost": "0.0001"})
	a := in.advise("south")
	live := a.Of(drover.Live)
	if a.Method != drover.Stay || live.Forecast == nil || live.Forecast.Cost == nil || live.Forecast.Cost.P50 <= 0 {
		t.Fatalf("a move that costs too much: %s, forecast %+v", a.Method, live.Forecast)
	}
	if want := live.Forecast.WireBytes.P50 / 1e9 * linkPrice; math.Abs(live.Forecast.Cost.P50-want) > 0.1*want {
		t.Errorf("cost %v of %v bytes, want about %v", live.Forecast.Cost.P50, live.Forecast.WireBytes.P50, want)
	}
	if why := strings.Join(live.Against, "\n"); !strings.Contains(why, "cost ") || !strings.Contains(why, "0 allowed") {
		t.Errorf("against it: %s", why)
	}
	if why := strings.Join(a.Changes, "\n"); !strings.Contains(why, "allow a cost of ") {
		t.Errorf("what would change it: %s", why)
	}
	in.require(map[string]string{"max-cost": "1000"})
	if a = in.advise("south"); a.Method != drover.Live || !strings.Contains(strings.Join(a.Of(drover.Live).For, "\n"), "1000 allowed") {
		t.Errorf("a move that may cost much: %s, %q", a.Method, a.Of(drover.Live).For)
	}
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "")})
	m = in.follow(m.Name, final)
	f := m.Measured
	if m.State != drover.MoveDone || f.Cost == nil || f.WireBytes == nil || math.Abs(*f.Cost-float64(*f.WireBytes)/1e9*linkPrice) > 1e-9 {
		t.Errorf("move %s: cost %v of %v bytes", m.State, f.Cost, f.WireBytes)
	}
}

// TestCostWithoutPrice: where nobody has named a price a ceiling cannot be judged,
// and the advice says what is missing; inside a site nothing is paid.
func TestCostWithoutPrice(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.require(map[string]string{"max-cost": "5"})
	a := in.advise("south")
	if a.Method != drover.Stay || !strings.Contains(strings.Join(a.Changes, "\n"), "name the price of the link between north and south") {
		t.Errorf("%s, would change: %q", a.Method, a.Changes)
	}
	r, err := in.client.StartMove(t.Context(), &droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1"), Method: "live"})
	if err != nil || r.GetMove() == nil {
		t.Fatalf("a method by name goes all the same: %v, %v", r.GetPreflight(), err)
	}
	in.follow(r.GetMove().GetName(), final)
	r2, err := in.client.Advise(t.Context(), &droverv1.AdviseRequest{Vm: "web1", To: to("south", "s2")})
	if err != nil {
		t.Fatal(err)
	}
	live := api.AdviceFromProto(r2.GetAdvice()).Of(drover.Live)
	if live.Forecast == nil || live.Forecast.Cost == nil || live.Forecast.Cost.P90 != 0 {
		t.Errorf("inside a site it costs %+v", live.Forecast)
	}
}
