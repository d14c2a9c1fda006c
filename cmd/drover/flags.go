package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// placeFlag is the value of --to.
type placeFlag drover.Place

// Set reads SITE or SITE/HOST.
func (p *placeFlag) Set(s string) error {
	v, err := drover.ParsePlace(s)
	*p = placeFlag(v)
	return err
}

func (p *placeFlag) String() string { return drover.Place(*p).String() }

// Type names the value in help texts.
func (p *placeFlag) Type() string { return "SITE[/HOST]" }

// methodNames are the methods a move can be asked for by.
var methodNames = []drover.Method{
	drover.Live, drover.Stretch, drover.Route, drover.Renumber,
	drover.Redirect, drover.Warm, drover.Cold, drover.Spawn,
}

// methodFlag is the value of --method; empty leaves the choice to the server.
type methodFlag drover.Method

// Set reads a method.
func (m *methodFlag) Set(s string) error {
	if !slices.Contains(methodNames, drover.Method(s)) {
		return fmt.Errorf("want one of %s", strings.Join(methodStrings(), ", "))
	}
	*m = methodFlag(s)
	return nil
}

func (m *methodFlag) String() string { return string(*m) }

// Type names the value in help texts.
func (m *methodFlag) Type() string { return "METHOD" }

func methodStrings() []string {
	names := make([]string, len(methodNames))
	for i, m := range methodNames {
		names[i] = string(m)
	}
	return names
}

// rateFlag is the value of --bandwidth; zero is unlimited.
type rateFlag drover.BitRate

// Set reads a rate.
func (r *rateFlag) Set(s string) error {
	v, err := drover.ParseBitRate(s)
	if err == nil && v <= 0 {
		err = errors.New("want more than zero, such as 100Mbit")
	}
	*r = rateFlag(v)
	return err
}

func (r *rateFlag) String() string {
	if *r == 0 {
		return ""
	}
	return drover.BitRate(*r).String()
}

// Type names the value in help texts.
func (r *rateFlag) Type() string { return "RATE" }

// durationFlag is a time above zero; zero is not given.
type durationFlag time.Duration

// Set reads a duration.
func (d *durationFlag) Set(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		return errors.New("want a time above zero, such as 300ms or 2m")
	}
	*d = durationFlag(v)
	return nil
}

func (d *durationFlag) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

// Type names the value in help texts.
func (d *durationFlag) Type() string { return "TIME" }

func (d durationFlag) millis() int64 {
	// A time below a millisecond is still not zero, which means not given.
	return max(time.Duration(d).Milliseconds(), min(int64(d), 1))
}
