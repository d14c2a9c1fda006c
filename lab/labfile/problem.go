package labfile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing wrong with a lab file, in the words of one line.
type Problem struct {
	// File and Line say where; Line is 0 when the file as a whole is meant.
	File string
	Line int
	// Field is the key's path ("links[0].rate"), "" for the whole file.
	Field string
	// Value is what the file says, "" when the key is missing.
	Value string
	// Want is what would be right.
	Want string
}

// String returns "file:line: field: value: want …".
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Field != "" {
		b.WriteString(": " + p.Field)
	}
	if p.Value != "" {
		fmt.Fprintf(&b, ": %q", clip(p.Value))
	}
	b.WriteString(": " + p.Want)
	return b.String()
}

// longestValue is how much of a value a line shows: a file that is no lab file
// may be one value from end to end.
const longestValue = 60

func clip(s string) string {
	if r := []rune(s); len(r) > longestValue {
		return string(r[:longestValue]) + "…"
	}
	return s
}

// Problems is everything wrong with a lab file, in the order of its lines.
type Problems []Problem

// Error returns one line per problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// OrNil returns ps as an error, sorted by line, or nil when it is empty.
func (ps Problems) OrNil() error {
	if len(ps) == 0 {
		return nil
	}
	slices.SortStableFunc(ps, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return ps
}
