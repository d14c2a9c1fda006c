package server

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/advisor"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// Advise implements DroverService.
func (s service) Advise(ctx context.Context, r *droverv1.AdviseRequest) (*droverv1.AdviseResponse, error) {
	if err := drover.CheckName("vm", r.GetVm()); err != nil {
		return nil, err
	}
	if r.GetFresh() {
		if err := s.signals.refreshNamed(ctx, r.GetVm()); err != nil {
			return nil, err
		}
	}
	if r.GetTo() == nil {
		a, err := s.adviseBest(ctx, r.GetVm())
		return &droverv1.AdviseResponse{Advice: api.AdviceToProto(a)}, err
	}
	move := &droverv1.StartMoveRequest{Vm: r.GetVm(), To: r.GetTo()}
	to, _, err := readTarget(move)
	if err != nil {
		return nil, err
	}
	var ask wishes
	if !r.GetNoPreflight() {
		ask = move
	}
	a, err := s.advise(ctx, r.GetVm(), to, ask)
	return &droverv1.AdviseResponse{Advice: api.AdviceToProto(a)}, err
}

// wishes is what preflight and move are asked alike.
type wishes interface {
	GetLocalEgress() bool
	GetAddresses() []string
	GetRenumber() *droverv1.RenumberWish
	GetClone() *droverv1.CloneWish
	GetStorage() string
	GetDisksOnly() bool
}

// advise says how the VM should come to the place. With wishes, what is advised
// was checked by a preflight for these; without, by the inventory alone.
func (s *Server) advise(ctx context.Context, name string, to drover.Place, r wishes) (drover.Advice, error) {
	o, err := s.look(ctx)
	if err != nil {
		return drover.Advice{}, err
	}
	vm, err := s.fleet.find(name, o.moves)
	if err != nil {
		return drover.Advice{}, err
	}
	if err := o.knows(to); err != nil {
		return drover.Advice{}, err
	}
	q := s.question(o, vm, to)
	a := advisor.Advise(q, o.policy)
	if r == nil {
		return a, nil
	}
	// Each turn checks another method: of eight, eight at most.
	for checked := map[drover.Method]bool{}; a.Method != drover.Stay && !checked[a.Method]; {
		checked[a.Method] = true
		q.Checks[a.Method] = s.preflightFor(ctx, q, to, a.Method, r)
		a = advisor.Advise(q, o.policy)
	}
	return a, drover.E(drover.Canceled, "advise", ctx.Err())
}

// preflightFor is what a preflight finds of one method. That it could not be made
// is a finding, too.
func (s *Server) preflightFor(ctx context.Context, q advisor.Question, to drover.Place, m drover.Method, r wishes) []drover.Check {
	ask, err := newAsked(m, withService(r, m, q.Needs))
	if err == nil {
		var p plan
		if p, err = s.preflight(ctx, q.VM.Name, to, ask); err == nil {
			return p.report.Checks
		}
	}
	return []drover.Check{{Name: "preflight", Detail: err.Error()}}
}

// served are wishes with the backend of the VM's service.
type served struct {
	wishes
	clone *droverv1.CloneWish
}

// GetClone returns them.
func (w served) GetClone() *droverv1.CloneWish { return w.clone }

// GetGate returns the gate of the wishes, where they have one.
func (w served) GetGate() *droverv1.Gate {
	if g, ok := w.wishes.(interface{ GetGate() *droverv1.Gate }); ok {
		return g.GetGate()
	}
	return nil
}

// withService fills in what redirect has to know and nobody has said: of which
// backend the VM is a server.
func withService(r wishes, m drover.Method, needs drover.VMRequirements) wishes {
	if m != drover.Redirect || r.GetClone().GetBackend() != "" || needs.Requirements.Service == "" {
		return r
	}
	wish := api.CloneWishFromProto(r.GetClone())
	wish.Backend = needs.Requirements.Service
	return served{r, api.CloneWishToProto(wish)}
}

// knows reports whether there is such a place.
func (o *overview) knows(to drover.Place) error {
	if _, known := o.sites[to.Site]; !known {
		return drover.Errorf(drover.NotFound, "site "+to.Site, "there is none of that name: take one of %s", orNone(o.order))
	}
	if h, known := o.hosts[to.Host]; to.Host != "" && (!known || h.Site != to.Site) {
		return drover.Errorf(drover.NotFound, "host "+to.Host, "there is none of that name at site %s", to.Site)
	}
	return nil
}

// adviseBest says at which site the VM should be.
func (s *Server) adviseBest(ctx context.Context, name string) (drover.Advice, error) {
	o, err := s.look(ctx)
	if err != nil {
		return drover.Advice{}, err
	}
	vm, err := s.fleet.find(name, o.moves)
	if err != nil {
		return drover.Advice{}, err
	}
	var all []drover.Advice
	for _, site := range o.order {
		if _, runs := o.roomiest[site]; runs && site != vm.Site {
			all = append(all, advisor.Advise(s.question(o, vm, drover.Place{Site: site}), o.policy))
		}
	}
	return advisor.Best(s.question(o, vm, drover.Place{Site: vm.Site}), all, o.policy), nil
}

