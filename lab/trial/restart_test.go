package trial

import (
	"testing"
	"time"
)

func TestStoodStill(t *testing.T) {
	events := `2026-01-02 03:04:05.100+0000: event 'lifecycle' for domain 'other': Suspended Paused
2026-01-02 03:04:05.200+0000: event 'lifecycle' for domain 'vm1': Suspended Paused
2026-01-02 03:04:05.900+0000: event 'lifecycle' for domain 'vm1': Stopped Saved
2026-01-02 03:04:06.300+0000: event 'lifecycle' for domain 'vm1': Suspended Restored
2026-01-02 03:04:09.450+0000: event 'lifecycle' for domain 'vm1': Resumed Unpaused
`
	if d, err := stoodStill(events, "vm1"); err != nil || d != 4250*time.Millisecond {
		t.Errorf("stood still for %s, %v; want 4.25 s", d, err)
	}
	for _, vm := range []string{"other", "nobody"} {
		if d, err := stoodStill(events, vm); err == nil {
			t.Errorf("%s, which was not resumed, stood still for %s", vm, d)
		}
	}
}
