package labfile

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// decoder fills structs from a YAML tree. Unlike a library's strict mode it goes
// on after a problem, so that one run shows everything that is wrong, and it
// remembers the line of every key for the checks that come after.
//
// Struct tags: `yaml:"key"` names the key, `yaml:"key,need"` makes it required,
// `want:"…"` says what a right value is.
type decoder struct {
	file     string
	lines    map[string]int
	bad      map[string]bool
	anchors  map[string]ast.Node
	problems Problems
}

func newDecoder(file string) *decoder {
	return &decoder{file: file, lines: map[string]int{}, bad: map[string]bool{}, anchors: map[string]ast.Node{}}
}

// report notes a problem with the key at path.
func (d *decoder) report(path, value, want string) {
	d.bad[path] = true
	d.problems = append(d.problems, Problem{File: d.file, Line: d.line(path), Field: path, Value: value, Want: want})
}

// line finds the line of path, or of the nearest thing around it.
func (d *decoder) line(path string) int {
	for path != "" {
		if n, ok := d.lines[path]; ok {
			return n
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			break
		}
		path = path[:cut]
	}
	return d.lines[""]
}

var textType = reflect.TypeFor[encoding.TextUnmarshaler]()

// decode fills v from n. want describes a right value where the kind of v alone
// does not.
func (d *decoder) decode(n ast.Node, v reflect.Value, path, want string) {
	if n = d.resolve(n, path); n == nil {
		return
	}
	if _, set := d.lines[path]; !set {
		d.lines[path] = n.GetToken().Position.Line
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		d.decode(n, v.Elem(), path, want)
		return
	}
	if v.Addr().Type().Implements(textType) {
		d.decodeText(n, v, path, want)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.decodeStruct(n, v, path)
	case reflect.Slice:
		d.decodeSlice(n, v, path, want)
	case reflect.Map:
		d.decodeMap(n, v, path, want)
	default:
		d.decodeScalar(n, v, path, want)
	}
}

// resolve follows anchors and aliases; it returns nil after reporting a name
// that is not defined.
func (d *decoder) resolve(n ast.Node, path string) ast.Node {
	for {
		switch t := n.(type) {
		case *ast.AnchorNode:
			d.anchors[t.Name.GetToken().Value] = t.Value
			n = t.Value
		case *ast.AliasNode:
			name := t.Value.GetToken().Value
			target, ok := d.anchors[name]
			if !ok {
				d.lines[path] = t.GetToken().Position.Line
				d.report(path, "*"+name, "want an anchor that is defined above")
				return nil
			}
			n = target
		case *ast.TagNode:
			n = t.Value
		default:
			return n
		}
	}
}

// pairs returns the keys and values of a mapping, or nil and false.
func pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch t := n.(type) {
	case *ast.MappingNode:
		return t.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{t}, true
	default:
		return nil, false
	}
}

func (d *decoder) decodeStruct(n ast.Node, v reflect.Value, path string) {
	values, ok := pairs(n)
	if !ok {
		d.report(path, text(n), "want keys and values")
		return
	}
	fields, names := structFields(v.Type())
	seen := map[string]bool{}
	for _, pair := range values {
		key := pair.Key.GetToken().Value
		at := join(path, key)
		d.lines[at] = pair.Key.GetToken().Position.Line
		i, known := fields[key]
		switch {
		case !known:
			d.report(at, "", "unknown key, want one of "+strings.Join(names, ", "))
		case seen[key]:
			d.report(at, text(pair.Value), "the key is there twice, want it once")
		default:
			f := v.Type().Field(i)
			d.decode(pair.Value, v.Field(i), at, f.Tag.Get("want"))
		}
		seen[key] = true
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key, need := yamlKey(f)
		if !need || seen[key] {
			continue
		}
		hint := "the key is missing"
		if w := f.Tag.Get("want"); w != "" {
			hint += ", want " + w
		}
		d.report(join(path, key), "", hint)
	}
}

