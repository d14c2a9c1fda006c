package bgp

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover/driver"
)

// asSpeaker makes the test's binary the child of a Speaker, of this kind.
const asSpeaker = "DROVER_BGP_TEST_SPEAKER"

// Kinds of children.
const (
	realSpeaker   = "real"
	crashing      = "crashing"      // ends at once
	forgetful     = "forgetful"     // sends only when it is told to send again
	unconvincible = "unconvincible" // never sends
	deaf          = "deaf"          // reads nothing and does not end
	babbling      = "babbling"      // says what nobody understands
)

// TestMain runs the tests, or is the child of one.
func TestMain(m *testing.M) {
	kind := os.Getenv(asSpeaker)
	if kind == "" {
		flag.Parse()
		_ = flag.Set("test.parallel", "8") // they wait for timers, not for the machine
		goleak.VerifyTestMain(m)
		return
	}
	if err := speak(kind); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func speak(kind string) error {
	switch kind {
	case realSpeaker:
		return Main(context.Background(), os.Stdin, os.Stdout)
	case crashing:
		return errors.New("no reason at all")
	case babbling:
		fmt.Println("?")
	case deaf:
		time.Sleep(time.Hour)
	}
	dec, enc := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var c childConfig
	if err := dec.Decode(&c); err != nil {
		return err
	}
	router := c.Neighbors[0].Address
	session := &sessionEvent{Neighbor: router, State: driver.SessionEstablished, At: time.Now(), IPv4: true, IPv6: true}
	if err := enc.Encode(event{Session: session}); err != nil {
		return err
	}
	routes := c.Routes
	for {
		var o order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		routes = append(routes, o.Announce...)
		if o.Resend == router && kind == forgetful {
			if err := enc.Encode(event{Sent: &sentEvent{Neighbor: router, Announced: routes}}); err != nil {
				return err
			}
		}
	}
}
