package agent

import (
	"fmt"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/drover-vm/drover"
)

// Size is a size as files write it: "20GiB" or bytes as a number.
type Size drover.Bytes

// MarshalYAML writes bytes.
func (s Size) MarshalYAML() (any, error) { return int64(s), nil }

// UnmarshalYAML reads a size; see drover.ParseBytes.
func (s *Size) UnmarshalYAML(n ast.Node) error {
	v, err := drover.ParseBytes(n.GetToken().Value)
	*s = Size(v)
	return placed(n, err)
}

// Duration is a time as files write it: "5m".
type Duration time.Duration

// MarshalYAML writes the duration as Go does: "5m0s".
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// UnmarshalYAML reads a duration.
func (d *Duration) UnmarshalYAML(n ast.Node) error {
	text := n.GetToken().Value
	v, err := time.ParseDuration(text)
	if err != nil {
		err = fmt.Errorf("%q: want a time, such as 5m", text)
	}
	*d = Duration(v)
	return placed(n, err)
}

// placed gives an error the place of its value in the file.
func placed(n ast.Node, err error) error {
	if err == nil {
		return nil
	}
	return &yaml.SyntaxError{Message: err.Error(), Token: n.GetToken()}
}
