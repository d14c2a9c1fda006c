// Package files holds the ready lab files, so that "drover lab up pair" works
// wherever the binary does. What a lab file means is package labfile's.
package files

import (
	"embed"
	"strings"
)

//go:embed *.yaml
var ready embed.FS

// Ready returns the ready lab file of that name, without ".yaml".
func Ready(name string) ([]byte, bool) {
	if strings.ContainsAny(name, "./") {
		return nil, false
	}
	b, err := ready.ReadFile(name + ".yaml")
	return b, err == nil
}

// Names lists the ready lab files.
func Names() []string {
	entries, err := ready.ReadDir(".")
	if err != nil {
		panic(err) // the folder is part of the binary
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}
