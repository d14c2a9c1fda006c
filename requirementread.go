package drover

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The readers of requirements. Each says whether the text could be read.

func yes(field func(*Requirements) **bool) func(*Requirements, string) bool {
	return func(r *Requirements, text string) bool {
		var v bool
		switch strings.ToLower(text) {
		case "yes", "true":
			v = true
		case "no", "false":
		default:
			return false
		}
		*field(r) = &v
		return true
	}
}

func millis(field func(*Requirements) **float64) func(*Requirements, string) bool {
	return func(r *Requirements, text string) bool {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d > maxRequirementTime {
			return false
		}
		ms := float64(d) / float64(time.Millisecond)
		*field(r) = &ms
		return true
	}
}

func readDeadline(r *Requirements, text string) bool {
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		r.Deadline, r.Within = at.UTC(), 0
		return true
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > maxRequirementTime {
		return false
	}
	r.Deadline, r.Within = time.Time{}, d
	return true
}

func readCost(r *Requirements, text string) bool {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return false
	}
	r.MaxCost = &v
	return true
}

// items splits a list; nil for one with something empty in it, or too long.
func items(text string) []string {
	list := strings.Split(text, ",")
	if len(list) > maxRequirementItems {
		return nil
	}
	for i := range list {
		if list[i] = strings.TrimSpace(list[i]); list[i] == "" {
			return nil
		}
	}
	return list
}

func names(field func(*Requirements) *[]string) func(*Requirements, string) bool {
	return func(r *Requirements, text string) bool {
		list := items(text)
		if list == nil || slices.ContainsFunc(list, func(n string) bool { return !namePattern.MatchString(n) }) {
			return false
		}
		*field(r) = list
		return true
	}
}

func readCountries(r *Requirements, text string) bool {
	list := items(text)
	for i, c := range list {
		if list[i] = strings.ToUpper(c); CheckCountry("country", list[i]) != nil {
			return false
		}
	}
	r.Countries = list
	return list != nil
}

// CheckCountry reports whether s are two capital letters, as ISO 3166-1 has them
// for countries. Which of them are taken is not checked: that changes.
func CheckCountry(field, s string) error {
	if len(s) != 2 || strings.ContainsFunc(s, func(c rune) bool { return c < 'A' || c > 'Z' }) {
		return Errorf(Invalid, field, "%q: want two capital letters, such as DE", clip(s))
	}
	return nil
}

func readService(r *Requirements, text string) bool {
	r.Service = text
	return namePattern.MatchString(text)
}

func readMethods(r *Requirements, text string) bool {
	r.Methods = nil
	for _, word := range items(text) {
		m := Method(strings.ToLower(word))
		if !slices.Contains(Methods(), m) {
			return false
		}
		r.Methods = append(r.Methods, m)
	}
	return len(r.Methods) > 0
}
