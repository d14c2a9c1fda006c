package memory

import (
	"testing"
	"time"

	"github.com/drover-vm/drover/driver/drivertest"
)

func TestPorts(t *testing.T) {
	drivertest.Catcher(t, func(*testing.T) drivertest.CatchHost {
		p := NewPorts()
		p.Plug(drivertest.CatchMAC)
		seen := 0
		return drivertest.CatchHost{
			Catcher: p,
			Send:    func(_ *testing.T, frame []byte) { p.Send(frame) },
			Unplug:  func(*testing.T) { p.Unplug(drivertest.CatchMAC) },
			Received: func(t *testing.T) []byte {
				for {
					all, more := p.Given(drivertest.CatchMAC)
					if len(all) > seen {
						seen++
						return all[seen-1].Data
					}
					select {
					case <-more:
					case <-time.After(5 * time.Second):
						t.Fatal("the station was given nothing")
					}
				}
			},
		}
	})
}
