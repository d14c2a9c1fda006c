package drover_test

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/drover-vm/drover"

// layer is one of the house's layers; imports go one way between them.
type layer string

const (
	domain layer = "DOMAIN" // the root: standard library only
	pure   layer = "PURE"   // logic that gets time, randomness and the world as arguments
	trust  layer = "TRUST"  // identities and TLS, below everything that talks
	edge   layer = "EDGE"   // a contract and the technologies behind it
	face   layer = "FACE"   // API and page
	run    layer = "RUN"    // sees contracts only
	world  layer = "WORLD"  // lab and simulator
	main   layer = "MAIN"   // wiring
)

// rooms says which layer each top folder is in.
var rooms = map[string]layer{
	"": domain, "forecast": pure, "advisor": pure, "planner": pure, "saga": pure, "network": pure,
	"pki": trust, "driver": edge, "wan": edge, "store": edge, "probe": edge, "nbd": edge, "namespace": edge,
	"api": face, "web": face, "executor": run, "server": run, "agent": run,
	"sim": world, "lab": world, "cmd": main,
}

// mayImport says which layers a layer's code may import; its own room is
// always allowed, except as contracts below forbid.
var mayImport = map[layer][]layer{
	domain: {},
	pure:   {domain, pure},
	trust:  {domain},
	edge:   {domain, trust},
	face:   {domain, trust},
	run:    {domain, pure, trust, edge, face, run},
	world:  {domain, pure, trust, edge, face, run, world},
	main:   {domain, pure, trust, edge, face, run, world, main},
}

// contracts are the EDGE packages that RUN may see; everything below them is
// a concrete technology.
var contracts = map[string]bool{"driver": true, "store": true, "wan": true, "probe": false}

// leaves are EDGE packages without a contract, a protocol's two ends or a use of
// the kernel, that any EDGE code may build on; RUN does not see them.
var leaves = map[string]bool{"nbd": true, "namespace": true}

type pkg struct {
	ImportPath, Dir, Name string
	Imports               []string
	GoFiles               []string
	Standard              bool
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Name,Imports,GoFiles", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p pkg
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("go list found %d packages: is the test run from the module's root?", len(all))
	}
	return all
}

// inside returns the path of an import below the module, and whether it is one.
func inside(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

func room(rel string) string {
	top, _, _ := strings.Cut(rel, "/")
	return top
}

// violation returns why the package at from may not import the one at to, or "".
func violation(from, to string) string {
	lf, ok := rooms[room(from)]
	if !ok {
		return "folder " + room(from) + " is not in the house: give it a layer in layers_test.go"
	}
	lt, ok := rooms[room(to)]
	if !ok {
		return "imports " + to + ", which has no layer"
	}
	if room(from) == room(to) {
		return sibling(from, to, lf)
	}
	if lf == edge && leaves[room(from)] && lt != domain {
		return "a leaf imports the domain at most, not " + to
	}
	if lf == edge && (contracts[to] || leaves[to]) {
		return "" // a contract is a leaf: the WAN path reads images through driver's
	}
	for _, l := range mayImport[lf] {
		if l != lt {
			continue
		}
		if lf == run && lt == edge && !contracts[to] {
			return string(lf) + " sees contracts only, and " + to + " is not one"
		}
		return ""
	}
	return string(lf) + " may not import " + string(lt) + " (" + to + ")"
}

// sibling judges imports inside one room: drivers and stores are blind to
// each other and see their contract only.
func sibling(from, to string, l layer) string {
	if l != edge || !strings.Contains(to, "/") {
		return ""
	}
	technology := func(p string) string { return strings.Split(p, "/")[1] }
	if !strings.Contains(from, "/") {
		if room(from) == "driver" || room(from) == "store" {
			return "a contract may not import the technology " + to
		}
		return ""
	}
	if room(from) != "wan" && technology(from) != technology(to) {
		return "siblings do not know each other (" + to + ")"
	}
	return ""
}

func TestLayers(t *testing.T) {
	for _, p := range packages(t) {
		from, ok := inside(p.ImportPath)
		if !ok {
			continue
		}
		for _, imp := range p.Imports {
			to, ok := inside(imp)
			if !ok {
				if rooms[room(from)] == domain && strings.Contains(strings.Split(imp, "/")[0], ".") {
					t.Errorf("the domain imports %s: standard library only", imp)
				}
				continue
			}
			if why := violation(from, to); why != "" {
				t.Errorf("%s: %s", from, why)
			}
		}
	}
}

// TestLayersJudge breaks the rule on purpose, so that TestLayers can be trusted.
func TestLayersJudge(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		ok       bool
	}{
		{"", "driver", false},
		{"saga", "", true},
		{"saga", "store", false},
		{"executor", "saga", true},
		{"executor", "store", true},
		{"executor", "store/etcd", false},
		{"agent", "driver/libvirt", false},
		{"driver/libvirt", "driver", true},
		{"driver/libvirt", "driver/disk", false},
		{"driver/disk", "nbd", true},
		{"wan", "nbd", true},
		{"wan/disk", "nbd", true},
		{"nbd", "driver", false},
		{"nbd", "", true},
		{"agent", "nbd", false},
		{"driver", "driver/libvirt", false},
		{"driver/disk", "agent", false},
		{"wan", "driver", true},
		{"wan", "driver/disk", false},
		{"api", "server", false},
		{"lab", "agent", true},
		{"cmd/drover", "driver/libvirt", true},
		{"common", "", false},
	} {
		if got := violation(tt.from, tt.to); (got == "") != tt.ok {
			t.Errorf("%q imports %q: judged %q, want allowed=%v", tt.from, tt.to, got, tt.ok)
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		found := false
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			found = found || file.Doc != nil
		}
		if !found && len(p.GoFiles) > 0 && !strings.Contains(p.ImportPath, "/droverv1") {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}
