package bgp

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// kernel watches the router's table for host routes through the first edge.
type kernel struct {
	t      testing.TB
	events chan netlink.RouteUpdate
}

func (r *router) kernel() *kernel {
	r.t.Helper()
	ns, err := netns.GetFromPath(r.namespace())
	must(r.t, err)
	r.t.Cleanup(func() { _ = ns.Close() })
	k := &kernel{t: r.t, events: make(chan netlink.RouteUpdate, 4*maxRoutes)}
	done := make(chan struct{})
	must(r.t, netlink.RouteSubscribeWithOptions(k.events, done, netlink.RouteSubscribeOptions{
		Namespace: &ns, ReceiveBufferSize: 64 << 20, ReceiveBufferForceSize: true, // none may be lost
	}))
	r.t.Cleanup(func() { close(done) })
	return k
}

// wait returns when n host routes have been added, or removed.
func (k *kernel) wait(n int, kind uint16) {
	k.t.Helper()
	limit := time.After(patience)
	for n > 0 {
		select {
		case e := <-k.events:
			if e.Type == kind && e.Dst != nil && e.Dst.IP[0] == 100 {
				n--
			}
		case <-limit:
			k.t.Fatalf("%d routes are missing after %v", n, patience)
		}
	}
}

func hosts(n int) []netip.Prefix {
	all := make([]netip.Prefix, n)
	for i := range all {
		all[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), 32)
	}
	return all
}

// BenchmarkAnnounce is the time from Announce until the route is in the
// router's kernel; announced-ms is the part until Announce has returned.
func BenchmarkAnnounce(b *testing.B) {
	for _, n := range []int{1, 2000} {
		b.Run(fmt.Sprintf("routes=%d", n), func(b *testing.B) {
			r := newRouter(b)
			s := open(b, r.config(0, b.TempDir()))
			k, all := r.kernel(), hosts(n)
			var returned time.Duration
			for b.Loop() {
				began := time.Now()
				must(b, s.Announce(b.Context(), web, all...))
				returned += time.Since(began)
				k.wait(n, newRoute)
				b.StopTimer()
				must(b, s.Withdraw(b.Context(), web, all...))
				k.wait(n, deletedRoute)
				b.StartTimer()
			}
			b.ReportMetric(float64(returned.Microseconds())/1e3/float64(b.N), "announced-ms")
		})
	}
}

// rtnetlink's message types.
const (
	newRoute     = 24
	deletedRoute = 25
)

// BenchmarkAnnounceEach is 2,000 calls of one route each, of 1 and of 16
// callers: what putting it on record costs.
func BenchmarkAnnounceEach(b *testing.B) {
	for _, callers := range []int{1, 16} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			r := newRouter(b)
			s := open(b, r.config(0, b.TempDir()))
			k, all := r.kernel(), hosts(2000)
			for b.Loop() {
				var next atomic.Int64
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for i := next.Add(1) - 1; i < int64(len(all)); i = next.Add(1) - 1 {
							if err := s.Announce(b.Context(), web, all[i]); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				k.wait(len(all), newRoute)
				b.StopTimer()
				must(b, s.Withdraw(b.Context(), web, all...))
				k.wait(len(all), deletedRoute)
				b.StartTimer()
			}
		})
	}
}
