package server

import (
	"fmt"
	"strconv"

	"github.com/goccy/go-yaml/ast"

	"github.com/drover-vm/drover"
)

// Price is what something costs, as files write it: a number.
type Price float64

// UnmarshalYAML reads a price.
func (p *Price) UnmarshalYAML(n ast.Node) error {
	text := n.GetToken().Value
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return placed(n, fmt.Errorf("%q: want a price, such as 0.02", text))
	}
	*p = Price(v)
	return nil
}

// pricePerGiB is what forecasts reckon with: what a GiB from site to site costs. It
// is nothing inside a site, and nil where the link has no price, or there is none.
func pricePerGiB(from, to string, link *drover.Link) *float64 {
	switch {
	case from == to:
		return new(0.0)
	case link == nil:
		return nil
	}
	return link.Cost(drover.GiB)
}

// cost is what a move's bytes on the wire have cost; nil where the link has no
// price, or none of them are known.
func (t *truth) cost(m drover.Move, f drover.Figures) *float64 {
	if f.WireBytes == nil {
		return nil
	}
	for _, l := range t.s.fleet.viewLinks() {
		if l.Joins(m.From.Site, m.To.Site) && m.From.Site != m.To.Site {
			return l.Cost(drover.Bytes(*f.WireBytes))
		}
	}
	return nil
}
