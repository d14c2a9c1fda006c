package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// newPlaceFlags say where in the networks of its destination a VM gets. Segment
// and name are also for methods that make another VM.
type newPlaceFlags struct {
	segment, name string
	addresses     []string
	oldLimit      durationFlag
}

func (f *newPlaceFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.segment, "segment", "", "segment at the destination that the VM gets into (default: the one at home there)")
	fl.StringVar(&f.name, "name", "", "DNS name that is made to answer with the VM's new addresses, such as web1.example.net")
	fl.StringSliceVar(&f.addresses, "new-address", nil, "for renumber: address to have at the destination, one of each family at most (default: what DHCP has)")
	fl.Var(&f.oldLimit, "old-limit", fmt.Sprintf("for renumber: how long sessions of the old addresses may go on, such as 30m (default %v)", drover.DefaultOldLimit))
}

// check reads what can be wrong in itself.
func (f *newPlaceFlags) check() error {
	_, err := f.wish()
	return err
}

// wish is what is wished of a move by renumber.
func (f *newPlaceFlags) wish() (drover.RenumberWish, error) {
	w := drover.RenumberWish{Segment: f.segment, DNSName: f.name, OldLimit: time.Duration(f.oldLimit)}
	for _, s := range f.addresses {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return w, drover.Errorf(drover.Invalid, "", "new-address %q: want an address such as 10.60.0.11", s)
		}
		w.Addresses = append(w.Addresses, a)
	}
	return w, w.Validate()
}

// proto is nil for methods that leave addresses as they are, unless something
// was said that is for renumber alone: the server tells then.
func (f *newPlaceFlags) proto(m drover.Method) *droverv1.RenumberWish {
	w, err := f.wish()
	if err != nil || m != drover.Renumber && len(w.Addresses) == 0 && w.OldLimit == 0 {
		return nil
	}
	return api.RenumberWishToProto(w)
}

func newMoveEndOldCommand(a *app) *cobra.Command {
	cmd := newGateCommand(a, &cobra.Command{
		Use:   "end-old MOVE",
		Short: "End the sessions of old addresses for which a move by renumber waits",
		Long: "Ends the sessions that clients still have with the old addresses of a VM that was moved by renumber, and with them\n" +
			"the move. What was cut is reported as lost.",
	}, func(ctx context.Context, cl *api.Client, name string) (*droverv1.Move, error) {
		r, err := cl.EndOldSessions(ctx, &droverv1.EndOldSessionsRequest{Name: name})
		return r.GetMove(), err
	}, drover.MoveDone)
	return cmd
}

// renumberLine shows what becomes of a VM's addresses.
func renumberLine(r *drover.Renumbered) string {
	if r == nil {
		return ""
	}
	words := func(list []netip.Addr) string { return strings.Join(api.AddressesToProto(list), ", ") }
	line := "addresses: " + words(r.Old) + " in the segment that it leaves"
	if len(r.New) > 0 {
		line = fmt.Sprintf("addresses: %s in segment %s, before %s", words(r.New), r.Segment, words(r.Old))
	}
	if r.OldSessions != nil && *r.OldSessions > 0 {
		line += fmt.Sprintf("   old sessions: %d until %s", *r.OldSessions, r.Until.Local().Format(time.TimeOnly))
	}
	for _, more := range []string{r.Held, r.Left} {
		if more != "" {
			line += "   " + more
		}
	}
	return line
}