// AdviseAll implements DroverService.
func (s service) AdviseAll(ctx context.Context, r *droverv1.AdviseAllRequest) (*droverv1.AdviseAllResponse, error) {
	if err := drover.CheckName("to", r.GetTo()); err != nil {
		return nil, err
	}
	o, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	to := drover.Place{Site: r.GetTo()}
	if err := o.knows(to); err != nil {
		return nil, err
	}
	resp := &droverv1.AdviseAllResponse{}
	for _, vm := range o.vms {
		if ctx.Err() != nil {
			return nil, drover.E(drover.Canceled, "advise", ctx.Err())
		}
		if vm.Site == to.Site {
			continue
		}
		resp.Advices = append(resp.Advices, api.AdviceToProto(short(advisor.Advise(s.question(o, vm, to), o.policy))))
	}
	return resp, nil
}

// short is an advice without what is said of the other methods.
func short(a drover.Advice) drover.Advice {
	m := a.Of(a.Method)
	a.Methods = []drover.MethodAdvice{{Method: m.Method, Feasible: m.Feasible, Meets: m.Meets, Forecast: m.Forecast}}
	return a
}

// preflightAsked checks a move as it was asked for. Where no method was, the
// adviser chooses it, and may refuse; where one was, the adviser's objections are
// warnings, and only a rule forbids it.
func (s *Server) preflightAsked(ctx context.Context, vm string, to drover.Place, method drover.Method, r wishes) (plan, error) {
	if method != "" || r.GetDisksOnly() {
		ask, err := newAsked(method, r)
		if err != nil {
			return plan{}, err
		}
		p, err := s.preflight(ctx, vm, to, ask)
		if err == nil && !r.GetDisksOnly() {
			err = s.object(ctx, &p, vm, to)
		}
		return p, err
	}
	ask, err := newAsked("", r)
	if err != nil {
		return plan{}, err
	}
	a, needs, err := s.choose(ctx, vm, to, r)
	if err != nil {
		return plan{}, err
	}
	if a.Method != "" && a.Method != drover.Stay {
		if ask, err = newAsked(a.Method, withService(r, a.Method, needs)); err != nil {
			return plan{}, err
		}
		ask.why = moveReasons(a, drover.Wants(needs.Requirements.Stateless))
	}
	p, err := s.preflight(ctx, vm, to, ask)
	// What is wrong with hosts and sites was found by the preflight, which says
	// more of it.
	if err == nil && a.Method == drover.Stay && p.report.OK {
		p.report.OK, p.report.Method = false, drover.Stay
		p.report.Checks = append(p.report.Checks, drover.Check{
			Name: "advice", Detail: "stay: " + strings.Join(a.Reasons, "; "),
			Fix: cmp.Or(strings.Join(a.Changes, "; or "), "ask for a method to move it all the same"),
		})
	}
	return p, err
}

// maxMoveReasons bounds them: they are kept with the move.
const maxMoveReasons = 4

// moveReasons are those that a move is recorded with: what its method does, and
// why not a simpler one; that another VM would not do goes without saying for one
// that is not stateless. The rest is for who asks for advice.
func moveReasons(a drover.Advice, stateless bool) []string {
	reasons := []string{a.Reasons[0]}
	for _, r := range a.Reasons[1:] {
		another := strings.HasPrefix(r, "not spawn: ") || strings.HasPrefix(r, "not redirect: ")
		if strings.HasPrefix(r, "not ") && (stateless || !another) && len(reasons) < maxMoveReasons {
			reasons = append(reasons, r)
		}
	}
	return reasons
}

// choose is the advice for a move that nobody has chosen a method for; one
// without a method where there is nothing to choose: the preflight says why.
func (s *Server) choose(ctx context.Context, name string, to drover.Place, r wishes) (drover.Advice, drover.VMRequirements, error) {
	o, err := s.look(ctx)
	if err != nil {
		return drover.Advice{}, drover.VMRequirements{}, err
	}
	vm, err := s.fleet.find(name, o.moves)
	if err != nil || o.moves[vm.UUID].Name != "" || o.knows(to) != nil {
		return drover.Advice{}, drover.VMRequirements{}, err
	}
	if to.Site == vm.Site && to.Host == "" {
		to.Host = o.target(vm, to).Name // inside a site any other host is meant
	}
	a, err := s.advise(ctx, name, to, r)
	return a, s.settle(vm, o.needs[vm.UUID]), err
}

// object adds to a preflight what the adviser has against the method that was
// asked for. Only a rule forbids it.
func (s *Server) object(ctx context.Context, p *plan, vm string, to drover.Place) error {
	o, err := s.look(ctx)
	if err != nil {
		return err
	}
	v, err := s.fleet.find(vm, o.moves)
	if err != nil || o.moves[v.UUID].Name != "" || o.knows(to) != nil {
		return err
	}
	q := s.question(o, v, to)
	m := p.report.Method
	if why := advisor.Forbidden(q, o.policy, m); why != "" {
		p.report.OK = false
		p.report.Checks = append(p.report.Checks, drover.Check{
			Name: "rules", Detail: why, Fix: "take another method, or change the rule in the server's file",
		})
		return nil
	}
	a := advisor.Advise(q, o.policy)
	own := a.Of(m)
	if a.Method == m || own == nil || own.Meets {
		return nil
	}
	text := fmt.Sprintf("%s is advised: %s", a.Method, a.Reasons[0])
	if len(own.Against) > 0 {
		text = fmt.Sprintf("%s is advised; of %s: %s", a.Method, m, own.Against[0])
	}
	if !slices.ContainsFunc(p.report.Checks, func(c drover.Check) bool { return !c.OK && !c.Warning }) {
		p.report.Checks = append(p.report.Checks, drover.Check{
			Name: "advice", Warning: true, Detail: text, Fix: fmt.Sprintf("see drover advise %s --to %s", vm, to.Site),
		})
	}
	return nil
}
