package labfile

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/files"
)

// maxFileBytes bounds a lab file; a hundred sites with a thousand guests are
// below half of it.
const maxFileBytes = 1 << 20

// Load reads the lab file at path, or the ready file of that name ("pair"), and
// checks it. The error is of kind drover.Invalid and unwraps to Problems when
// the file is there but wrong.
func Load(path string) (*File, error) {
	op := "lab file"
	if b, ok := files.Ready(path); ok {
		return parse(path+".yaml", "", b)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, drover.Errorf(drover.Invalid, op, "%q: no such file and not a ready lab, want a path or one of %s",
			path, strings.Join(files.Names(), ", "))
	case err != nil:
		return nil, drover.E(drover.Invalid, op, err)
	case !info.Mode().IsRegular():
		return nil, drover.Errorf(drover.Invalid, op, "%q: want a regular file", path)
	case info.Size() > maxFileBytes:
		return nil, drover.Errorf(drover.Invalid, op, "%q: %s, want at most %s", path,
			drover.Bytes(info.Size()), drover.Bytes(maxFileBytes))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	return parse(path, path, b)
}

// Parse checks a lab file that is already in memory. label names it in problems.
func Parse(label string, b []byte) (*File, error) { return parse(label, "", b) }

func parse(label, path string, b []byte) (*File, error) {
	f := &File{Path: path, label: label}
	d := newDecoder(label)
	doc, err := document(label, b)
	if err != nil {
		return nil, drover.E(drover.Invalid, "", err)
	}
	d.decode(doc, reflect.ValueOf(f).Elem(), "", "")
	f.lines = d.lines
	if !d.bad[""] {
		c := &checker{decoder: d, f: f}
		c.check()
	}
	if err := d.problems.OrNil(); err != nil {
		return nil, drover.E(drover.Invalid, "", err)
	}
	return f, nil
}

// position finds "[3:5] what is wrong" at the head of a syntax error.
var position = regexp.MustCompile(`^\[(\d+):\d+\] ([^\n]*)`)

// document returns the one YAML document of b.
func document(label string, b []byte) (ast.Node, error) {
	tree, err := parser.ParseBytes(b, 0)
	if err != nil {
		p := Problem{File: label, Want: "not YAML: " + err.Error()}
		if m := position.FindStringSubmatch(err.Error()); m != nil {
			p.Line, _ = strconv.Atoi(m[1]) // digits by the pattern
			p.Want = "not YAML: " + m[2]
		}
		return nil, Problems{p}
	}
	var body ast.Node
	for _, doc := range tree.Docs {
		if doc.Body == nil {
			continue
		}
		if body != nil {
			return nil, Problems{{File: label, Line: doc.Body.GetToken().Position.Line, Want: "a second document, want one"}}
		}
		body = doc.Body
	}
	if body == nil {
		return nil, Problems{{File: label, Want: "the file is empty, want a lab"}}
	}
	return body, nil
}

// Problem makes a problem with the key at field, for checks that need more than
// the file.
func (f *File) Problem(field, value, want string) Problem {
	d := decoder{lines: f.lines}
	return Problem{File: f.label, Line: d.line(field), Field: field, Value: value, Want: want}
}

// Resolve returns a path of the file as a path of the machine.
func (f *File) Resolve(path string) string {
	if path == "" || filepath.IsAbs(path) || f.Path == "" {
		return path
	}
	return filepath.Join(filepath.Dir(f.Path), path)
}

// Light in fibre needs 5 µs per km (refractive index 1.47), and cables run on
// average about 1.3 times the great circle.
const (
	fibreDelayPerKm = 5 * time.Microsecond
	routeFactor     = 1.3
	earthRadiusKm   = 6371
)

// DistanceDelay is the one-way delay between two places: the great circle by
// the haversine formula, times 5 µs/km, times 1.3.
func DistanceDelay(a, b Location) time.Duration {
	rad := func(deg float64) float64 { return deg * math.Pi / 180 }
	sin2 := func(x float64) float64 { return math.Sin(x/2) * math.Sin(x/2) }
	h := sin2(rad(b.Lat-a.Lat)) + math.Cos(rad(a.Lat))*math.Cos(rad(b.Lat))*sin2(rad(b.Lon-a.Lon))
	km := 2 * earthRadiusKm * math.Asin(math.Sqrt(min(h, 1)))
	return time.Duration(km * routeFactor * float64(fibreDelayPerKm)).Round(time.Microsecond)
}

// EdgeName is the node name of a site's edge.
func EdgeName(site string) string { return "edge-" + site }

// RouterName is the node name of a site's router, which it has where routing is
// by BGP.
func RouterName(site string) string { return site + "-router" }

// ServerName is the node name of the server.
const ServerName = "server"

// site returns the site of that name, or nil.
func (f *File) site(name string) *Site {
	for i := range f.Sites {
		if f.Sites[i].Name == name {
			return &f.Sites[i]
		}
	}
	return nil
}

// Segment returns the segment of that name, or nil.
func (f *File) Segment(name string) *Segment {
	for i := range f.Segments {
		if f.Segments[i].Name == name {
			return &f.Segments[i]
		}
	}
	return nil
}

// SiteOfHost returns the site of the host of that name, or nil.
func (f *File) SiteOfHost(name string) *Site {
	for i := range f.Sites {
		for _, h := range f.Sites[i].Hosts {
			if h.Name == name {
				return &f.Sites[i]
			}
		}
	}
	return nil
}

// IPv6 reports whether the lab has IPv6 at all.
func (f *File) IPv6() bool {
	return slices.ContainsFunc(f.Sites, func(s Site) bool { return s.Access6.IsValid() }) ||
		slices.ContainsFunc(f.Segments, func(s Segment) bool { return s.Subnet6.IsValid() })
}

// BGP reports whether every site has a router that speaks BGP.
func (f *File) BGP() bool { return f.Routing == RoutingBGP }

// String is the lab's name and size in a few words.
func (f *File) String() string {
	hosts := 0
	for _, s := range f.Sites {
		hosts += len(s.Hosts)
	}
	return fmt.Sprintf("%s: %d sites, %d hosts, %d links, %d guests", f.Name, len(f.Sites), hosts, len(f.Links), len(f.Guests))
}

// Rename gives the lab another name than its file does.
func (f *File) Rename(name string) error {
	if !lowerName.MatchString(name) || len(name) > maxLabName {
		return drover.Errorf(drover.Invalid, "--name", "%q: want a name of up to %d lower-case letters, digits and dashes", name, maxLabName)
	}
	f.Name = name
	return nil
}
