package libvirt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxXMLDepth bounds how deep a definition may be nested; libvirt's are about
// eight deep.
const maxXMLDepth = 64

// element is a piece of XML that can be changed here and there while everything
// else, what is not known here too, stays as it was, byte for byte.
type element struct {
	source []byte
	name   xml.Name // Space is the prefix, unresolved
	attrs  []xml.Attr
	// The start tag is source[start:open], the end tag source[close:end]; an
	// empty element has no end tag, and open, close and end are the same.
	start, open, close, end int
	children                []*element
	parent                  *element

	retagged bool    // the start tag is written anew
	removed  bool    // nothing is written
	text     *string // replaces all content
	added    string  // after all content
}

// parseXML reads a document and returns its root.
func parseXML(source []byte) (*element, error) {
	dec := xml.NewDecoder(bytes.NewReader(source))
	var root, at *element
	depth := 0
	for {
		before := int(dec.InputOffset())
		token, err := dec.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("definition: %w", err)
		}
		after := int(dec.InputOffset())
		switch token := token.(type) {
		case xml.StartElement:
			if depth++; depth > maxXMLDepth {
				return nil, fmt.Errorf("definition: nested deeper than %d", maxXMLDepth)
			}
			e := &element{source: source, name: token.Name, attrs: token.Copy().Attr, start: before, open: after, parent: at}
			switch {
			case at != nil:
				at.children = append(at.children, e)
			case root != nil:
				return nil, errors.New("definition: more than one document")
			default:
				root = e
			}
			at = e
		case xml.EndElement:
			if at == nil || at.name != token.Name {
				return nil, fmt.Errorf("definition: </%s> ends nothing", token.Name.Local)
			}
			at.close, at.end = before, after
			at, depth = at.parent, depth-1
		}
	}
	if root == nil || at != nil {
		return nil, errors.New("definition: it is cut off or empty")
	}
	return root, nil
}

// child returns the first child of that name, nil if there is none.
func (e *element) child(name string) *element {
	for _, c := range e.each(name) {
		return c
	}
	return nil
}

// each returns the children of that name.
func (e *element) each(name string) []*element {
	var list []*element
	if e == nil {
		return nil
	}
	for _, c := range e.children {
		if c.name.Local == name && !c.removed {
			list = append(list, c)
		}
	}
	return list
}

// at follows names downwards; nil if there is no such element.
func (e *element) at(names ...string) *element {
	for _, name := range names {
		e = e.child(name)
	}
	return e
}

func (e *element) attr(name string) string {
	if e == nil {
		return ""
	}
	for _, a := range e.attrs {
		if a.Name.Space == "" && a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

func (e *element) setAttr(name, value string) {
	for i, a := range e.attrs {
		if a.Name.Space == "" && a.Name.Local == name {
			e.attrs[i].Value, e.retagged = value, e.retagged || a.Value != value
			return
		}
	}
	e.attrs, e.retagged = append(e.attrs, xml.Attr{Name: xml.Name{Local: name}, Value: value}), true
}

func (e *element) dropAttr(name string) {
	for i, a := range e.attrs {
		if a.Name.Space == "" && a.Name.Local == name {
			e.attrs, e.retagged = append(e.attrs[:i], e.attrs[i+1:]...), true
			return
		}
	}
}

// content returns the element's text, without that of elements in it.
func (e *element) content() string {
	if e == nil {
		return ""
	}
	if e.text != nil {
		return *e.text
	}
	var text strings.Builder
	dec := xml.NewDecoder(bytes.NewReader(e.source[e.start:e.end]))
	for depth := 0; ; {
		token, err := dec.RawToken()
		if err != nil { // its end: it was parsed before
			return strings.TrimSpace(text.String())
		}
		switch token := token.(type) {
		case xml.StartElement:
			depth++
		case xml.EndElement:
			depth--
		case xml.CharData:
			if depth == 1 {
				text.Write(token)
			}
		}
	}
}

// setContent replaces everything in the element by a text.
func (e *element) setContent(text string) { e.text = &text }

// add puts XML at the element's end.
func (e *element) add(markup string) { e.added += markup }

// remove takes the element away.
func (e *element) remove() { e.removed = true }

// String writes the element.
func (e *element) String() string {
	var b strings.Builder
	e.write(&b)
	return b.String()
}

func (e *element) write(b *strings.Builder) {
	if e.removed {
		return
	}
	grown := e.added != "" || e.text != nil && *e.text != ""
	empty := e.close == e.open
	e.writeStart(b, empty && !grown)
	if e.text != nil {
		b.WriteString(escapeXML(*e.text))
	} else {
		from := e.open
		for _, c := range e.children {
			b.Write(e.source[from:c.start])
			c.write(b)
			from = c.end
		}
		b.Write(e.source[from:e.close])
	}
	b.WriteString(e.added)
	switch {
	case e.end > e.close:
		b.Write(e.source[e.close:e.end])
	case grown: // it was an empty one
		b.WriteString("</" + qualified(e.name) + ">")
	}
}

func (e *element) writeStart(b *strings.Builder, closed bool) {
	selfClosed := e.end == e.close
	if !e.retagged && selfClosed == closed {
		b.Write(e.source[e.start:e.open])
		return
	}
	if !selfClosed {
		closed = false // its end tag follows
	}
	b.WriteString("<" + qualified(e.name))
	for _, a := range e.attrs {
		b.WriteString(" " + qualified(a.Name) + "='" + escapeXML(a.Value) + "'")
	}
	if closed {
		b.WriteByte('/')
	}
	b.WriteByte('>')
}

func qualified(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

func escapeXML(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder does not fail
	return b.String()
}

// replaceRoot writes the document with its root as it is now.
func replaceRoot(root *element) []byte {
	var b strings.Builder
	b.Write(root.source[:root.start])
	root.write(&b)
	b.Write(root.source[root.end:])
	return []byte(b.String())
}

// interfaceByMAC returns a domain's network card, nil if it has none with that
// MAC.
func interfaceByMAC(root *element, mac string) *element {
	for _, nic := range root.at("devices").each("interface") {
		if strings.EqualFold(nic.child("mac").attr("address"), mac) {
			return nic
		}
	}
	return nil
}
