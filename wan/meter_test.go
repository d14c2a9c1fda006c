package wan

import (
	"errors"
	"testing"
	"time"

	"github.com/drover-vm/drover/wan/bundle"
)

// TestMarksAfterTheEnd: a session that is closed while its memory begins has no
// negative figures.
func TestMarksAfterTheEnd(t *testing.T) {
	t.Parallel()
	b, err := bundle.Accept(bundle.Config{Token: newToken(t)})
	must(t, err)
	defer b.Close(errors.New("done"))
	m := newMeter(b)
	time.Sleep(time.Millisecond)
	m.mark(atEnd)
	before := m.figures()
	time.Sleep(time.Millisecond)
	m.mark(atMemory)
	m.mark(atPause)
	m.mark(atEnd)
	f := m.figures()
	checkFigures(t, f)
	if f != before || f.Disk.Seconds == 0 {
		t.Errorf("after the end the figures became %+v, were %+v", f, before)
	}
}