func (d *decoder) decodeSlice(n ast.Node, v reflect.Value, path, want string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		if want == "" {
			want = "a list"
		}
		d.report(path, text(n), "want "+want)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		d.decode(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i), want)
	}
}

func (d *decoder) decodeMap(n ast.Node, v reflect.Value, path, want string) {
	values, ok := pairs(n)
	if !ok {
		d.report(path, text(n), "want names and values")
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, pair := range values {
		key := pair.Key.GetToken().Value
		at := join(path, key)
		d.lines[at] = pair.Key.GetToken().Position.Line
		if v.MapIndex(reflect.ValueOf(key)).IsValid() {
			d.report(at, "", "the name is there twice, want it once")
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		if _, null := pair.Value.(*ast.NullNode); !null || item.Kind() != reflect.Struct {
			d.decode(pair.Value, item, at, want)
		}
		v.SetMapIndex(reflect.ValueOf(key), item)
	}
}

func (d *decoder) decodeText(n ast.Node, v reflect.Value, path, want string) {
	s, ok := scalar(n)
	if !ok {
		d.report(path, text(n), "want "+want)
		return
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
		v.SetZero() // later checks see nothing rather than half a value
		d.report(path, s, "want "+want)
	}
}

func (d *decoder) decodeScalar(n ast.Node, v reflect.Value, path, want string) {
	s, ok := scalar(n)
	kind := map[reflect.Kind]string{
		reflect.String: "text", reflect.Int: "a whole number",
		reflect.Float64: "a number", reflect.Bool: "true or false",
	}[v.Kind()]
	if kind == "" {
		panic(fmt.Sprintf("labfile: no decoding for %s at %s", v.Type(), path)) // a bug in the structs of this package
	}
	if want == "" {
		want = kind
	}
	var err error
	switch _, quoted := n.(*ast.StringNode); {
	case !ok:
		err = strconv.ErrSyntax
	case v.Kind() == reflect.String:
		// A bare number or truth value is a slip where text is wanted, except
		// that YAML makes no difference for things like a label "1".
		v.SetString(s)
	case v.Kind() == reflect.Int:
		var i int64
		if i, err = strconv.ParseInt(s, 10, 64); err == nil {
			v.SetInt(i)
		}
	case v.Kind() == reflect.Float64:
		var f float64
		if f, err = strconv.ParseFloat(s, 64); err == nil {
			v.SetFloat(f)
		}
	case v.Kind() == reflect.Bool:
		var b bool
		if b, err = strconv.ParseBool(s); quoted {
			err = strconv.ErrSyntax
		}
		v.SetBool(b && err == nil)
	}
	if err != nil {
		d.report(path, text(n), "want "+want)
	}
}

// scalar returns the text of a scalar node as the file's author meant it.
func scalar(n ast.Node) (string, bool) {
	switch t := n.(type) {
	case *ast.StringNode:
		return t.Value, true
	case *ast.LiteralNode:
		return t.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	default:
		return "", false
	}
}

// text is what a problem shows of a node: a scalar as it stands, or its kind.
func text(n ast.Node) string {
	if s, ok := scalar(n); ok {
		return s
	}
	switch n.(type) {
	case *ast.SequenceNode:
		return "a list"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys and values"
	case *ast.NullNode:
		return "nothing"
	default:
		return n.Type().YAMLName()
	}
}

// structFields returns the index of each key's field, and the keys in order.
func structFields(t reflect.Type) (map[string]int, []string) {
	fields, names := map[string]int{}, []string{}
	for i := range t.NumField() {
		if key, _ := yamlKey(t.Field(i)); key != "" {
			fields[key] = i
			names = append(names, key)
		}
	}
	return fields, names
}

func yamlKey(f reflect.StructField) (key string, need bool) {
	parts := strings.Split(f.Tag.Get("yaml"), ",")
	return parts[0], slices.Contains(parts[1:], "need")
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
