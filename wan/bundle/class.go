package bundle

import "fmt"

// Class is a channel's priority. A frame of a later class is sent only when no
// earlier one has any.
type Class uint8

// The classes, first things first. Return, what a destination tells its source
// while memory comes the other way, is a few bytes that somebody waits for:
// ahead of bulk memory it costs nothing, behind it a round of the queue. Disk
// goes before Memory because a guest that runs while its memory is copied
// writes to its disks, too: what of that had to wait would wait in the pause.
const (
	Control Class = iota
	Fill
	Return
	Disk
	Memory
	Copy

	classes = 6
)

var classNames = [classes]string{"control", "fill", "return", "disk", "memory", "copy"}

// String returns the class's name.
func (c Class) String() string {
	if c >= classes {
		return fmt.Sprintf("class %d", uint8(c))
	}
	return classNames[c]
}

// exempt classes are bounded by their channels' windows only: what they carry
// is what the others wait for.
func (c Class) exempt() bool { return c <= Fill }

// share returns how much of the bundle's window a class may fill. Disk and copy
// leave a quarter to memory, so that a slow disk never stops it.
func (c Class) share(window int64) int64 {
	if c == Disk || c == Copy {
		return window - window/4
	}
	return window
}
