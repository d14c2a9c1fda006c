package advisor

import (
	"fmt"
	"slices"

	"github.com/drover-vm/drover"
)

// objection is what a VM's requirements have against a site, and what would take
// it away.
type objection struct{ why, change string }

// objections are what its requirements have against the VM's being at the site,
// whichever way it comes.
func objections(q *Question, at drover.Site) []objection {
	var found []objection
	add := func(change, format string, args ...any) {
		found = append(found, objection{fmt.Sprintf(format, args...), change})
	}
	r := q.Needs.Requirements
	if len(r.Sites) > 0 && !slices.Contains(r.Sites, at.Name) {
		add(fmt.Sprintf("allow %s among its sites, or take %s", at.Name, list(r.Sites)),
			"its data may only be at %s, and %s is none of them", list(r.Sites), at.Name)
	}
	if len(r.Countries) > 0 {
		switch {
		case at.Country == "":
			add(fmt.Sprintf("name the country of %s in the server's file", at.Name),
				"its data may only be in %s, and the country of %s is not known", list(r.Countries), at.Name)
		case !slices.Contains(r.Countries, at.Country):
			add(fmt.Sprintf("allow %s among its countries, or take a site in %s", at.Country, list(r.Countries)),
				"its data may only be in %s, and %s is in %s", list(r.Countries), at.Name, at.Country)
		}
	}
	for _, vm := range r.With {
		if site := q.Sites[vm]; site != at.Name {
			where := "nowhere to be found"
			if site != "" {
				where = "at " + site
			}
			add(fmt.Sprintf("take %s to %s first, or with it", vm, at.Name), "it belongs with %s, which is %s", vm, where)
		}
	}
	for _, vm := range r.Apart {
		if q.Sites[vm] == at.Name {
			add(fmt.Sprintf("take %s elsewhere first", vm), "it has to be apart from %s, which is at %s", vm, at.Name)
		}
	}
	return found
}
