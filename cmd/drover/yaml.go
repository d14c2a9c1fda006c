package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/drover-vm/drover"
)

// maxConfigBytes bounds a configuration file: the server's for ten thousand
// hosts has one megabyte.
const maxConfigBytes = 8 << 20

// readYAML reads the file at path into out. Keys that out does not have, and
// values of another type, are drover.Invalid with file and line.
func readYAML(path string, out any) error { return decodeYAML(path, out, false) }

// decodeYAML is readYAML, with the column of what is wrong where columns says so:
// for files whose lines hold many values.
func decodeYAML(path string, out any, columns bool) error {
	f, err := os.Stat(path)
	switch {
	case err == nil && f.Size() > maxConfigBytes:
		return drover.Errorf(drover.Invalid, "", "%s: %d bytes: want a configuration file of at most %d", path, f.Size(), maxConfigBytes)
	case err == nil && f.IsDir():
		return drover.Errorf(drover.Invalid, "", "%s: it is a folder: want a YAML file", path)
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return drover.Errorf(drover.Invalid, "", "%s: no such file", path)
	}
	if err != nil {
		return drover.E(drover.Invalid, "", err)
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return drover.Errorf(drover.Invalid, "", "%s: the file is empty", path)
	}
	if err := yaml.NewDecoder(bytes.NewReader(raw), yaml.Strict()).Decode(out); err != nil {
		return drover.Errorf(drover.Invalid, "", "%s%s", path, yamlFault(err, columns))
	}
	return nil
}

// yamlFault is a decoder's error as ":LINE: text" in one line, without the
// excerpt of the source that its own text has.
func yamlFault(err error, columns bool) string {
	var ye yaml.Error
	if !errors.As(err, &ye) {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return ": " + text
	}
	text := strings.Join(strings.Fields(ye.GetMessage()), " ")
	if t := ye.GetToken(); t != nil && t.Position != nil {
		if columns {
			return fmt.Sprintf(":%d:%d: %s", t.Position.Line, t.Position.Column, text)
		}
		return fmt.Sprintf(":%d: %s", t.Position.Line, text)
	}
	return ": " + text
}

// inFile puts the file's name before each line of a Validate's error.
func inFile(path string, err error) error {
	if err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	for i, l := range lines {
		lines[i] = path + ": " + l
	}
	return drover.Errorf(drover.KindOf(err), "", "%s", strings.Join(lines, "\n"))
}
