package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/drover-vm/drover"
)

// json prints the one document of a command.
func (a *app) json(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := a.out.Write(b.Bytes())
	return err
}

// table prints rows below a head, in columns; an empty cell shows as "-".
func (a *app) table(head []string, rows [][]string) error {
	w := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			if cell == "" {
				cell = "-"
			}
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, cell)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// millis shows a duration given in milliseconds; nil was not measured.
func millis(v *float64) string {
	if v == nil {
		return ""
	}
	if *v >= 10_000 {
		return fmt.Sprintf("%.1f s", *v/1000)
	}
	return fmt.Sprintf("%.0f ms", *v)
}

func seconds(v *float64) string {
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%.1f s", *v)
}

func bytesOf(v *int64) string {
	if v == nil {
		return ""
	}
	return drover.Bytes(*v).String()
}

func count(v *int64) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(*v)
}

// size shows a quantity; zero is not known.
func size(b drover.Bytes) string {
	if b == 0 {
		return ""
	}
	return b.String()
}

func rate(r drover.BitRate) string {
	if r == 0 {
		return ""
	}
	return r.String()
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

func list(items []string) string { return strings.Join(items, ",") }

// price shows money, whose currency nobody has said.
func price(v *float64) string {
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%.3g", *v)
}
